"""What one block of threads may use on each target, and what compiled code for it looks like."""

from __future__ import annotations

import re
from typing import NamedTuple


class Target(NamedTuple):
    """
    Attributes:
        backend, architecture, warp_size: as Triton's compiler names the target.
        shared_memory: bytes one block can have, on every GPU that gets the target's tiles.
        instruction_set: as the disassembler names it; None where the compiler leaves readable assembly.
        opcode: one match for each line of machine code.
        wide_load: opcodes that bring 128 bits a thread, or a whole tile, from global memory.
        spill: opcodes that save or restore registers in memory.
        matrix: opcodes of the matrix units meant for this target.
        shuffle: opcodes by which threads of a warp exchange registers.
    """

    backend: str
    architecture: int | str
    warp_size: int
    shared_memory: int
    instruction_set: str | None
    opcode: re.Pattern[str]
    wide_load: re.Pattern[str]
    spill: re.Pattern[str]
    matrix: re.Pattern[str]
    shuffle: re.Pattern[str]


_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_SASS_WIDE_LOAD = re.compile(r"(LDG|LDGSTS)\..*\b128\b|UTMALDG|UBLKCP")
_SASS_SPILL = re.compile(r"LDL|STL")


def _nvidia(capability: int, shared_memory: int, instruction_set: str, matrix: str) -> Target:
    return Target(
        "cuda",
        capability,
        32,
        shared_memory,
        instruction_set,
        _SASS,
        _SASS_WIDE_LOAD,
        _SASS_SPILL,
        re.compile(matrix),
        re.compile("SHFL"),
    )


TARGETS = {
    "sm_80": _nvidia(80, 99 << 10, "SM80", "HMMA"),  # A100 has 163 KiB, but capability 8.6 and 8.9 only these
    "sm_90": _nvidia(90, 227 << 10, "SM90a", "HGMMA"),
    "sm_100": _nvidia(100, 227 << 10, "SM100a", "UTC[HQ]?MMA"),
    "sm_120": _nvidia(120, 99 << 10, "SM120a", "HMMA"),
    "gfx942": Target(
        "hip",
        "gfx942",
        64,
        64 << 10,
        None,
        re.compile(r"^\t((?:s|v|ds|global|buffer|flat|scratch)_\w+)", re.MULTILINE),
        re.compile("(global|buffer|flat)_load_(lds_)?dwordx4"),
        re.compile("scratch_"),
        re.compile("v_mfma"),
        re.compile(r"ds_b?permute|ds_swizzle|v_(readlane|permlane)|\w+_dpp"),
    ),
}
