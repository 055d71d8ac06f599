"""Ending at the next step when the system asks for it, as schedulers of clusters do before they take a machine away."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stop:
    """While it is entered, SIGTERM does not end the process but is remembered."""

    def __init__(self) -> None:
        self.asked = False  # whether this process was
        self.agreed: float = 0.0  # how many processes were, as all of them know since the last step
        self._before: Any = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # no other may set it
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
