"""The softmax of the CPU attention and its gradient as vector code: lanes are queries, scores lie [keys, lanes]."""

from collections.abc import Sequence

from sckit.kernels.simd import Code, Value, vector_code


@vector_code
def bounded_softmax_step(code: Code, scores: Value, row: Value, keys: Value, vectors: Value, total: Value) -> None:
    """Turn scores [keys, lanes] within +-BOUND into exp2(score), added to total [lanes]: no maximum is needed."""

    def columns(wide: int, offset: Value) -> None:
        lanes = range(wide)

        def exponential(at: Sequence[Value], totals: Sequence[Value]) -> list[Value]:
            new = [code.exp2(code.load(at[0], v), clamp=False) for v in lanes]
            for v in lanes:
                code.store(new[v], at[0], v)
            return [code.builder.fadd(totals[v], new[v]) for v in lanes]

        total_at = code.add(total, offset)
        start = [code.load(total_at, v) for v in lanes]
        for v, sums in enumerate(code.repeat(keys, [(code.add(scores, offset), row)], exponential, start)):
            code.store(sums, total_at, v)

    code.chunks(vectors, columns)


@vector_code
def softmax_step(
    code: Code,
    scores: Value,
    row: Value,
    keys: Value,
    vectors: Value,
    top: Value,
    total: Value,
    sums: Value,
    width: Value,
) -> None:
    """Turn scores [keys, lanes] into exp2(score - top) and bring the running softmax up to date.

    top [lanes] is the largest score so far, total [lanes] the sum of the exponentials, sums [width, lanes] their sum
    weighted with V; total and sums are rescaled where top rises.
    """
    builder = code.builder

    def columns(wide: int, offset: Value) -> None:
        scores_at, top_at, total_at, sums_at = (code.add(at, offset) for at in (scores, top, total, sums))
        lanes = range(wide)

        def larger(at: Sequence[Value], tops: Sequence[Value]) -> list[Value]:
            return [code.max(tops[v], code.load(at[0], v)) for v in lanes]

        def exponential(at: Sequence[Value], totals: Sequence[Value]) -> list[Value]:
            new = [code.exp2(builder.fsub(code.load(at[0], v), tops[v])) for v in lanes]
            for v in lanes:
                code.store(new[v], at[0], v)
            return [builder.fadd(totals[v], new[v]) for v in lanes]

        def rescale(at: Sequence[Value], _: Sequence[Value]) -> None:
            for v in lanes:
                code.store(builder.fmul(code.load(at[0], v), decay[v]), at[0], v)

        before = [code.load(top_at, v) for v in lanes]
        tops = code.repeat(keys, [(scores_at, row)], larger, before)
        decay = [code.exp2(builder.fsub(before[v], tops[v])) for v in lanes]
        start = [builder.fmul(code.load(total_at, v), decay[v]) for v in lanes]
        totals = code.repeat(keys, [(scores_at, row)], exponential, start)
        code.repeat(width, [(sums_at, row)], rescale)
        for v in lanes:
            code.store(tops[v], top_at, v)
            code.store(totals[v], total_at, v)

    code.chunks(vectors, columns)


@vector_code
def add_own_key(
    code: Code, sums: Value, values: Value, row: Value, width: Value, vectors: Value, past: Value, own: Value
) -> None:
    """Set sums [width, lanes] = past [lanes] * sums + own [lanes] * values [width, lanes]."""

    def columns(wide: int, offset: Value) -> None:
        lanes = range(wide)
        factors = [[code.load(code.add(at, offset), v) for v in lanes] for at in (past, own)]

        def step(at: Sequence[Value], _: Sequence[Value]) -> None:
            for v in lanes:
                kept = code.builder.fmul(factors[0][v], code.load(at[0], v))
                code.store(code.fma(factors[1][v], code.load(at[1], v), kept), at[0], v)

        code.repeat(width, [(code.add(sums, offset), row), (code.add(values, offset), row)], step)

    code.chunks(vectors, columns)


def _score_gradients(
    code: Code,
    scores: Value,
    slopes: Value,
    row: Value,
    keys: Value,
    vectors: Value,
    lse: Value,
    delta: Value,
    *,
    clamp: bool,
) -> None:
    """Turn scores into weights p = exp2(score - lse), and slopes dp into p * (dp - delta)."""
    builder = code.builder

    def columns(wide: int, offset: Value) -> None:
        lanes = range(wide)
        shift, deltas = ([code.load(code.add(at, offset), v) for v in lanes] for at in (lse, delta))

        def step(at: Sequence[Value], _: Sequence[Value]) -> None:
            for v in lanes:
                weight = code.exp2(builder.fsub(code.load(at[0], v), shift[v]), clamp=clamp)
                code.store(weight, at[0], v)
                code.store(builder.fmul(weight, builder.fsub(code.load(at[1], v), deltas[v])), at[1], v)

        code.repeat(keys, [(code.add(scores, offset), row), (code.add(slopes, offset), row)], step)

    code.chunks(vectors, columns)


@vector_code
def score_gradients(
    code: Code, scores: Value, slopes: Value, row: Value, keys: Value, vectors: Value, lse: Value, delta: Value
) -> None:
    """Do what `_score_gradients` does, for any scores."""
    _score_gradients(code, scores, slopes, row, keys, vectors, lse, delta, clamp=True)


@vector_code
def bounded_score_gradients(
    code: Code, scores: Value, slopes: Value, row: Value, keys: Value, vectors: Value, lse: Value, delta: Value
) -> None:
    """Do the same faster, to the same bits, where no score lies more than 126 below its log-sum-exp."""
    _score_gradients(code, scores, slopes, row, keys, vectors, lse, delta, clamp=False)
