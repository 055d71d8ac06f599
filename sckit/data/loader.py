"""Which cells go into which batch: a shuffled order that reads the store in stretches, cut into batches by tokens."""

import numpy as np

from sckit.data.views import CountsView, in_blocks, indptr_of

_BLOCK_CELLS = 4096


def epoch_batches(cells: np.ndarray, lengths: np.ndarray, tokens: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Return the training batches of one epoch as row numbers, the same for the same seed."""
    return batches_by_tokens(shuffle(np.sort(cells), np.random.default_rng(seed)), lengths, tokens)


def batches_by_tokens(cells: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut the cells, in their order, into batches of about `tokens` tokens and at least one cell each.

    lengths: [cells of the store], tokens of each cell.
    """
    edges = np.cumsum(np.maximum(lengths[cells], 1)) // max(tokens, 1)
    return np.split(cells, np.flatnonzero(np.diff(edges)) + 1) if len(cells) else []


def shuffle(cells: np.ndarray, generator: np.random.Generator, *, block: int = 64, buffer: int = 64) -> np.ndarray:
    """Return the cells in a random order that reads the store in stretches.

    Blocks of `block` neighbouring cells are permuted, then the cells within every `buffer` of these blocks.
    """
    blocks = np.array_split(cells, max(1, -(-len(cells) // block)))
    blocks = [blocks[i] for i in generator.permutation(len(blocks))]
    groups = [np.concatenate(blocks[i : i + buffer]) for i in range(0, len(blocks), buffer)]
    return np.concatenate([generator.permutation(group) for group in groups])


def detected_in(view: CountsView, vocabulary: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Count the detected genes of the vocabulary in each of the cells, int64 [len(cells)]."""
    counted = [np.zeros(0, np.int64)]
    for part in in_blocks(cells, _BLOCK_CELLS):
        indptr, genes, _ = view.rows(part)
        counted.append(np.diff(indptr_of(vocabulary[genes] >= 0)[indptr]))
    return np.concatenate(counted)
