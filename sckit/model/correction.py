"""What a small network without attention adds to the linear baseline, entry by entry.

    correction of gene g in cell c = shared(entry, facts of g, facts of c) + <w[g], u(facts of c)>

`shared` is one network for all genes: it learns how a baseline errs that is linear. The second term lets a gene follow
products of what is known of the cell; w is penalised like the coefficients of a ridge, because a gene has few cells.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.model.offset_forms import OffsetForms

_WIDTH = 128  # of the shared network
_PRODUCTS = 32
_SCALE, _MOST = 5.0, 6.0  # of a product: to a size of about one at first; it must not be extrapolated
_OF_ENTRY, _OF_GENE = 5, 5
_GENE_RANGE = 4.0  # standard deviations over the genes
_LEAST_COUNT, _LEAST_ABOVE = 0.1, 0.05


class Entries(NamedTuple):
    """What the correction sees of M entries in C cells."""

    entries: Tensor  # float32 [M, 10], the last 5 of which are the facts of its gene
    genes: Tensor  # int64 [M]
    cell: Tensor  # int64 [M], row of `cells`
    cells: Tensor  # float32 [C, S], facts of the cells


def facts_of_genes(forms: OffsetForms) -> np.ndarray:
    """Return what the correction knows of the genes, standardised, float32 [G, 5]."""
    noise = np.sqrt(np.maximum(forms.noise, 0))
    facts = np.column_stack([np.log1p(forms.cells), forms.deviation, forms.gene_mean, forms.mean_above, noise])
    facts = (facts - facts.mean(0)) / (facts.std(0) + 1e-9)
    return facts.clip(-_GENE_RANGE, _GENE_RANGE).astype(np.float32)


def entries_of(above: Tensor, one: Tensor, counts: Tensor, of_hidden: Tensor, of_above: Tensor) -> Tensor:
    """Return what the correction sees of each entry, [M, 5].

    above: expected value less that of a single count; one: that value; counts: expected counts; of_hidden: expected
    counts of all hidden entries of the cell; of_above: log of their sum above one count each.
    """
    more = torch.log((counts - 1).clamp(min=0) + _LEAST_ABOVE) - of_above + 5
    counts = counts.clamp(min=_LEAST_COUNT)
    return torch.stack([above, one - 1.5, torch.log(counts), torch.log(counts / of_hidden) + 5, more], 1)


class Correction(nn.Module):
    """The correction as a module; before it is trained it is zero."""

    facts: Tensor

    def __init__(self, facts: np.ndarray, of_cell: int) -> None:
        """facts: [G, 5], as from `facts_of_genes`; of_cell: S, number of facts of a cell."""
        super().__init__()
        self.facts = nn.Buffer(torch.from_numpy(np.ascontiguousarray(facts, dtype=np.float32)))
        layers = nn.Linear(_OF_ENTRY + _OF_GENE + of_cell, _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 1)
        self.shared = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        self.factors = nn.Linear(of_cell, 4 * _PRODUCTS)
        self.products = nn.Linear(2 * _PRODUCTS, _PRODUCTS, bias=False)
        self.gene = nn.Embedding(len(facts), _PRODUCTS)
        for zero in (layers[2].weight, layers[2].bias, self.gene.weight):
            nn.init.zeros_(zero)
        self.requires_grad_(requires_grad=False)  # it is trained before the network, and not with it

    def forward(self, seen: Entries) -> Tensor:
        """Return the corrections of the entries, float32 [M]."""
        return self.parts(seen)[0]

    def parts(self, seen: Entries) -> tuple[Tensor, Tensor]:
        """Return the corrections [M], and the vector w of the gene of each entry [M, products]."""
        cells = F.embedding(seen.cell, seen.cells)
        of_all = self.shared(torch.cat([seen.entries, cells], 1))[:, 0]
        left, right = self.factors(seen.cells).chunk(2, -1)
        of_gene = self.gene(seen.genes)
        products = (_SCALE * self.products(left * right)).clamp(-_MOST, _MOST)
        return of_all + (F.embedding(seen.cell, products) * of_gene).sum(1), of_gene
