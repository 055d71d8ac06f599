"""Random numbers as hashes of (key, cell, gene), so that they depend on nothing else; in numpy."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What a SplitMix64 stream advances by from one word to the next."""
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 (Steele, Lea, Flood 2014): uint64 of any shape to uint64 of that shape."""
    with np.errstate(over="ignore"):
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def entry_uniform(key: int, cells: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return a uniform number in [0, 1) for every (cell, gene), a pure function of the key.

    key: non-negative int below 2^64; cells, genes: non-negative integers that broadcast. float64 of that shape.
    """
    cell_key = mix(np.uint64(key) ^ mix(np.asarray(cells).astype(np.uint64)))
    return (mix(cell_key ^ np.asarray(genes).astype(np.uint64)) >> np.uint64(11)) * 2.0**-53
