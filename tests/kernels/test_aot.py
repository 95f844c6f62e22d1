"""Every kernel compiles for every target without a GPU: within limits, as recorded. The checks can fail."""

from __future__ import annotations

import importlib
import os
import sys
import types
from dataclasses import replace
from functools import cache
from typing import NamedTuple
from zlib import crc32

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from hypkernels.tritonlib import aot, manifest, recording
from hypkernels.tritonlib.aot import Compiled, Resources
from hypkernels.tritonlib.device_limits import TARGETS
from hypkernels.tritonlib.tile_plan import plan_for, target_of

pytestmark = pytest.mark.slow

BLOCK = 1024


# All variants take two cores ten minutes. The suite compiles row kernels of D = 512, and a quarter of the
# others, for one of their targets; and one in fifteen of those that exist for one target alone, the
# contrastive and the pairwise ones.
EVERYTHING = os.environ.get("HYPKERNELS_AOT") == "all"


# Which takes seconds: everything is launched once to be listed.
_variants = cache(manifest.variants)


def _chosen():
    for variant in _variants().values():
        number, targets = crc32(variant.name.encode()), variant.targets
        if EVERYTHING:
            yield variant
        elif "D=512" in variant.name or number % (4 if len(targets) > 1 else 15) == 0:
            yield replace(variant, targets=(targets[number % len(targets)],))


@pytest.fixture(scope="module")
def compiled():
    return aot.compile_all(_chosen(), workers=aot.available_cores())


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_stay_within_limits(compiled, target):
    of_target = [c for c in compiled if c.target == target]
    assert of_target
    found = [problem for c in of_target for problem in aot.problems(c)]
    assert not found, "\n".join(found)


def test_kernels_are_as_recorded(compiled):
    recorded = aot.load_table(aot.table_path())
    if recorded is None:
        pytest.skip(f"no record for Triton {triton.__version__}")
    listed = {Compiled(v, target, "").key for v in _variants().values() for target in v.targets}
    assert recorded.keys() == listed
    keys = {c.key for c in compiled}
    changes = list(aot.drift(compiled, {key: value for key, value in recorded.items() if key in keys}))
    hint = "after a review of the differences: python -m hypkernels.tritonlib.aot --update"
    assert not changes, "\n".join([*changes, hint])


def test_everything_on_record_is_within_limits():
    """Of every plan, also where nothing is compiled."""
    recorded = aot.load_table(aot.table_path())
    if recorded is None:
        pytest.skip(f"no record for Triton {triton.__version__}")
    rows = [(v, target) for v in _variants().values() for target in v.targets]
    found = [Compiled(v, target, Resources(**recorded[f"{v.name} {target}"])) for v, target in rows]
    assert not [problem for c in found for problem in aot.problems(c)]


# KiB of shared memory that NVIDIA's programming guide allows a block, by compute capability.
SHARED_KIB = {
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (11, 0): 227,
    (12, 0): 99,
    (12, 1): 99,
}


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_a_gpu_gets_the_tiles_of_its_own_target(capability):
    expected = {8: "sm_80", 9: "sm_90", 10: "sm_100", 11: "sm_100", 12: "sm_120"}
    assert target_of(capability[0], SHARED_KIB[capability] << 10) == expected[capability[0]]


@pytest.mark.parametrize("kib", [99, 163, 227])
def test_no_gpu_gets_tiles_that_take_more_shared_memory_than_it_has(kib):
    """Whatever its capability: a test of all that is on record holds the tiles to their target's limit."""
    for major in range(8, 20):
        assert TARGETS[target_of(major, kib << 10)].shared_memory <= kib << 10


def test_a_row_that_a_tile_holds_is_read_once(compiled):
    """A kernel's passes over such a row are one: nothing is loaded again."""
    held = [c for c in compiled if "[fp32,D=512]" in c.variant.name]
    assert {c.target for c in held} == set(TARGETS)
    assert all(c.result.wide_loads == aot._wanted_wide_loads(c.variant, c.target) for c in held)


@pytest.mark.parametrize("target", TARGETS)
def test_angles_of_float32_points_use_the_recorded_product(target):
    """``add_product`` knows nothing of the similarity: it is compiled with the tile for distances."""
    distance, angle = (plan_for(target, torch.float32, similarity) for similarity in ("dist", "angle"))
    assert angle.product == distance.product


@pytest.mark.parametrize("module", manifest.KERNEL_MODULES)
def test_every_op_is_listed(module):
    family = module.split(".")[-2]
    names = {name.partition("[")[0] for name in _variants() if name.startswith(f"{family}.")}
    assert names
    functions = vars(importlib.import_module(module))
    ops = [name for name in functions if f"{name}_backward" in functions and name[0] != "_"]
    assert {f"{family}.{op}_{way}" for op in ops for way in ("forward", "backward")} <= names


@triton.jit
def _scale(X, OUT, stride, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * stride + tl.arange(0, BLOCK)
    tl.store(OUT + index, FACTOR * tl.load(X + index))


@triton.jit
def _scale_every_other(X, OUT, stride, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * stride + tl.arange(0, BLOCK)
    tl.store(OUT + index, FACTOR * tl.load(X + 2 * index))


@triton.jit
def _normalise(X, OUT, stride, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * stride + tl.arange(0, BLOCK)
    x = tl.load(X + index)
    tl.store(OUT + index, x / tl.sum(x))


@triton.jit
def _product(X, OUT, stride, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)[:, None] * stride + tl.arange(0, BLOCK)[None]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(stride):
        total = tl.dot(tl.load(X + index), tl.load(X + BLOCK + index), total)
        index += BLOCK
    tl.store(OUT + index, total)


def variant(kernel=_scale, dtype=torch.float32, constants=None, warps=4, stages=1, **properties):
    """``kernel`` on a dense tensor, as a launch compiles it."""
    x = torch.empty(1 << 16, dtype=dtype, device="meta")
    constants = constants or {"FACTOR": 3.0, "BLOCK": BLOCK}
    with recording.recorded_launches() as launches:
        kernel[(64,)](x, x, BLOCK, **constants, num_warps=warps, num_stages=stages)
    (launch,) = launches
    defaults = {"units": BLOCK, "input_tiles": (BLOCK * dtype.itemsize,)}
    return launch.variant("a kernel", **{**defaults, **properties})


def product(block, stages):
    constants = {"BLOCK": block}
    return variant(
        _product, torch.float16, constants, warps=8, stages=stages, input_tiles=None, expect_mma=True
    )


def problems(v, target):
    (c,) = aot.compile_all([replace(v, targets=(target,))])
    return list(aot.problems(c))


@pytest.mark.parametrize("target", TARGETS)
def test_a_good_kernel_has_no_problems(target):
    (c,) = aot.compile_all([variant(targets=(target,))])
    assert not list(aot.problems(c))
    assert c.result.instructions > c.result.wide_loads
    assert c.result.wide_loads == BLOCK * 4 // (16 * 4 * TARGETS[target].warp_size)
    assert c.result.registers > 0
    assert (c.result.shared, c.result.stack, c.result.spills, c.result.matrix) == (0, 0, 0, 0)
    assert c.result.per_unit == round(c.result.instructions * 4 * TARGETS[target].warp_size / BLOCK, 2)


@pytest.mark.parametrize("target", TARGETS)
def test_spilled_registers_are_reported(target):
    """A thread keeps 512 numbers until the sum is known."""
    block = 512 * TARGETS[target].warp_size
    (problem,) = problems(variant(_normalise, constants={"BLOCK": block}, warps=1), target)
    assert problem.startswith(f"a kernel {target}: ")
    assert "instructions save or restore registers in memory" in problem


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tiles", [(BLOCK * 4,), None])
def test_narrow_loads_are_reported(target, tiles):
    (problem,) = problems(variant(_scale_every_other, input_tiles=tiles), target)
    wanted = 1 if tiles is None else BLOCK * 4 // (16 * 4 * TARGETS[target].warp_size)
    assert problem == f"a kernel {target}: 0 128-bit loads, the inputs' tiles need {wanted}"


@pytest.mark.parametrize("target", TARGETS)
def test_unaligned_inputs_need_to_be_declared_aligned(target):
    """Without a launch's knowledge of alignment no load is wide: the check depends on ``aligned``."""
    (problem,) = problems(replace(variant(), aligned=()), target)
    assert "0 128-bit loads" in problem


@pytest.mark.parametrize("target", TARGETS)
def test_too_much_shared_memory_is_reported(target):
    """Two operands of 32 KiB for each stage but one."""
    assert not problems(product(64, stages=2), target)
    limit = TARGETS[target].shared_memory
    (problem,) = problems(product(128, stages=limit // (64 << 10) + 2), target)
    assert problem.endswith(f"bytes of shared memory, the limit is {limit}")


@pytest.mark.parametrize("target", TARGETS)
def test_missing_matrix_instructions_are_reported(target):
    (problem,) = problems(variant(expect_mma=True), target)
    assert problem.startswith(f"a kernel {target}: no matrix instruction")


def test_a_kernel_that_does_not_compile_is_reported():
    (problem,) = problems(variant(constants={"FACTOR": 3.0, "BLOCK": 1000}), "sm_90")
    assert problem.startswith("a kernel sm_90: does not compile: ")
    assert "power of 2" in problem


@triton.jit
def _not_a_block(BLOCK: tl.constexpr):
    return tl.arange(0, BLOCK - 1)


@triton.jit
def _calls_what_does_not_compile(X, OUT, stride, BLOCK: tl.constexpr):
    tl.store(OUT + _not_a_block(BLOCK), stride)


def test_the_device_function_at_fault_is_reported():
    (problem,) = problems(variant(_calls_what_does_not_compile, constants={"BLOCK": BLOCK}), "sm_90")
    assert "tl.arange(0, BLOCK - 1)" in problem
    assert "power of 2" in problem


RESOURCES = Resources(
    registers=40,
    stack=0,
    shared=128,
    instructions=500,
    per_unit=12.5,
    spills=0,
    wide_loads=4,
    matrix=0,
    shuffles=25,
)


def test_drift_is_reported_by_kernel_target_and_number(tmp_path):
    names = ("same", "changed", "new", "gone")
    same, changed, new, gone = (Compiled(replace(variant(), name=n), "sm_90", RESOURCES) for n in names)
    path = tmp_path / "table.json"
    assert aot.load_table(path) is None
    aot.save_table(path, [gone, same, changed])
    recorded = aot.load_table(path)
    assert not list(aot.drift([same, changed, gone], recorded))
    changed = replace(changed, result=replace(RESOURCES, registers=48, per_unit=13.0))
    assert list(aot.drift([new, same, changed], recorded)) == [
        "changed sm_90: registers 40 -> 48, per_unit 12.5 -> 13.0",
        "gone sm_90: in the record and no longer compiled",
        "new sm_90: not in the record",
    ]


def test_the_record_has_a_line_for_each_kernel_and_target(tmp_path):
    path = tmp_path / "table.json"
    compiled = [Compiled(variant(), target, RESOURCES) for target in TARGETS]
    failed = Compiled(replace(variant(), name="broken"), "sm_90", "does not compile")
    aot.save_table(path, [*compiled, failed])
    assert [line.split('"')[1] for line in path.read_text().splitlines()[1:-1]] == [
        "a kernel gfx942",
        "a kernel sm_100",
        "a kernel sm_120",
        "a kernel sm_80",
        "a kernel sm_90",
    ]
    assert not list(aot.drift([*compiled, failed], aot.load_table(path)))


def test_lines_of_some_kernels_are_recorded_alone(tmp_path):
    """Those that are no longer compiled go, and the others' stay as they are."""
    path = tmp_path / "table.json"
    names = ("cone.a", "cone.gone", "maps.a")
    old = [Compiled(replace(variant(), name=name), "sm_90", RESOURCES) for name in names]
    aot.save_table(path, old)
    new = Compiled(old[0].variant, "sm_90", replace(RESOURCES, registers=48))
    aot.save_table(path, [new], only="cone")
    assert not list(aot.drift([new, old[2]], aot.load_table(path)))


def test_report_is_a_markdown_table():
    lines = aot.markdown([Compiled(variant(), "sm_90", RESOURCES)]).splitlines()
    assert lines[2] == "| a kernel | sm_90 | 40 | 0 | 128 | 500 | 12.5 | 0 | 4 | 0 | 25 |"
    assert len({line.count("|") for line in lines}) == 1


def test_no_kernel_of_that_name(capsys):
    with pytest.raises(SystemExit):
        aot.main(["--update", "--only", "conee"])
    assert "--only conee: no kernel has that in its name" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_a_terminal(monkeypatch, capsys, terminal):
    name = "contrastive.add_product[float16,dist,sm_90]"
    monkeypatch.setattr(aot, "compile_variant", lambda *job: "not compiled")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert aot.main(["--only", name, "--workers", "1"]) == 1
    progress = "\rcompiled 1 of 1\n" if terminal else ""
    assert capsys.readouterr().err == f"{progress}{name} sm_90: not compiled\n"


def test_variants_have_names_of_their_own(monkeypatch):
    duplicates = types.ModuleType("duplicates")
    duplicates.aot_variants = lambda: [variant(), variant()]
    monkeypatch.setitem(sys.modules, "duplicates", duplicates)
    monkeypatch.setattr(manifest, "KERNEL_MODULES", ("duplicates",))
    with pytest.raises(ValueError, match="duplicates lists a second variant called 'a kernel'"):
        manifest.variants()


class _Group(NamedTuple):
    X: object
    stride: object
    nothing: object


class _Sizes(NamedTuple):
    outer: object
    inner: object


@triton.jit(do_not_specialize=["size", "sizes"])
def _arguments(
    X, Y, one, aligned, odd, large, number, flag, nothing, group, size, sizes, FUNCTION: tl.constexpr
):
    pass


def test_launches_are_recorded_as_triton_specialises_them():
    x = torch.empty(64, dtype=torch.bfloat16, device="meta")
    with recording.recorded_launches() as launches:
        numbers = (x, x[1:], 1, 32, 33, 1 << 40, 0.5, True, None)
        groups = (_Group(x, 32, None), 1, _Sizes(1, 48))
        _arguments[(1,)](*numbers, *groups, FUNCTION=_scale, maxnreg=64)
    (launch,) = launches
    assert launch.signature == {
        "X": "*bf16",
        "Y": "*bf16",
        "one": "constexpr",
        "aligned": "i32",
        "odd": "i32",
        "large": "i64",
        "number": "fp32",
        "flag": "u1",
        "nothing": "constexpr",
        "group": _Group("*bf16", "i32", "constexpr"),
        "size": "i32",
        "sizes": _Sizes("constexpr", "i32"),
        "FUNCTION": "constexpr",
    }
    constants = {"one": 1, "nothing": None, "group.nothing": None, "sizes.outer": 1, "FUNCTION": _scale}
    assert launch.constexprs == constants
    assert launch.aligned == ("X", "aligned", "large", "group.X", "group.stride", "sizes.inner")
    assert launch.variant("a kernel").options == {"maxnreg": 64}


def test_what_runs_is_what_is_recorded():
    """Triton itself binds the arguments of a launch: types, constants and alignment must be the same."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(_arguments.signature, _arguments.params, backend)
    x = torch.empty(64, dtype=torch.bfloat16)
    groups = (_Group(x[1:], 48, None), 1, _Sizes(1, 48))
    arguments = (x, x[1:], 1, 32, 33, 1 << 40, 0.5, True, None, *groups)
    _, specialization, _ = binder(*arguments, FUNCTION=_scale)
    with recording.recorded_launches() as launches:
        _arguments[(1,)](*arguments, FUNCTION=_scale)
    (launch,) = launches
    kinds = [kind for kind, _ in specialization]
    assert kinds == list(launch.signature.values())
    assert [type(kind) for kind in kinds[-4:-1]] == [_Group, str, _Sizes]
    aligned = []
    for name, (_, kind) in zip(_arguments.arg_names, specialization, strict=True):
        fields = kind._asdict() if isinstance(kind, tuple) else {"": kind}
        aligned += [f"{name}.{field}".rstrip(".") for field, kind in fields.items() if kind == "D"]
    assert aligned == list(launch.aligned)
