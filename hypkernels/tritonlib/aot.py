"""Compile every kernel for every target without a GPU, and check and record what it needs.

    python -m hypkernels.tritonlib.aot --report     # a Markdown table
    python -m hypkernels.tritonlib.aot --update     # rewrite the recorded table of the installed Triton
    python -m hypkernels.tritonlib.aot --update --only cone    # or its lines of some kernels

Checked: nothing spilled and no stack, shared memory within the target's limit, 128-bit loads of contiguous
inputs, matrix instructions where a kernel is meant to have them. Recorded, for each Triton version in a file
of its own: a change of any number is a change to review.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hypkernels.tritonlib import manifest
from hypkernels.tritonlib.device_limits import TARGETS
from hypkernels.tritonlib.machine_code import Binary, count, opcodes, read_binary
from hypkernels.tritonlib.manifest import Variant

_LOAD_BYTES = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Resources:
    """What one variant needs on one target.

    ``instructions``, ``spills``, ``wide_loads``, ``matrix`` and ``shuffles`` are of the machine code as it
    stands, a loop's body counted once; ``per_unit`` is instructions of all threads of a program for each of
    its units.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    per_unit: float
    spills: int
    wide_loads: int
    matrix: int
    shuffles: int


@dataclass(frozen=True)
class Compiled:
    variant: Variant
    target: str
    result: Resources | str  # or why it does not compile

    @property
    def key(self) -> str:
        return f"{self.variant.name} {self.target}"


def compile_variant(variant: Variant, target: str) -> Binary | str:
    """The compiled kernel, or why there is none."""
    device = TARGETS[target]
    source = ASTSource(
        variant.kernel,
        {name: variant.signature[name] for name in variant.kernel.arg_names},
        {_path(variant, name): value for name, value in variant.constexprs.items()},
        {_path(variant, name): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget(device.backend, device.architecture, device.warp_size),
            options=options,
        )
    except Exception as error:  # whatever a compiler of three languages raises is this variant's result
        return "does not compile: " + "\n".join(f"{type(e).__name__}: {e}" for e in _with_causes(error))
    return read_binary(compiled)


def _path(variant: Variant, name: str) -> tuple[int, ...]:
    """The numbers of an argument and, for ``argument.field``, of the field."""
    argument, _, field = name.partition(".")
    index = variant.kernel.arg_names.index(argument)
    return (index, variant.signature[argument]._fields.index(field)) if field else (index,)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, from the kernel down to the device function that failed."""
    while error is not None:
        yield error
        error = error.__cause__


def compile_all(
    variants: Iterable[Variant], *, workers: int = 1, progress: Progress | None = None
) -> list[Compiled]:
    """Compile each variant for each of its targets.

    Args:
        workers: processes. More than one can compile only variants of the manifest, which they find by name.
        progress: called with the numbers of kernels compiled and to compile.
    """
    jobs = [(variant, target) for variant in variants for target in variant.targets]
    report = progress or (lambda done, total: None)
    binaries: dict[int, Binary | str] = {}
    if workers == 1:
        for index, job in enumerate(jobs):
            binaries[index] = compile_variant(*job)
            report(len(binaries), len(jobs))
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            futures = {
                pool.submit(_compile_by_name, variant.name, target): index
                for index, (variant, target) in enumerate(jobs)
            }
            for future in as_completed(futures):
                binaries[futures[future]] = future.result()
                report(len(binaries), len(jobs))
    resources = _resources(jobs, {i: binary for i, binary in binaries.items() if isinstance(binary, Binary)})
    return [Compiled(*job, resources.get(i) or str(binaries[i])) for i, job in enumerate(jobs)]


@cache
def _variants() -> dict[str, Variant]:
    return manifest.variants()


def _compile_by_name(name: str, target: str) -> Binary | str:
    return compile_variant(_variants()[name], target)


def _resources(jobs: Sequence[tuple[Variant, str]], binaries: Mapping[int, Binary]) -> dict[int, Resources]:
    found = {}
    for target, device in TARGETS.items():
        mine = [index for index in binaries if jobs[index][1] == target]
        histograms = opcodes([binaries[index] for index in mine], device) if mine else []
        for index, histogram in zip(mine, histograms, strict=True):
            variant, binary = jobs[index][0], binaries[index]
            instructions = histogram.total()
            found[index] = Resources(
                registers=binary.registers,
                stack=binary.stack,
                shared=binary.shared,
                instructions=instructions,
                per_unit=round(instructions * _threads(variant, target) / variant.units, 2),
                spills=count(histogram, device.spill),
                wide_loads=count(histogram, device.wide_load),
                matrix=count(histogram, device.matrix),
                shuffles=count(histogram, device.shuffle),
            )
    return found


def _threads(variant: Variant, target: str) -> int:
    return variant.num_warps * TARGETS[target].warp_size


def problems(compiled: Compiled) -> Iterator[str]:
    """What is wrong with a compiled variant, whatever the Triton version."""
    variant, target, result = compiled.variant, compiled.target, compiled.result
    if isinstance(result, str):
        yield f"{compiled.key}: {result}"
        return
    if result.spills or result.stack:
        yield (
            f"{compiled.key}: {result.spills} instructions save or restore registers in memory, "
            f"{result.stack} bytes of stack; {result.registers} registers"
        )
    limit = TARGETS[target].shared_memory
    if result.shared > limit:
        yield f"{compiled.key}: {result.shared} bytes of shared memory, the limit is {limit}"
    wanted = _wanted_wide_loads(variant, target)
    if result.wide_loads < wanted:
        yield f"{compiled.key}: {result.wide_loads} 128-bit loads, the inputs' tiles need {wanted}"
    if variant.expect_mma and not result.matrix:
        yield f"{compiled.key}: no matrix instruction {TARGETS[target].matrix.pattern}"


def _wanted_wide_loads(variant: Variant, target: str) -> int:
    if variant.input_tiles is None:
        return 1
    return sum(tile // (_LOAD_BYTES * _threads(variant, target)) for tile in variant.input_tiles)


def table_path(version: str = triton.__version__) -> Path:
    return Path(__file__).with_name(f"aot_table_{version}.json")


def load_table(path: Path) -> dict[str, dict[str, float]] | None:
    """The recorded resources by variant and target, or None for a Triton version without a record."""
    return json.loads(path.read_text()) if path.exists() else None


def save_table(path: Path, compiled: Iterable[Compiled], only: str = "") -> None:
    """One line for each variant and target, so that a difference in a review is one line.

    What is recorded of kernels whose names do not contain ``only`` stays.
    """
    recorded = load_table(path) or {}
    rows: dict[str, Any] = {key: row for key, row in recorded.items() if only not in key.rpartition(" ")[0]}
    rows |= {c.key: asdict(c.result) for c in compiled if isinstance(c.result, Resources)}
    lines = [f"  {json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def drift(compiled: Iterable[Compiled], recorded: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Every difference from the record, as ``kernel target: registers 40 -> 48``."""
    now = {c.key: asdict(c.result) for c in compiled if isinstance(c.result, Resources)}
    for key in sorted(now.keys() | recorded.keys()):
        if key not in recorded:
            yield f"{key}: not in the record"
        elif key not in now:
            yield f"{key}: in the record and no longer compiled"
        else:
            changes = [
                f"{name} {recorded[key].get(name)} -> {value}"
                for name, value in now[key].items()
                if recorded[key].get(name) != value
            ]
            if changes:
                yield f"{key}: {', '.join(changes)}"


def markdown(compiled: Collection[Compiled]) -> str:
    columns = list(Resources.__dataclass_fields__)
    lines = [
        f"| kernel | target | {' | '.join(column.replace('_', ' ') for column in columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for c in compiled:
        if isinstance(c.result, Resources):
            cells = [str(value) for value in asdict(c.result).values()]
            lines.append(f"| {c.variant.name} | {c.target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hypkernels.tritonlib.aot", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--report", action="store_true", help="print the table as Markdown")
    parser.add_argument("--update", action="store_true", help="record them for the installed Triton")
    parser.add_argument("--only", metavar="TEXT", default="", help="only variants whose name contains TEXT")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    variants = [variant for name, variant in _variants().items() if options.only in name]
    if not variants:
        parser.error(f"--only {options.only}: no kernel has that in its name")
    compiled = compile_all(variants, workers=options.workers, progress=_print_progress)
    if options.report:
        print(markdown(compiled))
    found = [problem for c in compiled for problem in problems(c)]
    if options.update:
        save_table(table_path(), compiled, options.only)
    elif not options.only:
        recorded = load_table(table_path())
        found += (
            [f"no record for Triton {triton.__version__}"] if recorded is None else drift(compiled, recorded)
        )
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def _print_progress(done: int, total: int) -> None:
    """On one line, which only a terminal can write over."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rcompiled {done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
