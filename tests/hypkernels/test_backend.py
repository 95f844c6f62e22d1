"""Which implementation runs: the setting, the tensors, and that backward passes follow forward passes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rowwise_ops import OPS
from torch._subclasses.fake_tensor import FakeTensorMode

import hypkernels as hk
from hypkernels import backend, rowwise
from hypkernels.maps import closed_form
from hypkernels.pairwise import op as pairwise_op

X = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5)
NOT_HERE = "hypkernels.exp_map0 cannot run with backend 'triton': "


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    caches = (backend._triton_missing, backend._log_once)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins for the kernels of the maps that any tensor may use; returns the names of the calls."""
    calls = []

    def exp_map0(v, curv):
        calls.append("forward")
        return closed_form.exp_map0(v, curv)

    def exp_map0_backward(grad, v, curv):
        calls.append("backward")
        by_v, by_curv = closed_form.exp_map0_gradient(grad, v, curv)
        return by_v, by_curv.sum()

    module = SimpleNamespace(exp_map0=exp_map0, exp_map0_backward=exp_map0_backward)
    monkeypatch.setitem(sys.modules, "hypkernels.maps.kernel", module)
    monkeypatch.setitem(backend._MISSING, "triton", lambda device: None)
    return calls


def on_gpu(*shape):
    """A tensor that says it is on a GPU."""
    with FakeTensorMode():
        return torch.empty(*shape, device="cuda")


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_importing_compiles_and_starts_nothing():
    code = (
        "import sys, torch; before = set(sys.modules); import hypkernels; new = set(sys.modules) - before\n"
        "assert not any(name.partition('.')[0] == 'triton' for name in new), sorted(new)\n"
        "assert not torch.cuda.is_initialized()\n"
        "hypkernels.exp_map0(torch.ones(2, 3))\n"
        "assert 'hypkernels.maps.kernel' not in sys.modules"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_environment_sets_the_default():
    result = python(
        "import hypkernels.backend as b; print(b.setting())\n"
        "with b.use_backend('torch'): print(b.setting())\n"
        "print(b.setting())",
        HYPKERNELS_BACKEND="reference",
    )
    assert result.stdout.split() == ["reference", "torch", "reference"], result.stderr


@pytest.mark.slow
def test_a_bad_environment_is_named():
    result = python("import hypkernels", HYPKERNELS_BACKEND="cuda")
    known = ", ".join(map(repr, backend.SETTINGS))
    assert f"ValueError: HYPKERNELS_BACKEND must be one of {known}, got 'cuda'" in result.stderr


def test_a_bad_name_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of 'auto', .*, got 'cuda'"):
        hk.use_backend("cuda").__enter__()


def interrupted():
    with hk.use_backend("reference"):
        assert backend.setting() == "reference"
        raise KeyError


def test_settings_nest_and_end_with_an_error():
    assert backend.setting() == "auto"
    with hk.use_backend("torch"):
        with pytest.raises(KeyError):
            interrupted()
        assert backend.setting() == "torch"
    assert backend.setting() == "auto"


def test_settings_are_a_threads_own():
    seen = []
    with hk.use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(backend.setting()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize(
    ("requested", "refusal", "implementation", "reason"),
    [
        ("auto", None, "triton", "cuda tensors"),
        ("triton", None, "triton", "as requested"),
        ("torch", None, "torch", "as requested"),
        ("reference", None, "reference", "as requested"),
        ("auto", "no float64", "torch", "no float64"),
        ("torch", "no float64", "torch", "as requested"),
    ],
)
def test_choice_for_a_gpu(requested, refusal, implementation, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with hk.use_backend(requested):
        choice = backend.choose("exp_map0", on_gpu(2, 3), refusal=refusal)
    assert choice == (implementation, reason)
    assert backend.choose("exp_map0", on_gpu(2, 3), requested=requested, refusal=refusal) == choice


@pytest.mark.parametrize(
    ("requested", "implementation", "reason"),
    [
        ("auto", "native", "cpu tensors"),
        ("native", "native", "as requested"),
        ("torch", "torch", "as requested"),
        ("reference", "reference", "as requested"),
    ],
)
def test_choice_for_a_cpu(requested, implementation, reason, monkeypatch, caplog):
    monkeypatch.setitem(backend._MISSING, "native", lambda device: None)
    with hk.use_backend(requested):
        assert backend.choose("exp_map0", X) == (implementation, reason)
    assert not caplog.records


def test_a_cpu_without_the_compiled_lane(monkeypatch, caplog):
    """Everything works, and it is said once, at the first call, why it is not as fast as it may be."""
    monkeypatch.setitem(backend._MISSING, "native", lambda device: "there was no compiler")
    with caplog.at_level(logging.WARNING, logger="hypkernels"):
        for function in (hk.exp_map0, hk.dist0, lambda x: hk.pairwise_dist(x, x), hk.dist0):
            function(X)
        hk.contrastive_loss(X, X)
    (record,) = caplog.records
    assert record.getMessage() == (
        "hypkernels runs with backend 'torch' and not 'native' for points on cpu: there was no compiler"
    )
    with hk.use_backend("native"), pytest.raises(RuntimeError, match="'native': there was no compiler"):
        hk.dist0(X)


def test_triton_runs_on_a_cpu_in_its_interpreter_only(monkeypatch):
    reason = "cpu tensors; Triton needs a GPU"
    with hk.use_backend("triton"), pytest.raises(RuntimeError, match=NOT_HERE + reason):
        hk.exp_map0(X)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend._triton_missing.cache_clear()
    assert backend.choose("exp_map0", X, requested="triton").implementation == "triton"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("find_spec", lambda module: None, "Triton is not installed"),
        (
            "torch",
            SimpleNamespace(cuda=SimpleNamespace(get_device_capability=lambda device: (7, 5))),
            r"the GPU's compute capability is 7\.5, and kernels need 8\.0",
        ),
    ],
)
def test_what_a_gpu_lacks(name, value, reason, monkeypatch, caplog):
    monkeypatch.setattr(backend, name, value)
    with pytest.raises(RuntimeError, match=NOT_HERE + reason):
        backend.choose("exp_map0", on_gpu(2, 3), requested="triton")
    with caplog.at_level(logging.WARNING, logger="hypkernels"):
        for _ in range(3):
            assert backend.choose("exp_map0", on_gpu(2, 3)).implementation == "torch"
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "hypkernels runs with backend 'torch' and not 'triton' for points on cuda: "
    )


@pytest.mark.parametrize("name", ["pairwise_inner", "pairwise_dist", "pairwise_oxy_angle"])
def test_all_pairs_of_float64_points_have_no_kernels(name, monkeypatch):
    monkeypatch.setitem(backend._MISSING, "triton", lambda device: None)
    x = X.double()
    reason = f"hypkernels.{name} cannot run with backend 'triton': the points are float64"
    with hk.use_backend("triton"), pytest.raises(RuntimeError, match=reason):
        getattr(hk, name)(x, x)


def test_the_backward_pass_follows_the_forward_pass(kernels):
    x = X.clone().requires_grad_()
    with hk.use_backend("triton"):
        by_kernel = hk.exp_map0(x, 0.7)
    with hk.use_backend("torch"):
        by_formula = hk.exp_map0(x, 0.7)
        by_kernel.sum().backward()
    assert kernels == ["forward", "backward"]
    with hk.use_backend("triton"):
        by_formula.sum().backward()
    assert kernels == ["forward", "backward"]


def test_the_backward_pass_follows_in_another_thread(kernels):
    x = X.clone().requires_grad_()
    with hk.use_backend("triton"):
        out = hk.exp_map0(x, 0.7)
        thread = threading.Thread(target=out.sum().backward)
        thread.start()
        thread.join()
    assert kernels == ["forward", "backward"]
    assert x.grad is not None


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_code_follows_the_setting(kernels, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(hk.exp_map0, fullgraph=True, backend=compiler)
    x = X.clone().requires_grad_()
    for name, calls in (("torch", []), ("triton", ["forward", "backward"]), ("torch", [])):
        kernels.clear()
        with hk.use_backend(name):
            out = compiled(x, 0.7)
        out.sum().backward()
        assert kernels == calls


POINTS = {
    **{name: op.points for name, op in OPS.items() if name != "entailment_loss"},
    **dict.fromkeys(("pairwise_inner", "pairwise_dist", "pairwise_oxy_angle"), 2),
}


def assert_reference_agrees(name, dtype, monkeypatch, wrap=lambda op: op):
    """With no operator to fall back on."""
    generator = torch.Generator().manual_seed(0)
    scalars = (0.8, 0.7) if name == "scaled_exp_map0" else (0.7,)
    arguments = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(POINTS[name])]
    arguments = [v.to(dtype) for v in arguments] + [torch.tensor(s, dtype=torch.float64) for s in scalars]
    arguments = [argument.requires_grad_() for argument in arguments]

    def with_gradients(op):
        out = op(*arguments)
        return [out, *torch.autograd.grad(out, arguments, torch.ones_like(out))]

    with hk.use_backend("torch"):
        expected = with_gradients(getattr(hk, name))
    monkeypatch.setattr(rowwise, "map_rows", None)
    monkeypatch.setattr(pairwise_op.PairwiseOp, "_tiles", None)
    with hk.use_backend("reference"):
        actual = with_gradients(wrap(getattr(hk, name)))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=max(1e-10, 2 * torch.finfo(a.dtype).eps), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", POINTS)
def test_the_reference_agrees(name, dtype, monkeypatch):
    assert_reference_agrees(name, dtype, monkeypatch)


@pytest.mark.parametrize("name", ["scaled_exp_map0", "oxy_angle", "pairwise_dist"])
def test_the_reference_compiles(name, monkeypatch):
    torch._dynamo.reset()
    compiler = partial(torch.compile, fullgraph=True, backend="aot_eager")
    assert_reference_agrees(name, torch.float32, monkeypatch, compiler)


def test_the_reference_differentiates_twice():
    x = X.clone().requires_grad_()
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with hk.use_backend("reference"):
        assert torch.autograd.gradgradcheck(hk.exp_map0, (x, curv))


def test_the_reference_refuses_a_bad_curvature():
    with hk.use_backend("reference"), pytest.raises(ValueError, match="curv must be positive"):
        hk.exp_map0(X, torch.tensor(-1.0))
