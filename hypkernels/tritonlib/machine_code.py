"""Compiled kernels, read back: registers, stack, shared memory, and the instructions of the target."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import triton

from hypkernels.tritonlib.device_limits import Target

_SASS_BYTES = 16  # of one instruction, since sm_70


class Binary(NamedTuple):
    """One compiled kernel. ``code`` is machine code, or the assembly's text where the compiler keeps it."""

    registers: int
    stack: int
    shared: int
    code: bytes


def read_binary(compiled: Any) -> Binary:
    """The binary of a result of ``triton.compile``."""
    shared = compiled.metadata.shared
    if assembly := compiled.asm.get("amdgcn"):
        registers = _number(r"\.vgpr_count:\s+", assembly)
        stack = _number(r"\.private_segment_fixed_size:\s+", assembly)
        return Binary(registers, stack, shared, assembly.encode())
    cubin = compiled.asm["cubin"]
    usage = _run("cuobjdump", ["--dump-resource-usage"], cubin)
    return Binary(_number(r"\bREG:", usage), _number(r"\bSTACK:", usage), shared, _text_section(cubin))


def opcodes(binaries: Sequence[Binary], target: Target) -> list[Counter[str]]:
    """How often each kernel has each opcode, no-operations left out.

    All at once, because starting the disassembler takes longer than a kernel.
    """
    if target.instruction_set is None:
        return [_without_nops(target.opcode.findall(binary.code.decode())) for binary in binaries]
    machine_code = b"".join(binary.code for binary in binaries)
    listing = _run("nvdisasm", ["--no-dataflow", "--binary", target.instruction_set], machine_code)
    found = target.opcode.findall(listing)
    if len(found) * _SASS_BYTES != len(machine_code):
        raise RuntimeError(
            f"nvdisasm listed {len(found)} instructions of {len(machine_code)} bytes for "
            f"{target.instruction_set}, not one for each {_SASS_BYTES} bytes"
        )
    ends = [0]
    for binary in binaries:
        ends.append(ends[-1] + len(binary.code) // _SASS_BYTES)
    return [_without_nops(found[start:end]) for start, end in pairwise(ends)]


def count(histogram: Mapping[str, int], pattern: re.Pattern[str]) -> int:
    return sum(number for opcode, number in histogram.items() if pattern.match(opcode))


def _without_nops(found: Sequence[str]) -> Counter[str]:
    return Counter(opcode for opcode in found if opcode not in ("NOP", "s_nop"))


def _number(label: str, text: str) -> int:
    found = re.search(rf"{label}(\d+)", text)
    if found is None:
        raise RuntimeError(f"a compiler or tool reports no {label!r}:\n{text[-2000:]}")
    return int(found[1])


def _run(tool: str, options: Sequence[str], image: bytes) -> str:
    """A tool of the CUDA toolkit, from Triton's wheel."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout


def _text_section(elf: bytes) -> bytes:
    """The machine code of an ELF file with one kernel."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, entries, names_index = struct.unpack_from("<3H", elf, 0x3A)
    # name, type, flags, address, offset, size
    sections = [struct.unpack_from("<2I4Q", elf, table + i * entry_size) for i in range(entries)]
    names = sections[names_index][4]
    (code,) = (
        elf[offset : offset + size]
        for name, _, _, _, offset, size in sections
        if elf.startswith(b".text.", names + name)
    )
    return code
