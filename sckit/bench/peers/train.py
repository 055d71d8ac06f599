"""Engines of `sckit bench train`: training steps of a network 128 wide with 4 layers, on batches of 32 cells.

All see the same cells and hide about 15 % of the values. The others hold batches as packed rows of (gene, value), which
`batches` draws; sckit trains from its store. FLOP are those of the linear maps that each token passes and of attention
over the cell's own tokens, whatever else an engine computes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import Answer, Job, timed

WIDTH, LAYERS, HEADS, INNER, CELLS, HIDDEN = 128, 4, 4, 512, 32, 0.15
_PRODUCT = 2048  # rows of the square matrices whose product is the machine's peak
_WARM_UP = 2


class Rows(NamedTuple):
    """A batch of T tokens of C cells, packed."""

    lengths: list[int]  # of the C cells
    genes: Any  # int64 [T]
    values: Any  # float32 [T]
    hidden: Any  # bool [T]


class Taken(NamedTuple):
    """What a step took."""

    seconds: float
    lengths: list[int]


def run(job: Job) -> Answer:
    """Take steps after two of warm-up.

    Returns the means of a step's seconds, cells, nonzeros and tokens, because steps have different numbers of tokens,
    and the share of the machine's own matrix product that the useful work comes to.
    """
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    steps = list(
        islice(ENGINES[job["engine"]](Path(job["folder"]), job["case"], job["genes"]), _WARM_UP + job["steps"])
    )
    taken = steps[_WARM_UP:]
    peak = _peak()
    speed = statistics.median(flop(step.lengths) / step.seconds for step in taken)
    tokens = float(np.mean([sum(step.lengths) for step in taken]))
    facts = {"cells": float(np.mean([len(step.lengths) for step in taken])), "nonzeros": tokens, "tokens": tokens}
    return {"seconds": float(np.mean([step.seconds for step in taken])), "share_of_peak": speed / peak} | facts


def flop(lengths: list[int]) -> float:
    """Return the work of a step: 6 for each weight and token, 12 x layers x width for each pair of tokens of a cell."""
    weights = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * INNER) + 2 * (WIDTH + WIDTH**2)
    return 6.0 * weights * sum(lengths) + 12.0 * LAYERS * WIDTH * float(sum(length**2 for length in lengths))


def _peak() -> float:
    """Return the FLOP per second of a product of matrices."""
    import torch

    one, other = torch.randn(_PRODUCT, _PRODUCT), torch.randn(_PRODUCT, _PRODUCT)
    return 2 * _PRODUCT**3 / min(timed(lambda: torch.mm(one, other))[0] for _ in range(7))


def batches(folder: Path, case: str) -> Iterator[Rows]:
    """Yield batches of 32 cells in a random order, without end."""
    import torch

    indptr, genes, values = (np.load(folder / f"{case}-{name}.npy") for name in ("indptr", "genes", "values"))
    generator = np.random.default_rng(1)
    while True:
        for cells in np.array_split(generator.permutation(len(indptr) - 1), (len(indptr) - 1) // CELLS):
            entries = np.concatenate([np.arange(indptr[cell], indptr[cell + 1]) for cell in cells])
            hidden = generator.random(len(entries)) < HIDDEN
            lengths = (indptr[cells + 1] - indptr[cells]).tolist()
            of_tokens = genes[entries].astype(np.int64), values[entries].astype(np.float32), hidden
            yield Rows(lengths, *map(torch.from_numpy, of_tokens))


def of_sckit(*, waiting: bool) -> Callable[[Path, str, int], Iterator[Taken]]:
    """Training steps of sckit, with the loader or on batches that wait in memory."""

    def steps(folder: Path, case: str, _genes: int) -> Iterator[Taken]:
        from sckit.device import choose_compute
        from sckit.training.ranks import ALONE
        from sckit.training.run import open_run
        from sckit.training.trainer import Trainer

        trainer = Trainer(open_run(folder / f"run-{case}"), choose_compute("cpu"), lambda _kind, _facts: None, ALONE)
        coming = trainer.feed.steps(0, 0)
        ready = iter(list(islice(coming, 30))) if waiting else coming
        while True:
            lengths: list[int] = []

            def take(lengths: list[int] = lengths) -> None:
                step = next(ready)
                lengths += [int(n) for each in step.batches for n in np.diff(each.batch.offsets)]
                trainer.take(step)

            seconds, _ = timed(take)
            yield Taken(seconds, lengths)

    return steps


def of_network(make: Callable[[int], Any]) -> Callable[[Path, str, int], Iterator[Taken]]:
    """Steps of a network of torch by AdamW; make(genes) builds it, and its forward pass returns the loss of Rows."""

    def steps(folder: Path, case: str, genes: int) -> Iterator[Taken]:
        import torch

        network = make(genes)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
        for rows in batches(folder, case):

            def take(rows: Rows = rows) -> None:
                optimiser.zero_grad(set_to_none=True)
                network(rows).backward()
                optimiser.step()

            yield Taken(timed(take)[0], rows.lengths)

    return steps


def packed(genes: int) -> Any:
    """All cells in one matrix of tokens, attention cell by cell with torch's scaled_dot_product_attention."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.inner = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: Any, lengths: list[int]) -> Any:
            heads = self.qkv(self.before(x)).view(len(x), 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
            cells = [functional.scaled_dot_product_attention(*part.unsqueeze(1)) for part in heads.split(lengths, 2)]
            x = x + self.out(torch.cat(cells, 2)[0].transpose(0, 1).reshape(len(x), WIDTH))
            return x + self.inner(self.between(x))

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ends = _ends(genes)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

        def forward(self, rows: Rows) -> Any:
            x = self.ends.embed(rows.genes, rows.values, rows.hidden)
            for layer in self.layers:
                x = layer(x, rows.lengths)
            return self.ends.loss(x[rows.hidden], rows.values[rows.hidden])

    return Packed()


def encoder(genes: int) -> Any:
    """The nn.TransformerEncoder of torch on cells that are padded to the longest, with a mask."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ends = _ends(genes)
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.0, "gelu", batch_first=True)
            self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

        def forward(self, rows: Rows) -> Any:
            of_genes, of_values, of_hidden, real = _padded(rows)
            x = self.body(self.ends.embed(of_genes, of_values, of_hidden), src_key_padding_mask=~real)
            chosen = real & of_hidden
            return self.ends.loss(x[chosen], of_values[chosen])

    torch.backends.mha.set_fastpath_enabled(False)
    return Encoder()


def like_scgpt(genes: int) -> Any:
    """A model laid out like scGPT's: a token for the cell, normalised embeddings, a decoder of three layers; padded."""
    import torch
    from torch import nn
    from torch.nn import functional

    class LikeScgpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gene, self.of_gene = nn.Embedding(genes + 1, WIDTH), nn.LayerNorm(WIDTH)
            self.value = nn.Sequential(nn.Linear(1, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.0, batch_first=True)
            self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
            middle = [nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU()]
            self.decoder = nn.Sequential(*middle, nn.Linear(WIDTH, 1))

        def forward(self, rows: Rows) -> Any:
            of_genes, of_values, of_hidden, real = _padded(rows)
            of_cell = of_genes.new_full((len(of_genes), 1), genes)
            shown = functional.pad(of_values.masked_fill(of_hidden, -1.0), (1, 0))
            x = self.of_gene(self.gene(torch.cat([of_cell, of_genes], 1))) + self.value(shown[..., None])
            x = self.body(x, src_key_padding_mask=~functional.pad(real, (1, 0), value=True))[:, 1:]
            chosen = real & of_hidden
            return functional.mse_loss(self.decoder(x[chosen])[:, 0], of_values[chosen])

    return LikeScgpt()


def _ends(genes: int) -> Any:
    """Return what the first two networks have in common: how tokens come in, and the loss of what goes out."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gene = nn.Embedding(genes, WIDTH)
            self.value = nn.Sequential(nn.Linear(1, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            self.blank = nn.Parameter(torch.zeros(WIDTH))
            self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

        def embed(self, of_genes: Any, values: Any, hidden: Any) -> Any:
            shown = torch.where(hidden[..., None], self.blank, self.value(values[..., None]))
            return self.gene(of_genes) + shown

        def loss(self, x: Any, truth: Any) -> Any:
            return functional.mse_loss(self.head(x)[:, 0], truth)

    return Ends()


def _padded(rows: Rows) -> tuple[Any, Any, Any, Any]:
    """Return genes, values and hidden as [C, longest], and which entries are real."""
    import torch

    lengths = torch.tensor(rows.lengths)
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    found = []
    for flat in (rows.genes, rows.values, rows.hidden):
        whole = flat.new_zeros(real.shape)
        whole[real] = flat
        found.append(whole)
    return found[0], found[1], found[2], real


ENGINES = {
    "sckit": of_sckit(waiting=False),
    "sckit, batches in memory": of_sckit(waiting=True),
    "packed SDPA": of_network(packed),
    "nn.TransformerEncoder": of_network(encoder),
    "scGPT layout": of_network(like_scgpt),
}
