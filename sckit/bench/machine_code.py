"""Compile a Triton kernel for a GPU that is not here and read its machine code: SASS of NVIDIA, GCN of AMD."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from sckit.bench.shipped import Shipped

# One multiprocessor: 32-bit registers, KiB of shared memory (1 KiB of it kept for each block), warps, blocks.
SHARED_KIB = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
REGISTERS, WARPS, BLOCKS, TENSOR_COLUMNS = 65536, 64, 32, 512
# One compute unit of gfx942: four SIMDs of 512 vector registers a lane, 8 waves each, 64 KiB of shared memory.
SIMDS, VECTOR_REGISTERS, WAVES, LDS_KIB = 4, 512, 8, 64

MATRIX = {"HMMA": "HMMA", "HGMMA": "HGMMA", "UTCHMMA": "UTCHMMA", "v_mfma": "MFMA", "v_smfmac": "MFMA"}
EXPONENTIAL = ("MUFU.EX2", "v_exp_f32")
ASYNCHRONOUS = ("LDGSTS", "UTMALDG", "UBLKCP")


def measure(shipped: Shipped) -> dict[str, Any]:
    """Compile one kernel for its target, no GPU needed, and return the figures of its machine code.

    registers a thread; stack and scratch bytes a thread; spills, the instructions (NVIDIA) or registers (AMD) that
    spilling takes; shared_bytes a block; resident_warps a multiprocessor; matrix, the kinds of matrix instructions of
    the main loop; async_copies and loop_instructions in it; instructions and exps a score, per thread; None where a
    kernel has no scores.
    """
    made = compile_kernel(shipped)
    threads = made.metadata.num_warps * made.metadata.target.warp_size
    figures, code = _read_amd(made) if shipped.target.startswith("gfx") else _read_nvidia(made, shipped.target)
    loop = main_loop(code)
    count = Counter(_kind(instruction) for instruction in loop)
    per_score = threads / shipped.scores if shipped.scores else None
    return figures | {
        "matrix": sorted({MATRIX[kind] for kind in count if kind in MATRIX}),
        "async_copies": count["async"],
        "loop_instructions": len(loop),
        "instructions_per_score": per_score and round(len(loop) * per_score, 2),
        "exps_per_score": per_score and round(count["exp"] * per_score, 3),
    }


def compile_kernel(shipped: Shipped) -> Any:
    """Return Triton's compiled kernel for the target; from the compiler's cache where it was made before."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = shipped.signature
    signature = {name: types.get(name, "constexpr") for name in shipped.kernel.arg_names}
    # Tensors of torch start at a multiple of 16 bytes, and so do the slices of a projection.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = triton.compiler.ASTSource(shipped.kernel, signature, shipped.constants, aligned)
    if shipped.target.startswith("gfx"):
        target = GPUTarget("hip", shipped.target, 64)
    else:
        target = GPUTarget("cuda", int(shipped.target[3:]), 32)
    return triton.compile(source, target=target, options=shipped.options)


def main_loop(code: list[str]) -> list[str]:
    """Return the instructions of the loop that holds the most matrix instructions, or the longest where none do.

    `code` has one label (ending in ":") or instruction a line. A loop is a set of instructions that can all reach each
    other, since compilers move parts of loops about and jump backwards outside them; nested loops are one.
    Empty where nothing is ever run twice.
    """
    places, instructions = {}, []
    for line in code:
        if line.endswith(":"):
            places[line[:-1]] = len(instructions)
        else:
            instructions.append(line)
    edges = [edge for i, line in enumerate(instructions) for edge in _next(i, line, places, len(instructions))]
    rows, columns = np.array(edges).T
    graph = csr_matrix((np.ones(len(edges), bool), (rows, columns)), shape=(len(instructions),) * 2)
    loop_of = connected_components(graph, connection="strong")[1]  # one number an instruction
    loops: dict[int, list[str]] = {}
    for loop, line in zip(loop_of.tolist(), instructions, strict=True):
        loops.setdefault(loop, []).append(line)
    best = max(loops.values(), key=lambda body: (sum(_kind(line) in MATRIX for line in body), len(body)))
    return best if len(best) > 1 else []


def _next(i: int, line: str, places: dict[str, int], end: int) -> list[tuple[int, int]]:
    """Return (i, j) for every instruction j that may run after instruction i."""
    branch = re.search(r"\bBRA\b.*?`\((\.\w+)\)|s_c?branch\S* (\.\w+)", line)
    after = [places[branch[1] or branch[2]]] if branch else []
    if not re.match(r"BRA `|s_branch |EXIT|s_endpgm|s_setpc", line):
        after.append(i + 1)
    return [(i, j) for j in after if j < end]


def _kind(instruction: str) -> str:
    """Return the matrix instruction's name, "exp", "async", "local" for spills, or nothing of interest."""
    opcode = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]
    if opcode.startswith(EXPONENTIAL):
        return "exp"
    if opcode.startswith(ASYNCHRONOUS):
        return "async"
    if opcode.startswith(("LDL", "STL")):
        return "local"
    return next((name for name in MATRIX if opcode.split(".")[0] == name or opcode.startswith(name + "_")), "")


def _read_nvidia(made: Any, target: str) -> tuple[dict[str, Any], list[str]]:
    """Return what cuobjdump says of a cubin, and its disassembled lines."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        sass = _output(tools / "nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        message = f"cuobjdump shows no resource usage of {made.metadata.name} for {target}: {usage[:200]}"
        raise RuntimeError(message)
    registers, stack, shared, local = map(int, found.groups())
    shared = max(shared, made.metadata.shared)
    code = re.findall(r"^(?=\.L_x?_?\d+:)(\S+)$|^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", sass, re.MULTILINE)
    lines = [label or instruction for label, instruction in code]
    warps = made.metadata.num_warps
    blocks = min(
        REGISTERS // (-(-registers // 8) * 8 * 32 * warps),
        SHARED_KIB[target] * 1024 // (shared + 1024),
        TENSOR_COLUMNS // max(getattr(made.metadata, "tmem_size", None) or 0, 1),
        WARPS // warps,
        BLOCKS,
    )
    figures = {"registers": registers, "stack": stack, "scratch": local, "shared_bytes": shared}
    return figures | {"spills": sum(_kind(line) == "local" for line in lines), "resident_warps": blocks * warps}, lines


def _read_amd(made: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what the kernel's metadata says, and the lines of its assembly."""
    text = made.asm["amdgcn"]
    fields = dict(re.findall(r"\.(\w+):\s+(\d+)$", text, re.MULTILINE))
    registers = int(fields["vgpr_count"])  # both files together: matrix sums may lie in the accumulation registers
    warps = made.metadata.num_warps
    shared = made.metadata.shared
    # A block's waves spread over the SIMDs, so blocks fit while every SIMD has registers for its share of them.
    waves = min(VECTOR_REGISTERS // (-(-registers // 8) * 8), WAVES)
    blocks = min(waves * SIMDS // warps, LDS_KIB * 1024 // max(shared, 1))
    code = re.findall(r"^(\.\w+:)|^\t([a-z]_?\w+.*)$", text, re.MULTILINE)
    lines = [label or instruction.split(";")[0].strip() for label, instruction in code]
    figures = {"registers": registers, "stack": 0, "scratch": int(fields["private_segment_fixed_size"])}
    spills = int(fields["vgpr_spill_count"])
    return figures | {"shared_bytes": shared, "spills": spills, "resident_warps": blocks * warps}, lines


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
