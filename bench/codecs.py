"""How small and how fast codecs make the counts of a store: `python bench/codecs.py STORE... --out FILE.jsonl`.

Each codec gets the entries of 64 cells at a time, as the compact layout does, on one thread: gene numbers or the gaps
between them, and counts, each for itself. Speeds are of decoding to gene numbers and counts, the median of rounds in
which all codecs are timed in turn; what comes back is compared first. blosc2 and pcodec are tried where they are
installed.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from sckit.bench.report import append_rows
from sckit.data.compact import CHUNK_CELLS
from sckit.data.store import Store, open_store
from sckit.kernels.packing_numba import pack_entries, unpack_entries
from sckit.provenance import commit, environment

MOST_ENTRIES = 8_000_000


class Chunk(NamedTuple):
    """The entries of some cells."""

    indptr: np.ndarray  # int64 [C + 1]
    genes: np.ndarray  # uint16 [nnz]
    counts: np.ndarray  # uint16 [nnz]


class Codec(NamedTuple):
    """Two functions: from a chunk to something with lengths in bytes, and from that, with the chunk's cells, back."""

    encode: Callable[[Chunk], list[bytes]]
    decode: Callable[[list[bytes], np.ndarray], tuple[np.ndarray, np.ndarray]]


def chunks_of(store: Store) -> list[Chunk]:
    """Return the entries of the first cells of a store."""
    cells = min(store.n_cells, max(CHUNK_CELLS, int(store.n_cells * MOST_ENTRIES / store.nonzeros)))
    parts = (store.rows(np.arange(first, min(first + CHUNK_CELLS, cells))) for first in range(0, cells, CHUNK_CELLS))
    return [Chunk(indptr, genes.astype(np.uint16), counts.astype(np.uint16)) for indptr, genes, counts in parts]


def gaps_of(chunk: Chunk) -> np.ndarray:
    """Return how many genes are skipped before each entry, uint16 [nnz]."""
    gaps = np.diff(chunk.genes.astype(np.int64), prepend=-1) - 1
    first = chunk.indptr[:-1][np.diff(chunk.indptr) > 0]
    gaps[first] = chunk.genes[first]
    return gaps.astype(np.uint16)


@njit(nogil=True, error_model="numpy")
def genes_of(gaps: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return the genes, uint16 [nnz]."""
    genes = np.empty(len(gaps), np.uint16)
    for cell in range(len(indptr) - 1):
        gene, of_cell = np.int64(-1), genes[indptr[cell] : indptr[cell + 1]]
        for i, gap in enumerate(gaps[indptr[cell] : indptr[cell + 1]]):
            step = np.int64(gap) + 1
            gene += step
            of_cell[i] = gene
    return genes


def compact(*, compress_counts: bool) -> Codec:
    """Gaps of a byte through zstd and counts of half a byte, which the compact layout does not compress."""
    zstd = pa.Codec("zstd", compression_level=1)

    def encode(chunk: Chunk) -> list[bytes]:
        gaps, halves = (part.tobytes() for part in pack_entries(*chunk))
        parts = [zstd.compress(gaps, asbytes=True), zstd.compress(halves, asbytes=True) if compress_counts else halves]
        return [*parts, len(gaps).to_bytes(4, "little"), len(halves).to_bytes(4, "little")]

    def decode(parts: list[bytes], indptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = [int.from_bytes(size, "little") for size in parts[2:]]
        halves = zstd.decompress(parts[1], sizes[1]) if compress_counts else parts[1]
        packed = np.frombuffer(zstd.decompress(parts[0], sizes[0]), np.uint8), np.frombuffer(halves, np.uint8)
        found = np.empty(int(indptr[-1]), np.uint16), np.empty(int(indptr[-1]), np.uint16)
        unpack_entries(indptr, packed, *found, 2**16)
        return found

    return Codec(encode, decode)


def of_library(
    compress: Callable[[np.ndarray], bytes], decompress: Callable[[bytes], np.ndarray], *, gaps: bool
) -> Codec:
    """Gene numbers, or gaps, and counts in 16 bits through a library."""

    def encode(chunk: Chunk) -> list[bytes]:
        return [compress(gaps_of(chunk) if gaps else chunk.genes), compress(chunk.counts)]

    def decode(parts: list[bytes], indptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        genes, counts = map(decompress, parts)
        return (genes_of(genes, indptr) if gaps else genes), counts

    return Codec(encode, decode)


def codecs() -> dict[str, Codec]:
    """Return all codecs that can be tried here."""
    found = {
        "the compact layout: zstd of gaps, counts in half a byte": compact(compress_counts=False),
        "zstd of gaps and of counts in half a byte": compact(compress_counts=True),
    }
    for name, level in (("lz4", None), ("zstd", 1)):
        codec = pa.Codec(name, compression_level=level)

        def compress(array: np.ndarray, codec: pa.Codec = codec) -> bytes:
            return len(array).to_bytes(4, "little") + codec.compress(array.tobytes(), asbytes=True)

        def decompress(data: bytes, codec: pa.Codec = codec) -> np.ndarray:
            size = 2 * int.from_bytes(data[:4], "little")
            return np.frombuffer(codec.decompress(data[4:], size), np.uint16)

        found |= {
            f"{name}, {what}": of_library(compress, decompress, gaps=what == "gaps") for what in ("genes", "gaps")
        }
    return found | of_blosc2() | of_pcodec()


def of_blosc2() -> dict[str, Codec]:
    """Return blosc2's codecs after its filters, if it is installed."""
    try:
        import blosc2  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    found = {}
    for codec, level in ((blosc2.Codec.LZ4, 5), (blosc2.Codec.ZSTD, 1)):
        for rule in (blosc2.Filter.BITSHUFFLE, blosc2.Filter.SHUFFLE):
            options = {"codec": codec, "clevel": level, "filters": [rule], "typesize": 2, "nthreads": 1}

            def compress(array: np.ndarray, options: dict[str, Any] = options) -> bytes:
                return blosc2.compress2(array, **options)

            def decompress(data: bytes) -> np.ndarray:
                return np.frombuffer(blosc2.decompress2(data, nthreads=1), np.uint16)

            for what in ("genes", "gaps"):
                name = f"blosc2 {rule.name.lower()} {codec.name.lower()}, {what}"
                found[name] = of_library(compress, decompress, gaps=what == "gaps")
    return found


def of_pcodec() -> dict[str, Codec]:
    """Return pcodec, if it is installed."""
    try:
        import pcodec  # pyright: ignore[reportMissingImports]
        from pcodec import standalone  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    config = pcodec.ChunkConfig(compression_level=8)

    def decompress(data: bytes) -> np.ndarray:
        return np.asarray(standalone.simple_decompress(data))

    return {
        f"pcodec, {what}": of_library(
            lambda array: standalone.simple_compress(array, config), decompress, gaps=what == "gaps"
        )
        for what in ("genes", "gaps")
    }


def compare(store: Store, rounds: int) -> list[dict[str, Any]]:
    """Return a record for each codec, smallest first."""
    chunks, tried = chunks_of(store), codecs()
    nonzeros = sum(len(chunk.genes) for chunk in chunks)
    packed = {name: [codec.encode(chunk) for chunk in chunks] for name, codec in tried.items()}
    for name, codec in tried.items():
        for parts, chunk in zip(packed[name], chunks, strict=True):
            for found, true in zip(codec.decode(parts, chunk.indptr), chunk[1:], strict=True):
                np.testing.assert_array_equal(found, true, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(rounds):
        for name, codec in tried.items():
            start = time.perf_counter()
            for parts, chunk in zip(packed[name], chunks, strict=True):
                codec.decode(parts, chunk.indptr)
            seconds[name].append(time.perf_counter() - start)
    records = [
        {
            "codec": name,
            "bytes_per_nonzero": round(sum(len(part) for parts in packed[name] for part in parts) / nonzeros, 3),
            "nonzeros_per_s": round(nonzeros / float(np.median(seconds[name]))),
        }
        for name in tried
    ]
    facts = {"data": store.path.stem, "nonzeros": nonzeros, "rounds": rounds}
    return sorted((facts | record for record in records), key=lambda record: record["bytes_per_nonzero"])


def main() -> None:
    """Compare codecs on each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for path in arguments.stores:
        for record in compare(open_store(path), arguments.rounds):
            print(json.dumps(record), flush=True)
            if arguments.out:
                row = record | {"commit": commit(), "environment": environment()}
                append_rows({"rows": [row]}, arguments.out)


if __name__ == "__main__":
    main()
