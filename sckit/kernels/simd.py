"""Explicit vector code for Numba: LLVM IR emitted from Python, so that no compiler is needed on the user's machine.

Plain Numba loops keep no accumulators in registers and have no vector exponential; these functions do. All of them
take byte addresses and byte strides of float32 memory, and `vectors` counts vectors of the host's width. The first
argument, from `vector_type`, carries that width in its type, and compiled code is specialised on it.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
Value = Any  # an LLVM value: llvmlite's builder declares no types that a checker could follow
Float = Annotated[Any, "float32"]  # a scalar of vector code; Integer likewise
Integer = Annotated[Any, "int64"]

# Rows of a product tile by its width in vectors: accumulators, one row of B and a broadcast must fit the registers.
TILE_ROWS = {
    16: {3: 8, 2: 12, 1: 16},  # AVX-512: 32 registers
    8: {3: 4, 2: 6, 1: 8},  # AVX2: 16 registers
    4: {3: 8, 2: 12, 1: 16},  # NEON: 32 registers
}

# 2**f on [-0.5, 0.5] by degree: least squares at Chebyshev nodes with 2**0 = 1 exactly; relative error 1.6e-7
EXP2 = (1.0, 0.6931468844413757, 0.24022237956523895, 0.05550893023610115, 0.009671698324382305, 0.0013218672247603536)
ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds a float to an integer that then stands in its low bits


def host_width() -> int:
    """Return the float32 lanes of this machine's vector registers: 16 (AVX-512), 8 (AVX2) or 4."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 4


@cache
def vector_type(width: int) -> np.ndarray:
    """Return an empty array whose type tells compiled code the vector width.

    The field's name is a digest of the files of vector code. Numba's cache on disk looks at the types and at the file
    of the jitted function only, and would otherwise keep machine code from before an edit there.
    """
    if width not in TILE_ROWS:
        message = f"vector width must be one of {sorted(TILE_ROWS)}, got {width}."
        raise ValueError(message)
    files = sorted(Path(__file__).parent.glob("simd*.py"))
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return np.empty(0, np.dtype([(f"simd_{digest}", np.float32, (width,))]))


class Code:
    """An LLVM builder for vectors of one width."""

    def __init__(self, builder: ir.IRBuilder, width: int) -> None:
        self.builder = builder
        self.width = width
        self.vector = ir.VectorType(F32, width)
        self.integers = ir.VectorType(I32, width)

    def const(self, value: float) -> Value:
        """Return a vector of one number."""
        return ir.Constant(self.vector, [value] * self.width)

    def add(self, address: Value, step: Value | int) -> Value:
        """Return an address some bytes further on."""
        return self.builder.add(address, I64(step) if isinstance(step, int) else step)

    def load(self, address: Value, vector: int = 0) -> Value:
        """Load the vector at the address, or one that many vectors further on."""
        pointer = self.builder.inttoptr(self.add(address, 4 * self.width * vector), self.vector.as_pointer())
        return self.builder.load(pointer, align=4)

    def store(self, value: Value, address: Value, vector: int = 0) -> None:
        """Store the vector at the address, or that many vectors further on."""
        pointer = self.builder.inttoptr(self.add(address, 4 * self.width * vector), value.type.as_pointer())
        self.builder.store(value, pointer, align=4)

    def splat(self, scalar: Value) -> Value:
        """Return a vector whose lanes all hold the scalar."""
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, I32(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(self.integers, [0] * self.width))

    def load_splat(self, address: Value) -> Value:
        """Return a vector whose lanes all hold the float at the address."""
        return self.splat(self.builder.load(self.builder.inttoptr(address, F32.as_pointer()), align=4))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a * b + c, rounded once."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.v{self.width}f32"), [a, b, c]
        )

    def max(self, a: Value, b: Value) -> Value:
        """Return the larger; b where either is not a number, so a constant in a lets NaN through."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def exp2(self, x: Value, *, clamp: bool = True) -> Value:
        """Return 2**x for x up to 126, and 2**-126 below -126; without the clamp x must not lie there."""
        given, x = x, self.max(self.const(-126.0), x) if clamp else x
        rounded = self.builder.fadd(x, self.const(ROUND))
        fraction = self.builder.fsub(x, self.builder.fsub(rounded, self.const(ROUND)))
        power = self.const(EXP2[-1])
        for coefficient in EXP2[-2::-1]:
            power = self.fma(power, fraction, self.const(coefficient))
        shift = ir.Constant(self.integers, [23] * self.width)
        exponent = self.builder.shl(self.builder.bitcast(rounded, self.integers), shift)
        result = self.builder.bitcast(
            self.builder.add(self.builder.bitcast(power, self.integers), exponent), self.vector
        )
        # the exponent of a NaN may carry it back among the numbers
        return self.builder.select(self.builder.fcmp_unordered("uno", given, given), given, result) if clamp else result

    def repeat(
        self,
        count: Value,
        steps: Sequence[tuple[Value, Value | int]],
        body: Callable[..., Sequence[Value] | None],
        state: Sequence[Value] = (),
    ) -> list[Value]:
        """Emit `for _ in range(count): state = body(addresses, state)`; addresses advance by (start, step)."""
        builder = self.builder
        before = builder.basic_block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", count, I64(0)), loop, done)
        builder.position_at_end(loop)
        left, *moving = [builder.phi(I64) for _ in range(len(steps) + 1)]
        carried = [builder.phi(value.type) for value in state]
        new = body(moving, carried) or ()
        end = builder.basic_block
        for phi, (start, step) in zip([left, *moving], [(count, -1), *steps], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(self.add(phi, step), end)
        for phi, start, value in zip(carried, state, new, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed(">", left, I64(1)), loop, done)
        builder.position_at_end(done)
        after = [builder.phi(value.type) for value in state]
        for phi, start, value in zip(after, state, new, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, end)
        return after

    def chunks(self, vectors: Value, body: Callable[[int, Value], None]) -> None:
        """Emit body(n, byte offset) for pieces of n = 3 vectors, ending in pieces of 2 rather than a lone one."""
        builder = self.builder
        alone = builder.zext(builder.icmp_signed("==", vectors, I64(1)), I64)
        pairs = builder.srem(builder.sub(I64(3), builder.srem(vectors, I64(3))), I64(3))
        pairs = builder.select(builder.icmp_signed("==", vectors, I64(1)), I64(0), pairs)
        paired = builder.add(builder.shl(pairs, I64(1)), alone)
        threes = builder.sdiv(builder.sub(vectors, paired), I64(3))
        offset: Value = I64(0)
        for wide, count in ((3, threes), (2, pairs), (1, alone)):
            step = 4 * self.width * wide
            self.repeat(count, [(offset, step)], lambda at, _, wide=wide: body(wide, at[0]))
            offset = builder.add(offset, builder.mul(count, I64(step)))


def vector_code(emit: Callable[..., Any]) -> Any:
    """Turn emit(code, *arguments) into a function that jitted code calls as name(vector_type(width), *arguments).

    Arguments are addresses, strides and counts (int64), or float32 where annotated as Float; so is a result that is
    annotated. The code is emitted once a module, as a function of its own.
    """
    signature = inspect.signature(emit)
    parameters = list(signature.parameters.values())[1:]
    arguments = [types.float32 if p.annotation == Float else types.int64 for p in parameters]
    returned = signature.return_annotation
    result = types.float32 if returned == Float else types.int64 if returned == Integer else types.void

    def definition(_context: Any, host: Any, *_: Any) -> tuple[Any, Callable[..., Any]]:
        width = next(iter(host.dtype.fields.values())).type.shape[0]

        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Value]) -> Value:
            name = f"sckit_{emit.__name__}_{width}"
            returns = ir.VoidType() if result is types.void else context.get_value_type(result)
            kind = ir.FunctionType(returns, [context.get_value_type(argument) for argument in arguments])
            function = builder.module.globals.get(name)
            if function is None:
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                inner = ir.IRBuilder(function.append_basic_block("entry"))
                value = emit(Code(inner, width), *function.args)
                inner.ret_void() if value is None else inner.ret(value)
            value = builder.call(function, values[1:])
            return context.get_dummy_value() if result is types.void else value

        return result(host, *arguments), generate

    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("context", "host")]
    definition.__signature__ = inspect.Signature([*first, *parameters])  # type: ignore[attr-defined]
    definition.__name__ = definition.__qualname__ = emit.__name__
    definition.__doc__ = emit.__doc__
    return intrinsic(definition)


@vector_code
def product(
    code: Code,
    a: Value,
    a_row: Value,
    a_column: Value,
    b: Value,
    b_row: Value,
    c: Value,
    c_row: Value,
    rows: Value,
    vectors: Value,
    depth: Value,
    accumulate: Value,
) -> None:
    """C[rows, lanes] = A[rows, depth] B[depth, lanes], or C += where accumulate is 1; lanes are vectors of the width.

    A is read by broadcast, so it may lie transposed; every sum runs over depth in order, whatever the tile.
    """
    adding = code.builder.icmp_signed("!=", accumulate, I64(0))

    def tile(tall: int, wide: int, a_tile: Value, b_tile: Value, c_tile: Value) -> None:
        skips, c_rows = [I64(0)], [c_tile]
        for _ in range(tall - 1):
            skips.append(code.add(skips[-1], a_row))
            c_rows.append(code.add(c_rows[-1], c_row))
        places = [(row, v) for row in range(tall) for v in range(wide)]

        def step(at: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
            lanes = [code.load(at[1], v) for v in range(wide)]
            scalars = [code.load_splat(code.add(at[0], skip)) for skip in skips]
            return [code.fma(scalars[row], lanes[v], total) for (row, v), total in zip(places, sums, strict=True)]

        start = [code.builder.select(adding, code.load(c_rows[row], v), code.const(0.0)) for row, v in places]
        sums = code.repeat(depth, [(a_tile, a_column), (b_tile, b_row)], step, start)
        for (row, v), total in zip(places, sums, strict=True):
            code.store(total, c_rows[row], v)

    def columns(wide: int, offset: Value) -> None:
        left, a_at, b_at, c_at = rows, a, code.add(b, offset), code.add(c, offset)
        for tall in sorted({TILE_ROWS[code.width][wide], 4, 2, 1}, reverse=True):
            count = code.builder.sdiv(left, I64(tall))
            steps = [(a_at, code.builder.mul(a_row, I64(tall))), (c_at, code.builder.mul(c_row, I64(tall)))]
            code.repeat(count, steps, lambda at, _, tall=tall: tile(tall, wide, at[0], b_at, at[1]))
            a_at, c_at = (code.add(start, code.builder.mul(count, step)) for start, step in steps)
            left = code.builder.srem(left, I64(tall))

    code.chunks(vectors, columns)


@vector_code
def transpose(
    code: Code,
    source: Value,
    source_row: Value,
    target: Value,
    target_row: Value,
    rows: Value,
    columns: Value,
) -> None:
    """target[j, i] = source[i, j] for rows and columns that are multiples of 8, eight by eight in registers."""
    code = Code(code.builder, 8)
    eight = I64(8)

    def block(at: Sequence[Value], _: Sequence[Value]) -> None:
        read, write = at
        lines = [code.load(read)]
        while len(lines) < 8:
            lines.append(code.load(read := code.add(read, source_row)))
        for far in (4, 2, 1):
            low = ir.Constant(code.integers, [8 + i - far if i & far else i for i in range(8)])
            high = ir.Constant(code.integers, [8 + i if i & far else i + far for i in range(8)])
            for i in [line for line in range(8) if not line & far]:
                pair = lines[i], lines[i + far]
                lines[i] = code.builder.shuffle_vector(*pair, low)
                lines[i + far] = code.builder.shuffle_vector(*pair, high)
        for line in lines:
            code.store(line, write)
            write = code.add(write, target_row)

    def strip(at: Sequence[Value], _: Sequence[Value]) -> None:
        steps = [(at[0], 32), (at[1], code.builder.mul(target_row, eight))]
        code.repeat(code.builder.sdiv(columns, eight), steps, block)

    code.repeat(code.builder.sdiv(rows, eight), [(source, code.builder.mul(source_row, eight)), (target, 32)], strip)


@vector_code
def scale_rows(
    code: Code,
    source: Value,
    source_row: Value,
    target: Value,
    target_row: Value,
    rows: Value,
    columns: Value,
    factor: Float,
) -> None:
    """target[i, j] = factor * source[i, j] for columns that are a multiple of 8."""
    code = Code(code.builder, 8)
    factors = code.splat(factor)

    def row(at: Sequence[Value], _: Sequence[Value]) -> None:
        def move(at: Sequence[Value], _: Sequence[Value]) -> None:
            code.store(code.builder.fmul(code.load(at[0]), factors), at[1])

        code.repeat(code.builder.sdiv(columns, I64(8)), [(at[0], 32), (at[1], 32)], move)

    code.repeat(rows, [(source, source_row), (target, target_row)], row)


@vector_code
def dot(code: Code, a: Value, b: Value, columns: Value) -> Float:
    """Return the sum over j of a[j] * b[j] for columns that are a multiple of 8."""
    code = Code(code.builder, 8)

    def step(at: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        return [code.fma(code.load(at[0]), code.load(at[1]), sums[0])]

    (sums,) = code.repeat(code.builder.sdiv(columns, I64(8)), [(a, 32), (b, 32)], step, [code.const(0.0)])
    lanes = [code.builder.extract_element(sums, I32(i)) for i in range(8)]
    while len(lanes) > 1:
        lanes = [code.builder.fadd(one, two) for one, two in zip(lanes[::2], lanes[1::2], strict=True)]
    return lanes[0]


@vector_code
def take_ticket(code: Code, counter: Value) -> Integer:
    """Return the int64 at the address and add 1 to it, as one step that threads cannot split."""
    pointer = code.builder.inttoptr(counter, I64.as_pointer())
    return code.builder.atomic_rmw("add", pointer, I64(1), "monotonic")


@vector_code
def fill(code: Code, target: Value, count: Value, value: Float) -> None:
    """Set `count` floats, a multiple of 8, to the value."""
    code = Code(code.builder, 8)
    values = code.splat(value)
    code.repeat(code.builder.sdiv(count, I64(8)), [(target, 32)], lambda at, _: code.store(values, at[0]))


@intrinsic
def _address(_context: Any, array: types.Array) -> tuple[Any, Callable[..., Any]]:
    """Return the address of an array's first element."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Value]) -> Value:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, I64)

    return types.int64(array), generate


address: Any = _address
