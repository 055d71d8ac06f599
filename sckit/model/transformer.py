"""The lean model, top to bottom: the closed forms as a starting point, and attention that has to add to them.

    prediction[i] = linear(g, cell) + <w0 + w[g], h_i>

The linear part is initialised from the closed forms and `w0`, `w` at zero, so that before the first step the model is
the best closed form to rounding. h_i is the token's state after pre-norm blocks of attention within the cell and a
gated MLP. What is known of a whole cell (depth, components, total, factors) is projected once and added to each of its
tokens: the same as a cell token that everybody attends to, without a token more to pack.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sckit.config import ModelConfig
from sckit.data.batch import Batch
from sckit.kernels.attention import AttentionPlan, attention, plan_attention
from sckit.kernels.embed import EmbedTables, TokenScalars, embed
from sckit.kernels.head import masked_head
from sckit.kernels.rows import RowPlan, plan_rows
from sckit.model.closed_forms import TOTAL_RANGE, ClosedForms

VALUE_RANGE = (0.0, 9.25)  # up to log1p(1e4): a gene that holds all counts of its cell
GUESS_RANGE = (-2.0, 6.0)  # of a prediction less the value of a single count
STATE_RANGE = 3.0  # standard deviations over the training cells
_CELL_EXTRAS = 5  # depth, total, whether the total is known, whether the context is visible only, log visible


@dataclass(frozen=True)
class Tokens:
    """A batch as tensors on one device; letters as in `Batch`."""

    genes: Tensor  # int64 [T]
    values: Tensor  # float32 [T], 0 where hidden
    hidden: Tensor  # bool [T]
    cell: Tensor  # int64 [T], position of the token's cell
    in_context: Tensor  # float32 [T], 1 where the token's identity is known to its cell
    targets: Tensor  # int64 [M]
    truth: Tensor  # float32 [M]
    log_detected: Tensor  # float32 [C]
    shows_some: Tensor  # float32 [C], 0 where a cell has no context token
    log_total: Tensor  # float32 [C], NaN where unknown
    plan: AttentionPlan
    gene_rows: RowPlan  # of the tokens
    cell_rows: RowPlan  # of the tokens
    target_rows: RowPlan  # genes of the targets
    visible_only: bool
    totals: str  # of how many cells the total is known: "none", "some" or "all"

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "Tokens":
        """Copy a batch to the device and plan once what all layers and both passes share."""
        arrays = {
            "genes": batch.genes.astype(np.int64),
            "values": batch.values,
            "hidden": batch.hidden,
            "cell": batch.cell_of_token,
            "in_context": batch.in_context.astype(np.float32),
            "targets": batch.targets,
            "truth": batch.truth,
            "log_detected": np.log(np.maximum(batch.n_detected, 1)).astype(np.float32),
            "shows_some": (batch.keys > 0).astype(np.float32),
            "log_total": batch.log_total.astype(np.float32),
        }
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        plans = {
            "plan": plan_attention(torch.from_numpy(batch.offsets), torch.from_numpy(batch.keys)),
            "gene_rows": plan_rows(torch.from_numpy(batch.genes)),
            "cell_rows": plan_rows(torch.from_numpy(arrays["cell"])),
            "target_rows": plan_rows(torch.from_numpy(batch.genes[batch.targets])),
        }
        known = np.isfinite(batch.log_total)
        return cls(
            **tensors,
            **{name: plan.to(device) for name, plan in plans.items()},
            visible_only=batch.context == "visible",
            totals="all" if known.all() else "some" if known.any() else "none",
        )


# Elsewhere rows are gathered by F.embedding and index_select: the backward of plain indexing adds in no fixed order,
# and a resumed run has to be the same to the last bit.


class Linear(nn.Module):
    """The closed forms as a trainable module; `ClosedForms` says what each array is."""

    def __init__(self, forms: ClosedForms) -> None:
        super().__init__()
        self.axes = nn.Parameter(_float32(forms.axes))
        self.ridge = nn.Parameter(_float32(forms.ridge))
        self.total = nn.Parameter(_float32(forms.total))
        self.loadings = nn.Parameter(_float32(forms.loadings))
        self.gene_mean = nn.Buffer(_float32(forms.gene_mean))
        self.origin = nn.Buffer(_float32(forms.origin))
        self.noise = nn.Buffer(_float32(forms.noise))
        self.total_of_x = nn.Buffer(_float32(forms.total_of_x))
        self.scales = nn.Buffer(_float32(forms.scales))

    def cell_state(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """X [C, F] and t [C] as in `ClosedForms.features`, by sums over the context tokens."""
        cells = len(tokens.log_detected)
        known = F.embedding(tokens.genes, self.axes) * tokens.in_context[:, None]  # [T, K]
        components = known.new_zeros(cells, known.shape[1]).index_add(0, tokens.cell, known) - self.origin
        depth = (tokens.log_detected - self.scales[0]) / self.scales[1]
        x = torch.cat([torch.ones_like(depth)[:, None], depth[:, None], components], 1)
        return x, ((tokens.log_total - self.scales[2]) / self.scales[3]).clamp(-TOTAL_RANGE, TOTAL_RANGE)

    def forward(self, tokens: Tokens, x: Tensor, t: Tensor) -> Tensor:
        """Detection + total ridge of each token [T]; the detection ridge where the total of its cell is unknown."""
        genes, cell = tokens.genes, tokens.cell
        if tokens.totals == "none":
            return (F.embedding(genes, self.ridge) * F.embedding(cell, x)).sum(1)
        known = torch.isfinite(t)
        full = torch.cat([x, torch.where(known, t, 0.0)[:, None]], 1)
        with_total = (F.embedding(genes, self.total) * F.embedding(cell, full)).sum(1)
        if tokens.totals == "all":
            return with_total
        return torch.where(known[cell], with_total, (F.embedding(genes, self.ridge) * F.embedding(cell, x)).sum(1))

    def floor(self, x: Tensor | None, t: Tensor) -> Tensor:
        """Value of a single count in each cell [C]: exact where the total is known, else from what x says of it."""
        expected = torch.zeros_like(t) if x is None else x @ self.total_of_x
        log_total = torch.where(torch.isfinite(t), t, expected) * self.scales[3] + self.scales[2]
        return torch.log1p(1e4 * torch.exp(-log_total))

    def factors(self, tokens: Tokens, residual: Tensor) -> Tensor:
        """Posterior means [C, J] of the value factors; residual [T] is zero at hidden tokens."""
        loadings = F.embedding(tokens.genes, self.loadings.detach())  # [T, J]
        weighted = loadings * ((~tokens.hidden) / self.noise[tokens.genes])[:, None]
        count, size = len(tokens.log_detected), loadings.shape[1]
        outer = (weighted[:, :, None] * loadings[:, None, :]).flatten(1)
        precision = outer.new_zeros(count, size * size).index_add(0, tokens.cell, outer).view(count, size, size)
        moment = weighted.new_zeros(count, size).index_add(0, tokens.cell, weighted * residual[:, None])
        identity = torch.eye(size, device=loadings.device)
        return torch.linalg.solve(precision + identity, moment[..., None])[..., 0]


class Block(nn.Module):
    """Pre-norm attention within the cell, then a gated MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, h: Tensor, plan: AttentionPlan, engine: str, keep: Tensor | None = None) -> Tensor:
        """States [T, E] -> [T, E], or [M, E] of the tokens to keep: the last block owes nothing to the others."""
        q, k, v = (
            self.qkv(self.attention_norm(h)).view(len(h), 3, self.heads, h.shape[1] // self.heads).unbind(1)
        )  # [T, H, D] each
        mixed = attention(q, k, v, plan=plan, engine=engine).flatten(1)  # [T, E]
        if keep is not None:
            h, mixed = h.index_select(0, keep), mixed.index_select(0, keep)
        h = h + self.out(mixed)
        gate, up = self.gate_up(self.mlp_norm(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * up)


class Model(nn.Module):
    """Predicts the value of a hidden detected gene from its cell; G genes, width E."""

    def __init__(self, config: ModelConfig, forms: ClosedForms, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.engine = "auto"
        width, genes = config.width, len(forms.axes)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = Linear(forms)
            self.gene = nn.Embedding(genes, width)
            self.curve = nn.Parameter(torch.randn(config.knots, width, generator=generator) * 0.02)
            self.guess_curve = nn.Parameter(torch.randn(config.knots, width, generator=generator) * 0.02)
            self.surprise = nn.Parameter(torch.randn(width, generator=generator) * 0.5)
            self.marker = nn.Parameter(torch.randn(width, generator=generator) * 0.5)
            self.cell = nn.Linear(_CELL_EXTRAS + forms.axes.shape[1] + forms.loadings.shape[1], width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Embedding(genes, width)
            self.shared_head = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.gene.weight.copy_(_gene_vectors(forms, width, generator))

    def forward(self, tokens: Tokens) -> Tensor:
        """Predicted values of the targets, float32 [M], in log1p of counts per 10,000."""
        base, h = self._targets(tokens)
        return masked_head(h, base, self.shared_head, self.head.weight, tokens.target_rows, engine=self.engine)

    def loss(self, tokens: Tokens) -> Tensor:
        """Mean squared error of the predictions; zero, with a gradient, for a batch without targets."""
        base, h = self._targets(tokens)
        weights = self.shared_head, self.head.weight
        return masked_head(h, base, *weights, tokens.target_rows, truth=tokens.truth, engine=self.engine)[1]

    def _targets(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The linear prediction [M] and the final states [M, E] of the targets."""
        base, h = self._states(tokens, tokens.targets)
        if tokens.visible_only:
            # A cell that shows nothing leaves nothing to learn from but the gene: its mean is the prediction.
            h = h * tokens.shows_some[tokens.cell[tokens.targets], None].to(h.dtype)
        return base, h

    def embed(self, tokens: Tokens) -> Tensor:
        """Mean final state of each cell's tokens, float32 [C, E]."""
        _, h = self._states(tokens, None)
        sums = torch.zeros(len(tokens.log_detected), h.shape[1], device=h.device).index_add(0, tokens.cell, h.float())
        return sums / torch.bincount(tokens.cell, minlength=len(sums)).clamp(min=1)[:, None]

    def _states(self, tokens: Tokens, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """The linear prediction [M] and the normalised final states [M, E] of the tokens to keep (None: all T)."""
        with torch.autocast(tokens.values.device.type, enabled=False):
            base, floor, state = self._cells(tokens)
            expected = base.detach()
            # Clamped: a cell deeper than any in training must not be extrapolated.
            known = self.cell(state.clamp(-STATE_RANGE, STATE_RANGE))
            # A count cannot be below one: how far the guess lies above that floor says how it will be wrong.
            guess = expected - floor.detach()[tokens.cell]
            h = embed(
                tokens.gene_rows,
                tokens.cell_rows,
                TokenScalars(tokens.values, tokens.values - expected, guess, tokens.hidden),
                EmbedTables(self.gene.weight, known, self.curve, self.guess_curve, self.surprise, self.marker),
                value_range=VALUE_RANGE,
                expected_range=GUESS_RANGE,
                engine=self.engine,
            )
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            h = block(h, tokens.plan, self.engine, keep if last else None)
        if keep is None:
            return base, self.norm(h)
        return base.index_select(0, keep), self.norm(h if self.blocks else h.index_select(0, keep))

    def _cells(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Linear prediction [T], value of a single count [C], and what is known of each cell [C, S]."""
        x, t = self.linear.cell_state(tokens)
        known = torch.isfinite(t).float()
        total = torch.where(known > 0, t, 0.0)
        if tokens.visible_only:
            # Nothing of the detection set may pass: the linear part is the gene mean, the cell is its visible values.
            mean = F.embedding(tokens.genes, self.linear.gene_mean[:, None])[:, 0]
            extras = torch.stack([torch.zeros_like(t), total, known, torch.ones_like(t), tokens.log_detected / 10], 1)
            rest = x.new_zeros(len(x), self.cell.in_features - extras.shape[1])
            return mean, self.linear.floor(None, t), torch.cat([extras, rest], 1)
        with torch.no_grad():
            expected = self.linear(tokens, x, t)
            factors = self.linear.factors(tokens, torch.where(tokens.hidden, 0.0, tokens.values - expected))
        base = self.linear(tokens, x, t)
        base = base + (F.embedding(tokens.genes, self.linear.loadings) * F.embedding(tokens.cell, factors)).sum(1)
        extras = torch.stack([x[:, 1], total, known, torch.zeros_like(t), torch.zeros_like(t)], 1)
        return base, self.linear.floor(x, t), torch.cat([extras, x[:, 2:], factors], 1)


def without_warm_start(forms: ClosedForms) -> ClosedForms:
    """The same shapes with nothing but the gene means: the starting point of the ablation."""
    ridge, total = np.zeros_like(forms.ridge), np.zeros_like(forms.total)
    ridge[:, 0] = total[:, 0] = forms.gene_mean
    cleared = {"ridge": ridge, "total": total, "loadings": np.zeros_like(forms.loadings)}
    return ClosedForms(**{**forms.arrays(), **cleared})


def _gene_vectors(forms: ClosedForms, width: int, generator: torch.Generator) -> Tensor:
    """Start of the gene embedding [G, E]: a random projection of what the closed forms know of each gene."""
    known = np.column_stack([forms.ridge, forms.total[:, -1], forms.axes, forms.loadings])
    known = (known - known.mean(0)) / (known.std(0) + 1e-9)
    projection = torch.randn(known.shape[1], width, generator=generator) / known.shape[1] ** 0.5
    noise = torch.randn(len(known), width, generator=generator)
    return 0.5 * (_float32(known).clamp(-4, 4) @ projection) + 0.25 * noise


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
