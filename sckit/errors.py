"""The errors a user can cause. The command line prints their one sentence and exits with `exit_code`."""

import errno


class SckitError(Exception):
    """Base class: what is wrong, what was found, what was wanted, what to do; one sentence."""

    exit_code = 1


class DataError(SckitError):
    """The data are not what they should be: not counts, truncated, empty, nothing in common."""


class UnreachableError(DataError):
    """An input on the network cannot be reached now; what was made of it so far is worth keeping."""


class ConfigError(SckitError):
    """An option is outside its range or contradicts another one."""

    exit_code = 2


class PartsError(ConfigError):
    """The parts of a store do not fit together."""


class WriteError(DataError):
    """A file cannot be written: there is no room, no permission, or no such place."""

    def __init__(self, what: object, error: OSError, how: str = "run the command again") -> None:
        """Say what cannot be written and why; how: what to do after the remedy."""
        self.error = error
        remedy = "make room" if no_room(error) else "choose another place"
        super().__init__(f"{what} cannot be written ({error.strerror or error}); {remedy}, and {how}.")


class BusyError(SckitError):
    """Another process is writing the same files."""


class LostProcessError(SckitError):
    """Another process of the same training has ended."""


class StoppedError(SckitError):
    """The system asked the process to end (SIGTERM), and it did."""

    exit_code = 143


class Terminated(BaseException):
    """SIGTERM has come. As KeyboardInterrupt, it is no error that anything on the way may take for one of a file."""


def no_room(error: BaseException) -> bool:
    """Return whether a file could not be written because the disk, a quota or a limit on the size of files is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def said(error: Exception) -> str:
    """Return what an error of a library says, in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError) and error.strerror:  # without its number
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return text if len(text) <= 200 else text[:200] + "..."
