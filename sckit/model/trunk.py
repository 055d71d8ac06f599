"""What both models share: token states, blocks of attention within the cell, and the masked head.

    prediction[i] = base[i] + <w0 + w[g], h_i>

`base` is what a linear baseline says, and h_i the token's final state. `w0` and `w` start at zero, so that before the
first step a model is its linear baseline.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.config import ModelConfig
from sckit.kernels.attention import AttentionPlan, attention
from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.head import masked_head
from sckit.model.tokens import Tokens

VALUE_RANGE = (0.0, 9.25)  # up to log1p(1e4): a gene that holds all counts of its cell
_ALIKE = 1.3  # scale of queries and keys that begin alike: the logit of the same token is its square times sqrt(size)
EXPECTED_RANGE = (-2.0, 6.0)  # of an expected value less the value of a single count

# Rows are gathered by F.embedding and index_select, and summed over a cell by Tokens.sums. On a GPU index_add and the
# backward pass of plain indexing add in no fixed order, and a resumed run has to be the same to the last bit.


class Block(nn.Module):
    """Pre-norm attention within the cell, then a gated MLP."""

    def __init__(self, config: ModelConfig, *, to_same: bool = False) -> None:
        """Begin at random; to_same: with queries and keys of the first head alike, so that it looks at the same gene.

        Among the tokens of thousands of genes, training does not find that of the same gene in other cells by itself.
        """
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        if to_same:
            size = width // config.heads
            with torch.no_grad():
                alike = _ALIKE * torch.linalg.qr(torch.randn(width, size))[0].T
                self.qkv.weight[:size] = self.qkv.weight[width : width + size] = alike

    def forward(self, h: Tensor, plan: AttentionPlan, engine: str, keep: Tensor | None = None) -> Tensor:
        """Map states [T, E] to [T, E], or to [M, E] of the tokens to keep: the last block skips all others."""
        q, k, v = (
            self.qkv(self.attention_norm(h)).view(len(h), 3, self.heads, h.shape[1] // self.heads).unbind(1)
        )  # [T, H, D] each
        mixed = attention(q, k, v, plan=plan, engine=engine).flatten(1)  # [T, E]
        if keep is not None:
            h, mixed = h.index_select(0, keep), mixed.index_select(0, keep)
        h = h + self.out(mixed)
        gate, up = self.gate_up(self.mlp_norm(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * up)


class Trunk(nn.Module, ABC):
    """A model without its linear baseline; a subclass creates the parameters and says what `targets` are.

    The names of the parameters are the names in the files of a run.
    """

    engine: str
    gene: nn.Embedding  # [rows, E]
    curve: nn.Parameter  # [knots, E], of the value
    guess_curve: nn.Parameter  # [knots, E], of the expected value
    surprise: nn.Parameter  # [E], times the residual
    marker: nn.Parameter  # [E], of hidden tokens
    cell: nn.Linear  # from what is known of a cell to E
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Embedding  # [G, E], w
    shared_head: nn.Parameter  # [E], w0

    @abstractmethod
    def targets(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return the base [M] and the normalised final states [M, E] of the targets."""

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the predictions of the targets, float32 [M]."""
        base, h = self.targets(tokens)
        return masked_head(h, base, self.shared_head, self.head.weight, tokens.target_rows, engine=self.engine)

    def loss(self, tokens: Tokens) -> Tensor:
        """Return the mean squared error of the predictions; zero, with a gradient, for a batch without targets.

        Raises ValueError for tokens without truth.
        """
        if tokens.truth is None:
            message = "the loss needs the truth of every target"
            raise ValueError(message)
        base, h = self.targets(tokens)
        weights = self.shared_head, self.head.weight
        return masked_head(h, base, *weights, tokens.target_rows, truth=tokens.truth, engine=self.engine)[1]

    def token_states(self, tokens: Tokens, cells: Tensor, expected: Tensor, residual: Tensor) -> Tensor:
        """Return the states [T, E] before the first block.

        cells: [C, E], what is known of each cell, added to each of its tokens; expected, residual: [T] as in `Tokens`.
        """
        return embed(
            tokens.gene_rows,
            tokens.cell_rows,
            TokenScalars(tokens.values, residual, expected, tokens.hidden),
            EmbedTables(self.gene.weight, cells, self.curve, self.guess_curve, self.surprise, self.marker),
            value_range=VALUE_RANGE,
            expected_range=EXPECTED_RANGE,
            engine=self.engine,
        )

    def final_states(self, h: Tensor, plan: AttentionPlan, keep: Tensor | None) -> Tensor:
        """Return the normalised final states [M, E] of the tokens to keep (None: all, [T, E]) from states [T, E]."""
        for i, block in enumerate(self.blocks):
            h = block(h, plan, self.engine, keep if i == len(self.blocks) - 1 else None)
        return self.norm(h if self.blocks or keep is None else h.index_select(0, keep))


def factor_means(weighted: Tensor, loadings: Tensor, residual: Tensor, tokens: Tokens) -> Tensor:
    """Return the posterior means [C, J] of standard normal factors of each cell, given its residuals.

    The ridge of a cell, (I + L'L/s)^-1 L'r/s over its T tokens: loadings L [T, J], weighted [T, J] = L / s with noise
    variances s and zero at tokens that are not seen, residual r [T].
    """
    size = loadings.shape[1]
    outer = (weighted[:, :, None] * loadings[:, None, :]).flatten(1)
    precision = tokens.sums(outer).view(len(tokens.shows_some), size, size)
    moment = tokens.sums(weighted * residual[:, None])
    identity = torch.eye(size, device=loadings.device)
    return torch.linalg.solve(precision + identity, moment[..., None])[..., 0]
