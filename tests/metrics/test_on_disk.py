"""Sums of cells lie on disk: they come back as they were, and take no memory."""

import subprocess
import sys

import numpy as np
import pytest

from sckit.errors import DataError
from sckit.metrics.on_disk import RowsOnDisk

MANY = """
import sys
import numpy as np
from sckit.metrics.on_disk import RowsOnDisk

rows = RowsOnDisk()
for _ in range(int(sys.argv[1])):
    rows.append(np.ones((1000, 18)))
assert rows.all().sum() == 18000 * int(sys.argv[1])
"""


def test_rows_come_back_in_order_also_while_more_are_added(rng):
    rows, expected = RowsOnDisk(), np.zeros((0, 3))
    assert rows.all().shape == (0, 0)
    for n in (4, 0, 7):
        part = rng.normal(size=(3, n)).T  # not in the order of memory
        rows.append(part)
        expected = np.concatenate([expected, part])
        np.testing.assert_array_equal(rows.all(), expected)


def test_rows_take_no_anonymous_memory(anonymous_peak):
    few, many = (anonymous_peak(MANY, blocks) for blocks in (10, 400))
    assert many - few < 0.2 * 390 * 1000 * 18 * 8


def test_a_full_disk_is_one_sentence(monkeypatch):
    class Full:
        def __getattr__(self, name):
            raise OSError(28, "No space left on device")

    rows = RowsOnDisk()
    monkeypatch.setattr(rows, "_file", Full())
    with pytest.raises(DataError, match=r"No space left on device.*set TMPDIR"):
        rows.append(np.ones((1, 2)))


FULL = """
import resource, signal
import numpy as np
from sckit.errors import DataError
from sckit.metrics.on_disk import RowsOnDisk

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    RowsOnDisk().append(np.ones((400, 2)))
except DataError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_is_one_sentence_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True)
    assert "(File too large); set TMPDIR" in done.stdout
    assert done.stderr == ""
