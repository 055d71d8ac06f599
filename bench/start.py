"""Measure what the first call of each CPU kernel costs a process: `python bench/start.py`, seconds of processor time.

The calls run twice with one new cache folder: first with nothing on disk, then with the compiled code there.
"""

import os
import subprocess
import sys
import tempfile

CALLS = """
import time
import numpy, torch
torch.set_num_threads(1)
from sckit.kernels.attention import attention
from sckit.kernels.embed import EmbedTables, TokenScalars, embed, plan_rows
from sckit.kernels.head import masked_head

def step(name, run):
    start = time.process_time()
    result = run()
    print(f"{time.process_time() - start:8.2f} s  {name}", flush=True)
    return result

def start_numba():
    import numba
    numba.njit(lambda x: x)(1.0)

def pack():
    from sckit.kernels.counts_numba import pack as kernel
    from sckit.kernels.counts_reference import Hide
    csr = numpy.array([0, 8]), numpy.arange(8, dtype=numpy.uint16), numpy.ones(8, numpy.uint8)
    hide, vocabulary = Hide(1, numpy.array([0.5])), numpy.arange(8, dtype=numpy.int32)
    kernel(csr, numpy.arange(1), numpy.array([8]), hide, vocabulary=vocabulary, max_genes=9)

step("start Numba", start_numba)
qkv = torch.randn(8, 3, 1, 32, requires_grad=True)
out = step("attention, forward", lambda: attention(*qkv.unbind(1), torch.tensor([0, 8])))
step("attention, backward", lambda: out.sum().backward())
tables = EmbedTables(*(torch.randn(size, requires_grad=True) for size in [(8, 32)] * 4 + [(32,)] * 2))
rows = plan_rows(torch.arange(8))
scalars = TokenScalars(*torch.zeros(3, 8), torch.zeros(8, dtype=torch.bool))
ranges = {"value_range": (0, 1), "expected_range": (0, 1)}
h = step("token states, forward", lambda: embed(rows, rows, scalars, tables, **ranges))
step("token states, backward", lambda: h.sum().backward())
leaf = h.detach().requires_grad_()
head = leaf, torch.zeros(8), torch.zeros(32), tables.gene, rows
loss = step("masked head, forward", lambda: masked_head(*head, truth=torch.zeros(8))[1])
step("masked head, backward", lambda: loss.backward())
step("hide and pack", pack)
"""


def main() -> None:
    """Run the calls in two fresh processes that share a cache folder."""
    with tempfile.TemporaryDirectory() as cache:
        for state in ("nothing on disk", "compiled code on disk"):
            print(state, flush=True)
            subprocess.run([sys.executable, "-c", CALLS], env=os.environ | {"NUMBA_CACHE_DIR": cache}, check=True)


if __name__ == "__main__":
    main()
