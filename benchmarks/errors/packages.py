"""The packages that are measured: what each calls our functions, and in which numbers it wants its input."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.errors.evaluate import Evaluator, by_jax, by_numpy, by_torch
from benchmarks.errors.truth import LOGIT_SCALE

SPACE = "space components, rounded once"
FULL = "full vectors: the same space components, and their time, rounded once"
BALL = "coordinates in the ball of curvature -c, rounded once; tangents at the origin are halved"

Function = Callable[..., Tensor]
Loaded = tuple[str, Mapping[str, Evaluator]]
"""A version and functions by our names."""


@dataclass(frozen=True)
class Options:
    """Where packages are that no registry has."""

    meru: Path | None = None


@dataclass(frozen=True)
class Package:
    """One of them.

    Attributes:
        name: in tables.
        coordinates: one of :data:`benchmarks.errors.regimes.COORDINATES`.
        load: the version and the functions, an ImportError if it is not there.
        install: how to get it.
        input: what it is given, in words.
        without: which of our functions it has not.
    """

    name: str
    coordinates: str
    load: Callable[[Options], Loaded]
    install: str
    input: str
    without: str = ""


def _cross_entropies(pairwise_dist: Callable[..., Tensor], x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """As the models of MERU's family compute their loss."""
    rows = torch.arange(len(x))
    logits = (-float(LOGIT_SCALE) * pairwise_dist(one, other, c) for one, other in ((x, y), (y, x)))
    return sum(F.cross_entropy(one, rows) for one in logits) / 2  # type: ignore[return-value]


def _hypkernels(options: Options) -> Loaded:
    import hypkernels as hk

    functions: dict[str, Function] = {
        "distance": hk.elementwise_dist,
        "exp_map0": hk.exp_map0,
        "log_map0": hk.log_map0,
        "half_aperture": hk.half_aperture,
        "exterior_angle": hk.oxy_angle,
        "contrastive_loss": lambda x, y, c: hk.contrastive_loss(x, y, c, float(LOGIT_SCALE)),
    }
    return _version("hysac"), {name: by_torch(one) for name, one in functions.items()}


def _meru(options: Options) -> Loaded:
    if options.meru is None:
        raise ImportError("no --meru was given")
    module = _module_of(options.meru)
    functions: dict[str, Function] = {
        "distance": lambda x, y, c: module.pairwise_dist(x, y, c).diagonal(),
        "exp_map0": module.exp_map0,
        "log_map0": module.log_map0,
        "half_aperture": module.half_aperture,
        "exterior_angle": module.oxy_angle,
        "contrastive_loss": partial(_cross_entropies, module.pairwise_dist),
    }
    digest = hashlib.sha256(options.meru.read_bytes()).hexdigest()[:12]
    return f"lorentz.py, SHA-256 {digest}", {name: by_torch(one) for name, one in functions.items()}


def _geoopt_lorentz(options: Options) -> Loaded:
    import geoopt

    functions: dict[str, Function] = {
        "distance": lambda x, y, c: geoopt.Lorentz(k=1 / c).dist(x, y),
        "exp_map0": lambda v, c: geoopt.Lorentz(k=1 / c).expmap0(v),
        "log_map0": lambda x, c: geoopt.Lorentz(k=1 / c).logmap0(x),
    }
    return _version("geoopt"), {name: by_torch(one) for name, one in functions.items()}


def _geoopt_ball(options: Options) -> Loaded:
    import geoopt

    functions: dict[str, Function] = {
        # Its constructor writes to a tensor that it is given.
        "distance": lambda x, y, c: geoopt.PoincareBall(c=c.clone()).dist(x, y),
        "exp_map0": lambda v, c: geoopt.PoincareBall(c=c.clone()).expmap0(v),
        "log_map0": lambda x, c: geoopt.PoincareBall(c=c.clone()).logmap0(x),
    }
    return _version("geoopt"), {name: by_torch(one) for name, one in functions.items()}


def _ours_for_geoopt(kind: str, options: Options) -> Loaded:
    from hypkernels.compat import geoopt as ours

    def manifold(c: Tensor) -> Any:
        return ours.Lorentz(k=1 / c) if kind == "Lorentz" else ours.PoincareBall(c=c)

    functions: dict[str, Function] = {
        "distance": lambda x, y, c: manifold(c).dist(x, y),
        "exp_map0": lambda v, c: manifold(c).expmap0(v),
        "log_map0": lambda x, c: manifold(c).logmap0(x),
    }
    if kind == "Lorentz":
        functions |= {
            "half_aperture": lambda x, c: manifold(c).half_aperture(x),
            "exterior_angle": lambda x, y, c: manifold(c).exterior_angle(x, y),
        }
    return _version("hysac"), {name: by_torch(one) for name, one in functions.items()}


def _hypll(options: Options) -> Loaded:
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.tensors import ManifoldTensor, TangentTensor

    def ball(c: Tensor) -> Any:
        # Its curvature is float32 whatever it is made of, until the manifold is converted.
        return PoincareBall(Curvature(value=c, constraining_strategy=torch.nn.Identity())).to(c.dtype)

    def distance(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        manifold = ball(c)
        return manifold.dist(*(ManifoldTensor(one, manifold=manifold) for one in (x, y)))

    def exp_map0(v: Tensor, c: Tensor) -> Tensor:
        manifold = ball(c)
        return manifold.expmap(TangentTensor(v, manifold=manifold)).tensor

    def log_map0(x: Tensor, c: Tensor) -> Tensor:
        manifold = ball(c)
        return manifold.logmap(None, ManifoldTensor(x, manifold=manifold)).tensor

    functions: dict[str, Function] = {"distance": distance, "exp_map0": exp_map0, "log_map0": log_map0}
    return _version("hypll"), {name: by_torch(one) for name, one in functions.items()}


def _hyperbolix(kind: str, options: Options) -> Loaded:
    import jax
    from hyperbolix import manifolds

    jax.config.update("jax_enable_x64", True)

    def of(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            *points, c = arguments
            return getattr(getattr(manifolds, kind)(dtype=points[0].dtype), name)(*points, c)

        return call

    names = {"distance": "dist", "exp_map0": "expmap_0", "log_map0": "logmap_0"}
    version = f"{_version('hyperbolix')} with JAX {_version('jax')}"
    return version, {ours: by_jax(of(theirs)) for ours, theirs in names.items()}


def _hype_hyps(options: Options) -> Loaded:
    from HyperbolicSVDD.source import SVDD

    functions: dict[str, Function] = {
        "distance": SVDD.elementwise_dist,
        "exp_map0": SVDD.exp_map0,
        "log_map0": SVDD.log_map0,
        "half_aperture": SVDD.half_aperture,
        "exterior_angle": SVDD.oxy_angle,
    }
    return _version("hype-hyps"), {name: by_torch(one) for name, one in functions.items()}


def _hyper_models(options: Options) -> Loaded:
    from hyper3_clip.models import lorentz

    functions: dict[str, Function] = {
        "distance": lorentz.paired_dist,
        "exp_map0": lambda v, c: lorentz.exp_map0(v[:, 1:], c),
        "log_map0": lambda x, c: F.pad(lorentz.log_map0(x, c), (1, 0)),
        "half_aperture": lorentz.half_aperture,
        "exterior_angle": lambda x, y, c: lorentz.oxy_angle(y, x, c),
        "contrastive_loss": partial(_cross_entropies, lorentz.pairwise_dist),
    }
    return _version("hyper-models"), {name: by_torch(one) for name, one in functions.items()}


def _hyperview(options: Options) -> Loaded:
    from hyperview.storage import metrics

    def distance(x: Any, y: Any, curv: float) -> list[float]:
        pairs = zip(x, y, strict=True)
        return [
            metrics.pairwise_embedding_distances(one, other[None], metric="hyperboloid", curvature=curv)[0]
            for one, other in pairs
        ]

    return _version("hyperview"), {"distance": by_numpy(distance)}


def _module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_lorentz", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(this checkout)"


NO_CONES = "cones and losses"

PACKAGES = (
    Package("hypkernels", "space", _hypkernels, "pip install hysac", SPACE),
    Package("MERU", "space", _meru, "give --meru the path of its lorentz.py", SPACE),
    Package("geoopt Lorentz", "full", _geoopt_lorentz, "pip install geoopt", FULL, NO_CONES),
    Package("geoopt PoincareBall", "ball", _geoopt_ball, "pip install geoopt", BALL, NO_CONES),
    Package(
        "hypkernels.compat.geoopt Lorentz",
        "full",
        partial(_ours_for_geoopt, "Lorentz"),
        "pip install 'hysac[geoopt]'",
        FULL,
        "a contrastive loss",
    ),
    Package(
        "hypkernels.compat.geoopt PoincareBall",
        "ball",
        partial(_ours_for_geoopt, "PoincareBall"),
        "pip install 'hysac[geoopt]'",
        BALL,
        NO_CONES,
    ),
    Package("hypll PoincareBall", "ball", _hypll, "pip install hypll", BALL, NO_CONES),
    Package(
        "hyperbolix Hyperboloid",
        "full",
        partial(_hyperbolix, "Hyperboloid"),
        "pip install hyperbolix, with Python 3.12",
        FULL,
        NO_CONES,
    ),
    Package(
        "hyperbolix Poincare",
        "ball",
        partial(_hyperbolix, "Poincare"),
        "pip install hyperbolix, with Python 3.12",
        BALL,
        NO_CONES,
    ),
    Package("hype-hyps", "space", _hype_hyps, "pip install hype-hyps", SPACE, "a contrastive loss"),
    Package("hyper-models", "full", _hyper_models, "pip install hyper-models", FULL),
    Package("HyperView", "full", _hyperview, "pip install hyperview", FULL, "maps, cones, losses, gradients"),
)
