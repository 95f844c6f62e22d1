"""Bad arguments are refused by name, before any work."""

import inspect
import math

import numpy as np
import pytest
import torch
from lorentz_oracle import FUNCTIONS, ONE_POINT

import hypkernels as hk
from hypkernels import objectives, retrieval

NAMES = FUNCTIONS
PAIRS = [name for name in NAMES if name not in ONE_POINT]


def call(name, x=None, y=None, curv=1.0):
    x = torch.ones(2, 3) if x is None else x
    y = torch.ones(2, 3) if y is None else y
    return getattr(hk, name)(*((x,) if name in ONE_POINT else (x, y)), curv)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0, 2.0]], TypeError, r"x must be a tensor of space components \(\.\.\., D\), got list"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "x must be float64.*got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "x must be float64.*got torch.complex64"),
        (torch.eye(2).to_sparse(), TypeError, "x must be a dense tensor, got one of layout torch.sparse_coo"),
        (
            torch.eye(2).to_sparse_csr(),
            TypeError,
            "x must be a dense tensor, got one of layout torch.sparse_csr",
        ),
        (
            torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]),
            TypeError,
            "x must be a dense tensor, got a nested tensor",
        ),
        (torch.tensor(1.0), ValueError, r"x must have shape \(\.\.\., D\) with D >= 1, got \(\)"),
        (torch.ones(2, 0), ValueError, r"x must have shape \(\.\.\., D\) with D >= 1, got \(2, 0\)"),
    ],
)
def test_points(name, x, error, message):
    with pytest.raises(error, match=message):
        call(name, x=x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("curv", "error", "message"),
    [
        (0.0, ValueError, "curv must be positive and finite, got 0.0"),
        (-1.0, ValueError, "curv must be positive and finite, got -1.0"),
        (float("inf"), ValueError, "curv must be positive and finite, got inf"),
        (float("nan"), ValueError, "curv must be positive and finite, got nan"),
        (torch.tensor(-1.0), ValueError, "curv must be positive and finite, got -1.0"),
        (torch.tensor(float("nan")), ValueError, "curv must be positive and finite, got nan"),
        (
            torch.ones(5),
            ValueError,
            r"points and curv must have broadcastable.*\(2,\) of points, \(5,\) of curv",
        ),
        (torch.tensor([1.0, -2.0]), ValueError, "curv must be positive and finite, got -2.0 in a tensor"),
        (10**400, ValueError, "curv must be positive and finite, got inf"),
        (-(10**400), ValueError, "curv must be positive and finite, got -inf"),
        (
            torch.eye(2).to_sparse(),
            TypeError,
            "curv must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (torch.tensor(1), TypeError, "curv must be a floating tensor, got torch.int64"),
        ("1", TypeError, "curv must be a float or a one-element tensor, got str"),
        (True, TypeError, "curv must be a float or a one-element tensor, got bool"),
        (None, TypeError, "curv must be a float or a one-element tensor, got NoneType"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_curvature(name, curv, error, message, backend):
    with hk.use_backend(backend), pytest.raises(error, match=message):
        call(name, curv=curv)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    second = {"exp_map": "v", "busemann": "direction"}.get(name, "y")
    with pytest.raises(TypeError, match=f"{second} must be a tensor"):
        call(name, y=[1.0])
    with pytest.raises(
        TypeError, match=f"x and {second} must have the same dtype, got torch.float32 and torch.float64"
    ):
        call(name, y=torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"x and {second} must have the same width.*\(2, 3\) and \(2, 4\)"):
        call(name, y=torch.ones(2, 4))
    with pytest.raises(ValueError, match=rf"x and {second} must have broadcastable.*\(2, 3\) and \(5, 3\)"):
        call(name, y=torch.ones(5, 3))
    with pytest.raises(ValueError, match=f"x and {second} must be on the same device, got cpu and meta"):
        call(name, y=torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize("name", NAMES)
def test_curvature_on_another_device_than_the_cpu_points(name):
    with pytest.raises(ValueError, match="curv must be on the CPU or on the points' cpu, got meta"):
        call(name, curv=torch.ones((), device="meta"))


@pytest.mark.parametrize(
    ("min_radius", "error", "message"),
    [
        (0.0, ValueError, "min_radius must be positive and finite, got 0.0"),
        (-0.1, ValueError, "min_radius must be positive and finite, got -0.1"),
        (float("nan"), ValueError, "min_radius must be positive and finite, got nan"),
        ("0.1", TypeError, "min_radius must be a float, got str"),
        (torch.tensor(0.1), TypeError, "min_radius must be a float, got Tensor"),
    ],
)
def test_min_radius(min_radius, error, message):
    with pytest.raises(error, match=message):
        hk.half_aperture(torch.ones(2, 3), 1.0, min_radius)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_scale(value, backend):
    x, several = torch.ones(2, 3), torch.tensor([1.0, value])
    with hk.use_backend(backend):
        for scale in (value, torch.tensor(value), torch.tensor([value]), torch.tensor(value).half()):
            with pytest.raises(ValueError, match=f"scale must be finite, got {value}$"):
                hk.scaled_exp_map0(x, scale)
        with pytest.raises(ValueError, match=rf"scale must be finite, got {value} in a tensor of \(2,\)"):
            hk.scaled_exp_map0(x, several)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("curv", [-1.0, math.inf, math.nan])
def test_curvature_within_transforms(name, curv):
    x, curvature = torch.ones(2, 3), torch.tensor(curv)
    with pytest.raises(ValueError, match=f"curv must be positive and finite, got {curv}"):
        torch.func.jvp(lambda x: call(name, x=x, curv=curvature), (x,), (x,))
    for backend in ("auto", "reference"):
        with (
            hk.use_backend(backend),
            pytest.raises(ValueError, match=f"curv must be positive and finite, got {curv} in a tensor"),
        ):
            torch.vmap(lambda c: call(name, curv=c))(torch.stack([torch.ones(()), curvature]))


ONES = torch.ones(2, 3)
NUMBERS = {
    "curv": lambda number: hk.dist0(ONES, number),
    "scale": lambda number: hk.scaled_exp_map0(ONES, number),
    "min_radius": lambda number: hk.half_aperture(ONES, 1.0, number),
    "logit_scale": lambda number: hk.contrastive_loss(ONES, ONES, 1.0, number),
    **{
        name: lambda number, name=name: hk.entailment_loss(ONES, ONES, **{name: number})
        for name in ("aperture_scale", "margin", "leak")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_a_graph_that_takes_any_number_refuses_an_infinite_one(name):
    torch._dynamo.reset()
    compiled = torch.compile(NUMBERS[name], fullgraph=True, backend="aot_eager")
    for number in (0.5, 0.6, 0.7):
        compiled(number)
    with pytest.raises(ValueError, match=f"{name} must be .*finite, got inf"):
        compiled(math.inf)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy(name, kind):
    """PyTorch's compiler takes them for arrays, so that a graph breaks there."""
    function = NUMBERS[name]
    for run in (function, torch.compile(function, backend="aot_eager")):
        assert torch.equal(run(kind(2)), function(2.0))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(kind(2))


DEFAULTS = {
    **dict.fromkeys(("curv", "logit_scale", "part_logit_scale", "part_whole_logit_scale"), 1.0),
    **{"aperture_scale": 1.0, "min_radius": 0.1, "margin": 0.0, "leak": 0.0, "offset": 0, "part_offset": 0},
    **{"inter_aperture_scale": 0.7, "intra_aperture_scale": 1.2},
    **{"entail_weight": 0.2, "calibration_weight": 10.0},
}
PUBLISHED = {"atmg_loss": {"curv": 0.1}, "uncha_loss": {"leak": 0.1}, "UNCHALoss": {"leak": 0.1}}


@pytest.mark.parametrize("module", [hk, objectives, retrieval])
def test_numbers_that_are_left_out(module):
    """One default of one name in all functions, but for those that a publication gives."""
    for name in module.__all__:
        if not callable(getattr(module, name)):
            continue
        for parameter in inspect.signature(getattr(module, name)).parameters.values():
            if type(parameter.default) in (int, float):
                expected = (DEFAULTS | PUBLISHED.get(name, {}))[parameter.name]
                assert parameter.default == expected, (name, parameter)


def test_modules_are_attributes_that_are_imported_when_used(monkeypatch):
    for name in hk._MODULES:
        monkeypatch.delattr(hk, name, raising=False)
        assert name in dir(hk), "for who completes a name with Tab"
        assert hk.__getattr__(name).__name__ == f"hypkernels.{name}"
    with pytest.raises(AttributeError, match="'hypkernels' has no attribute 'no_such_name'"):
        hk.no_such_name  # noqa: B018
