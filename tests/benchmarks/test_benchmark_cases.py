"""The registry, its float64 answers and the correctness gate."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import formulas
from benchmarks.case import SIZES, values
from benchmarks.cases import CASES
from benchmarks.gate import answer, expected, verdict
from benchmarks.growth import LEAST_SIZES
from benchmarks.machine import ROOT
from benchmarks.providers import PROVIDERS
from benchmarks.providers.own import _programs
from benchmarks.session import groups
from benchmarks.training_step import GATE_PARAMETERS
from hypkernels.cpu import library

CPU = torch.device("cpu")
OPERATIONS = [name for name in CASES if not name.startswith("step")]
TINY = {"B": 24, "D": 32}


def tiny(case):
    return {"B": 3} if case.name.startswith("step") else TINY


def drawn(name, seed=0):
    case = CASES[name]
    return case.draw(tiny(case), torch.Generator().manual_seed(seed))


def judged(provider, name):
    """The gate's error and complaint for a provider on tiny data."""
    case, data = CASES[name], drawn(name)
    got = answer(
        case, provider.programs[name], case.prepare(data, provider.dtype), points_dtype=provider.dtype
    )
    return verdict(provider, got, expected(case, provider.computes, data, provider.dtype))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_formulas_agree_with_hypkernels_in_float64(name):
    """Two independent derivations, in values and in all gradients."""
    case, data = CASES[name], drawn(name)
    ours = answer(case, _programs(None)[name], case.prepare(data, torch.float64), points_dtype=torch.float64)
    want = expected(case, "lorentz", data, torch.float64)
    strict = replace(PROVIDERS["hypkernels-torch-fp32"], tolerance=1e-10)
    assert verdict(strict, ours, want)[1] is None


@pytest.mark.parametrize("logits", [formulas.distance_logits, formulas.angle_logits, formulas.dot_logits])
@pytest.mark.parametrize("symmetric", [True, False])
def test_strips_give_the_dense_loss(monkeypatch, logits, symmetric):
    case = CASES["contrastive_dist"]
    data = drawn("contrastive_dist")

    def gradients(loss):
        inputs = case.prepare(data, torch.float64)
        x, y, curv, scale = values(inputs, ("x", "y", "curv", "logit_scale"))
        result = loss(x, y, curv, scale, logits, symmetric)
        result.backward()
        return [result.detach(), x.grad, y.grad, scale.grad]

    monkeypatch.setattr(formulas, "STRIP_ELEMENTS", 7 * TINY["B"])  # 24 rows in strips of 7
    for strips, dense in zip(
        gradients(formulas.contrastive_by_strips), gradients(formulas.contrastive), strict=True
    ):
        torch.testing.assert_close(strips, dense, rtol=1e-12, atol=1e-15)


def test_the_euclidean_answer_is_clip_loss():
    inputs = CASES["contrastive_dist"].prepare(drawn("contrastive_dist"), torch.float64)
    x, y, scale = inputs["x"], inputs["y"], inputs["logit_scale"]
    targets = torch.arange(len(x))
    clip = 0.5 * (F.cross_entropy(scale * x @ y.T, targets) + F.cross_entropy(scale * y @ x.T, targets))
    (reference,) = CASES["contrastive_dist"].references["euclidean"](inputs)
    torch.testing.assert_close(reference, clip, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "step_vit_b_32"])
def test_what_can_run_here_passes_the_gate(name):
    if CASES[name].obstacle():
        pytest.skip(CASES[name].obstacle())
    for provider in PROVIDERS.values():
        if name in provider.programs and provider.obstacle(CPU) is None and "compile" not in provider.name:
            error, wrong = judged(provider, name)
            assert wrong is None, f"{provider.name}: {wrong}"
            assert error <= provider.tolerance


class _Scaled(torch.autograd.Function):
    """The identity, with a wrong gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 0.9 * gradient


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("provider", ["hypkernels-torch-fp32", "hypkernels-torch-bf16", "eager-fp32"])
def test_one_wrong_gradient_fails_the_gate(name, provider):
    honest = PROVIDERS[provider]
    for leaf in (*CASES[name].points, *CASES[name].scalars):

        def program(inputs, leaf=leaf):
            return honest.programs[name](inputs | {leaf: _Scaled.apply(inputs[leaf])})

        _, wrong = judged(replace(honest, programs={name: program}), name)
        assert wrong == f"gradient of {leaf} is off by 0.1 of its norm ({honest.tolerance:g} allowed)"


@pytest.mark.parametrize("parameter", GATE_PARAMETERS)
def test_one_wrong_gradient_of_a_training_step_fails_the_gate(parameter):
    pytest.importorskip("open_clip")
    honest, hooks = PROVIDERS["eager-fp32"], []

    def program(inputs):
        leaf = dict(inputs["model"].named_parameters())[parameter]
        hooks.append(leaf.register_hook(lambda gradient: 0.9 * gradient))
        return honest.programs["step_toy"](inputs)

    _, wrong = judged(replace(honest, programs={"step_toy": program}), "step_toy")
    hooks[0].remove()  # all share one model
    assert wrong == f"gradient of {parameter} is off by 0.1 of its norm ({honest.tolerance:g} allowed)"


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_output_fails_the_gate(name):
    honest = PROVIDERS["eager-fp32"]

    def program(inputs):
        return tuple(output.detach() * 0.1 + output for output in honest.programs[name](inputs))

    _, wrong = judged(replace(honest, programs={name: program}), name)
    assert wrong is not None
    assert wrong.startswith("output 0 is off by 0.1")


@pytest.mark.parametrize("break_it", [torch.Tensor.detach, lambda output: output * float("nan")])
def test_no_gradient_and_nan_fail_the_gate(break_it):
    honest = PROVIDERS["eager-fp32"]

    def program(inputs):
        (output,) = honest.programs["contrastive_dist"](inputs | {"y": break_it(inputs["y"])})
        return (output,)

    assert judged(replace(honest, programs={"contrastive_dist": program}), "contrastive_dist")[1] is not None


def test_the_registry_is_consistent():
    for provider in PROVIDERS.values():
        assert provider.programs
        assert provider.note
        assert set(provider.programs) <= set(CASES)
        assert all(provider.computes in CASES[name].references for name in provider.programs), provider.name
        assert provider.package is None or provider.install.startswith("pip install")
    for case in CASES.values():
        assert set(case.shapes) == set(SIZES)
    assert all(len(CASES["contrastive_dist"].shapes[size]) >= LEAST_SIZES for size in SIZES)


@pytest.mark.parametrize("name", ["inf-cl", "cce-exact-bf16", "liger-bf16", "hypkernels-triton-fp32"])
def test_providers_for_gpus_say_so(name):
    assert PROVIDERS[name].obstacle(CPU) == "needs CUDA"


def test_the_compiled_lane_runs_where_it_is_built():
    native = PROVIDERS["hypkernels-native-fp32"]
    assert native.obstacle(CPU) == library.why_not()
    assert native.obstacle(torch.device("cuda")) == "needs a CPU"


def test_a_provider_whose_package_is_missing_names_the_extra():
    missing = replace(PROVIDERS["geoopt-fp32"], package="no_such_package")
    assert missing.obstacle(CPU) == "not installed (pip install hysac[bench-peers])"


def test_headline_shapes_are_for_the_providers_of_the_summary_and_come_last():
    found = {
        (case.name, shape["B"]): [provider.name for provider in providers]
        for case, shape, providers in groups("small", CPU)
    }
    assert list(found)[-1] == ("contrastive_dist", 2048)
    every, headline = found["contrastive_dist", 1024], found["contrastive_dist", 2048]
    assert set(headline) < set(every)
    assert {"hypkernels-torch-fp32", "eager-fp32", "products-fp32"} <= set(headline)
    assert "hypkernels-torch-bf16" in every


@pytest.mark.slow
def test_only_the_training_step_needs_more_than_torch_and_triton():
    """The listing of all tests, the report and the comparison, in a process that finds no other package."""
    program = """
import sys

class Hiding:
    hidden = {"open_clip", "torchvision", "timm", "PIL", "safetensors", "tqdm", "hypothesis"}

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *arguments):
        return None if name.split(".")[0] in self.hidden else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import torch
import benchmarks.compare, benchmarks.report, benchmarks.test_cases
from benchmarks.session import groups
assert "hysac" not in sys.modules
print(len({case.name for case, _, _ in groups("large", torch.device("cpu"))}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(OPERATIONS)


def test_compulsory_bytes_are_those_of_the_tensors():
    case = CASES["exp_map0"]
    inputs = case.prepare(drawn("exp_map0"), torch.bfloat16)
    outputs = (torch.empty(24, 32, dtype=torch.bfloat16),)
    points, curv = 24 * 32 * 2, 4
    assert case.compulsory_bytes(inputs, outputs) == {
        "forward": 2 * points + curv,
        "backward": 3 * points + 2 * curv,
        "both": 4 * points + 2 * curv,
    }


def test_the_products_of_a_contrastive_loss():
    assert CASES["contrastive_dist"].products({"B": 10, "D": 3}) == (600, 1200)
    assert CASES["hysac_block"].products({"B": 10, "D": 3}) == (2400, 4800)
