"""The tuner on the kernels: what it measures, and what it refuses."""

import pytest
import torch
from kernel_lane import DEVICE
from torch._subclasses.fake_tensor import FakeTensorMode

from hypkernels.contrastive import kernel
from hypkernels.contrastive.tune import random_problem, tune
from hypkernels.tritonlib.tile_plan import default_plan


def problem():
    return random_problem(40, 24, torch.float32, DEVICE, "ieee")


def preferring(field, value):
    """A timer that runs the call, and finds one value of a field of the forward tile fast."""

    def timer(call):
        call()
        (trial,) = [cell.cell_contents for cell in call.__closure__ if hasattr(cell.cell_contents, "forward")]
        return 1.0 if getattr(trial.forward, field) == value else 2.0

    return timer


def test_the_faster_tile_is_found_and_gives_the_same_result():
    p = problem()
    before = default_plan(p.x.points, "dist")
    lines = []
    plan = tune(p, timer=preferring("rows", 64), options={"rows": (64, 32)}, report=lines.append)
    assert plan.forward == before.forward._replace(rows=64)
    assert plan.backward == before.backward
    assert any(line.endswith("1000.000 ms") for line in lines)


def test_a_tile_that_changes_the_result_is_not_chosen(monkeypatch):
    forward = kernel.forward

    def wrong_for_64_rows(p, *arguments, plan):
        losses, statistics = forward(p, *arguments, plan=plan)
        return (losses * (1.001 if plan.forward.rows == 64 else 1.0)), statistics

    monkeypatch.setattr(kernel, "forward", wrong_for_64_rows)
    p = problem()
    plan = tune(p, timer=preferring("rows", 64), options={"rows": (64, 32)})
    assert plan.forward == default_plan(p.x.points, "dist").forward


def test_a_tile_that_fails_is_reported():
    lines = []
    p = problem()
    plan = tune(p, timer=lambda call: call() and 1.0, options={"rows": (33,)}, report=lines.append)
    assert plan == default_plan(p.x.points, "dist")
    assert sum("Error" in line for line in lines) == 3


def test_a_tile_that_is_not_used_is_not_varied(monkeypatch):
    """As for bfloat16 on NVIDIA, with a stand-in for PyTorch's product there."""
    monkeypatch.setattr(kernel, "uses_product_tile", lambda points: False)
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, out_dtype, out: out.copy_(total + a @ b))
    lines = []
    tune(problem(), timer=lambda call: 1.0, options={"rows": (64,)}, report=lines.append)
    assert [line.split()[0] for line in lines] == ["forward", "forward", "backward", "backward"]


@pytest.mark.parametrize("hip", [None, "6.4"])
def test_pytorch_multiplies_bfloat16_on_nvidia_only(monkeypatch, hip):
    monkeypatch.setattr(torch.version, "hip", hip)
    with FakeTensorMode():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            by_pytorch = dtype == torch.bfloat16 and hip is None
            assert kernel.uses_product_tile(torch.empty(1, dtype=dtype, device="cuda")) != by_pytorch
            assert kernel.uses_product_tile(torch.empty(1, dtype=dtype))


def test_the_problem_is_what_was_asked_for():
    p = problem()
    assert p.x.points.shape == (40, 24)
    assert p.dtype == torch.float32
    assert p.scale.tolist() == pytest.approx([15.0] * 40)
