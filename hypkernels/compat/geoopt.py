"""geoopt's ``Lorentz`` and ``PoincareBall`` with this library's formulas: ``pip install 'hysac[geoopt]'``.

``from hypkernels.compat.geoopt import Lorentz`` in place of ``from geoopt import Lorentz``: subclasses, with
the signatures of geoopt 0.5. Points are full vectors ``(..., D + 1)``, time first, on the hyperboloid
``<x, x>_L = -k`` of curvature ``-1/k``. geoopt's optimisers, ``ManifoldParameter``, ``ProductManifold`` and
``Scaled`` take the manifolds.

What changes:

- Points that are close to each other keep their distance and gradients.
- Everything is computed in float64 and rounded to the dtype of the points.
- ``dim`` works in every function that has it, and no argument is written to.
- Cones and pairwise functions, which geoopt lacks, are methods.

A function of points reads their space components and computes the time component from them. So its
gradient by the time component is 0. The Riemannian gradient, ``egrad2rgrad`` of it, does not depend on
this choice.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hypkernels import conventions, lorentz
from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import sqrt_or_0

try:
    import geoopt
    from geoopt.manifolds.base import ScalingInfo
    from geoopt.utils import size2shape
except ImportError as error:
    raise ImportError(
        f"hypkernels.compat.geoopt needs geoopt, pip install 'hysac[geoopt]': {error}"
    ) from error

__all__ = ["Lorentz", "PoincareBall"]

# A point of the ball is at least this many units in the last place within the boundary.
_ULPS_OF_BOUNDARY = 4
# The largest length of vectors, in units of the radius of curvature.
_LONGEST = 300.0


class Lorentz(geoopt.Lorentz):
    """The hyperboloid ``<x, x>_L = -k``, as :class:`geoopt.Lorentz`.

    Args:
        k: positive squared radius, a float or a tensor of one element, which is copied.
        learnable: whether ``k`` gets gradients.

    Raises:
        ValueError: ``k`` is not positive or has several elements.
    """

    __scaling__ = geoopt.Lorentz.__scaling__.copy()

    def __init__(self, k: float | Tensor = 1.0, learnable: bool = False) -> None:
        super().__init__(k=_copy_of("k", k), learnable=learnable)

    @property
    def curv(self) -> Tensor:
        """``1 / k``, float64: the curvature parameter of :mod:`hypkernels`."""
        return 1 / self.k.double()

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """Geodesic distance: :func:`hypkernels.elementwise_dist`."""
        points, others = _spaces(dim, x, y)
        distance = lorentz.elementwise_dist(points, others, self.curv)
        return _number(distance, points.dtype, keepdim, dim)

    @__scaling__(ScalingInfo(1))
    def dist0(self, x: Tensor, *, dim: int = -1, keepdim: bool = False) -> Tensor:
        """Geodesic distance to the origin: :func:`hypkernels.dist0`."""
        (points,) = _spaces(dim, x)
        return _number(lorentz.dist0(points, self.curv), x.dtype, keepdim, dim)

    @__scaling__(ScalingInfo(1))
    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance of every pair of ``(..., M, D + 1)`` and ``(..., N, D + 1)``, ``(..., M, N)``."""
        points, others = _spaces(-1, x, y)
        return lorentz.pairwise_dist(points, others, self.curv).to(points.dtype)

    @__scaling__(ScalingInfo.NotCompatible)
    def pairwise_inner(self, x: Tensor, y: Tensor) -> Tensor:
        """Lorentz inner product of every pair of ``(..., M, D + 1)`` and ``(..., N, D + 1)``."""
        points, others = _spaces(-1, x, y)
        return lorentz.pairwise_inner(points, others, self.curv).to(points.dtype)

    @__scaling__(ScalingInfo())
    def half_aperture(
        self, x: Tensor, *, min_radius: float = 0.1, keepdim: bool = False, dim: int = -1
    ) -> Tensor:
        """Half-aperture of the entailment cone of ``x``: :func:`hypkernels.half_aperture`."""
        (points,) = _spaces(dim, x)
        return _number(lorentz.half_aperture(points, self.curv, min_radius), x.dtype, keepdim, dim)

    @__scaling__(ScalingInfo())
    def exterior_angle(self, x: Tensor, y: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """Exterior angle at ``x`` in the triangle origin, ``x``, ``y``: :func:`hypkernels.oxy_angle`."""
        points, others = _spaces(dim, x, y)
        return _number(lorentz.oxy_angle(points, others, self.curv), points.dtype, keepdim, dim)

    @__scaling__(ScalingInfo())
    def pairwise_exterior_angle(self, x: Tensor, y: Tensor) -> Tensor:
        """:meth:`exterior_angle` of every pair of ``(..., M, D + 1)`` and ``(..., N, D + 1)``."""
        points, others = _spaces(-1, x, y)
        return lorentz.pairwise_oxy_angle(points, others, self.curv).to(points.dtype)

    def norm(self, u: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """``sqrt(<u, u>_L)`` of tangent vectors of any size; 0, with gradient 0, if ``<u, u>_L < 0``."""
        (vectors,) = _last(dim, u)
        wide = vectors.double()
        return _number(sqrt_or_0(_inner(wide, wide)), u.dtype, keepdim, dim)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False, dim: int = -1
    ) -> Tensor:
        """``<u, v>_L``; ``x`` is not used, as in geoopt."""
        first, second = _last(dim, u, u if v is None else v)
        return _number(_inner(first.double(), second.double()), first.dtype, keepdim, dim)

    def inner0(self, v: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """``<v, o>_L`` with the origin ``o``."""
        (vectors,) = _last(dim, v)
        return _number(-vectors[..., 0].double() * self.k.double().sqrt(), v.dtype, keepdim, dim)

    def projx(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """The point with the same space components."""
        (points,) = _spaces(dim, x)
        return self._full(points, dim)

    def proju(self, x: Tensor, v: Tensor, *, dim: int = -1) -> Tensor:
        """``v + <x, v>_L x / k``."""
        points, vectors = _last(dim, x, v)
        return self._projected(points, vectors).movedim(-1, dim)

    def egrad2rgrad(self, x: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """The Riemannian gradient from a Euclidean one. The argument is not written to."""
        points, grad = _last(dim, x, u)
        raised = torch.cat([-grad[..., :1], grad[..., 1:]], -1)
        return self._projected(points, raised).movedim(-1, dim)

    def expmap(
        self, x: Tensor, u: Tensor, *, norm_tan: bool = True, project: bool = True, dim: int = -1
    ) -> Tensor:
        """The end of the geodesic from ``x`` with velocity ``u``: :func:`hypkernels.exp_map`.

        With ``norm_tan`` vectors are made tangent first; without it, tangent vectors keep a few more
        digits. The result is always on the manifold, whatever ``project`` is.
        """
        points, vectors = _last(dim, x, u)
        vectors = self._projected(points, vectors) if norm_tan else vectors
        return self._full(lorentz.exp_map(points[..., 1:], vectors[..., 1:], self.curv), dim)

    retr = expmap

    @__scaling__(ScalingInfo(u=-1))
    def expmap0(self, u: Tensor, *, project: bool = True, dim: int = -1) -> Tensor:
        """:func:`hypkernels.exp_map0` of vectors at the origin, whose first component is 0."""
        (vectors,) = _spaces(dim, u)
        return self._full(lorentz.exp_map0(vectors, self.curv), dim)

    def logmap(self, x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
        """The velocity at ``x`` that leads to ``y``: :func:`hypkernels.log_map`."""
        points, others = _spaces(dim, x, y)
        return self._tangent(points, lorentz.log_map(points, others, self.curv), dim)

    @__scaling__(ScalingInfo(1))
    def logmap0(self, y: Tensor, *, dim: int = -1) -> Tensor:
        """:func:`hypkernels.log_map0`, with a first component of 0."""
        (points,) = _spaces(dim, y)
        return self._tangent(torch.zeros_like(points), lorentz.log_map0(points, self.curv), dim)

    def logmap0back(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """The velocity at ``x`` that leads to the origin."""
        (points,) = _spaces(dim, x)
        return self._tangent(points, lorentz.log_map(points, torch.zeros_like(points), self.curv), dim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor, *, dim: int = -1) -> Tensor:
        """Parallel transport of tangent vectors along the geodesic from ``x`` to ``y``."""
        points, others, vectors = _spaces(dim, x, y, v)
        return self._transported(points, others, vectors, dim)

    def transp0(self, y: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """:meth:`transp` from the origin."""
        points, vectors = _spaces(dim, y, u)
        return self._transported(torch.zeros_like(points), points, vectors, dim)

    def transp0back(self, x: Tensor, u: Tensor, *, dim: int = -1) -> Tensor:
        """:meth:`transp` to the origin."""
        points, vectors = _spaces(dim, x, u)
        return self._transported(points, torch.zeros_like(points), vectors, dim)

    @__scaling__(ScalingInfo(t=-1))
    def geodesic_unit(
        self, t: Tensor, x: Tensor, u: Tensor, *, dim: int = -1, project: bool = True
    ) -> Tensor:
        """The point at length ``t`` on the geodesic from ``x`` in the direction of the unit ``u``."""
        return self.expmap(x, t * u, norm_tan=False, dim=dim)

    @__scaling__(ScalingInfo(std=-1), "random")
    def random_normal(
        self,
        *size: Any,
        mean: float = 0,
        std: float = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> geoopt.ManifoldTensor:
        """Points whose logarithm at the origin is normal, each component with ``mean`` and ``std``.

        geoopt's own method ignores ``mean`` and ``std``.
        """
        shape = size2shape(*size)
        self._assert_check_shape(shape, "x")
        if dtype not in (None, self.k.dtype):
            raise ValueError(f"dtype must be that of the manifold, {self.k.dtype}, got {dtype}")
        if device is not None and torch.device(device) != self.k.device:
            raise ValueError(f"device must be that of the manifold, {self.k.device}, got {device}")
        tangent = torch.randn(shape, dtype=self.k.dtype, device=self.k.device) * std + mean
        tangent[..., 0] = 0
        return geoopt.ManifoldTensor(self.expmap0(tangent), manifold=self)

    random = random_normal

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, dim: int = -1
    ) -> tuple[bool, str | None]:
        """The tolerance is ``rtol`` of the squared time, as rounding is, wherever the point lies."""
        (points,) = _last(dim, x.double())
        error = (_inner(points, points) + self.k.double()).abs()
        ok = bool((error <= atol + rtol * points[..., 0].square()).all() & (points[..., 0] > 0).all())
        return ok, None if ok else f"'x' minkowski quadratic form is not equal to {-self.k.item()}"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, dim: int = -1
    ) -> tuple[bool, str | None]:
        points, vectors = _last(dim, x.double(), u.double())
        terms = (points * vectors).abs().sum(-1)
        ok = bool((_inner(points, vectors).abs() <= atol + rtol * terms).all())
        return ok, None if ok else "Minkowski inner product is not equal to zero"

    def _projected(self, points: Tensor, vectors: Tensor) -> Tensor:
        space = points[..., 1:].double()
        x = conventions.space_to_full(space, self.curv)
        wide = vectors.double()
        return (wide + _inner(x, wide).unsqueeze(-1) * x * self.curv).to(vectors.dtype)

    def _transported(self, x: Tensor, y: Tensor, v: Tensor, dim: int) -> Tensor:
        return self._tangent(y, _transported(x, y, v, self.curv).to(v.dtype), dim)

    def _full(self, space: Tensor, dim: int) -> Tensor:
        return conventions.space_to_full(space, self.curv).movedim(-1, dim)

    def _tangent(self, points: Tensor, vectors: Tensor, dim: int) -> Tensor:
        return conventions.tangent_to_full(points, vectors, self.curv).movedim(-1, dim)


class PoincareBall(geoopt.PoincareBall):
    """The ball of radius ``1/sqrt(c)`` and curvature ``-c``, as :class:`geoopt.PoincareBall`.

    Distances, exponential and logarithmic maps, parallel transport and the retraction are computed on
    the hyperboloid, in float64. Points may be as near to the boundary as their dtype allows; geoopt
    holds float32 points at 0.996 of the radius. Its gyrovector operations, ``mobius_*``, are inherited,
    with that bound.

    Args:
        c: positive, a float or a tensor of one element, which is copied.
        learnable: whether ``c`` gets gradients.

    Raises:
        ValueError: ``c`` is not positive or has several elements.
    """

    __scaling__ = geoopt.PoincareBall.__scaling__.copy()

    def __init__(self, c: float | Tensor = 1.0, learnable: bool = False) -> None:
        super().__init__(c=1.0, learnable=learnable)
        value = _copy_of("c", c).double().reshape(())  # near the boundary all digits of c count
        inverse_softplus = value + torch.log(-torch.expm1(-value))
        self.isp_c = torch.nn.Parameter(inverse_softplus, requires_grad=learnable)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """Geodesic distance."""
        points, others = _last(dim, x, y)
        distance = lorentz.elementwise_dist(self._lorentz(points), self._lorentz(others), self._curv)
        return _number(distance, points.dtype, keepdim, dim)

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False, dim: int = -1) -> Tensor:
        """The square of :meth:`dist`."""
        return self.dist(x, y, keepdim=keepdim, dim=dim) ** 2

    @__scaling__(ScalingInfo(1))
    def dist0(self, x: Tensor, *, dim: int = -1, keepdim: bool = False) -> Tensor:
        """Geodesic distance to the origin."""
        (points,) = _last(dim, x)
        return _number(lorentz.dist0(self._lorentz(points), self._curv), x.dtype, keepdim, dim)

    @__scaling__(ScalingInfo(1))
    def cdist(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance of every pair of ``(..., M, D)`` and ``(..., N, D)``, ``(..., M, N)``."""
        points, others = _last(-1, x, y)
        distance = lorentz.pairwise_dist(self._lorentz(points), self._lorentz(others), self._curv)
        return distance.to(points.dtype)

    def projx(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """Points outside of the ball are moved inside, as near to the boundary as their dtype allows."""
        (points,) = _last(dim, x.double())
        largest = (1 - _ULPS_OF_BOUNDARY * torch.finfo(x.dtype).eps) / self._curv.sqrt()
        norm = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        inside = torch.where(norm > largest, points * (largest / norm.clamp(min=largest)), points)
        return inside.to(x.dtype).movedim(-1, dim)

    def expmap(self, x: Tensor, u: Tensor, *, project: bool = True, dim: int = -1) -> Tensor:
        """The end of the geodesic from ``x`` with velocity ``u``, with ``project`` in the open ball."""
        points, vectors = _last(dim, x, u)
        start, velocity = self._lorentz(points), self._pushed(points, self._limited(points, vectors))
        end = lorentz.exp_map(start, velocity, self._curv)
        return self._ball(end, points.dtype, project, dim)

    retr = expmap

    @__scaling__(ScalingInfo(u=-1))
    def expmap0(self, u: Tensor, *, dim: int = -1, project: bool = True) -> Tensor:
        """:meth:`expmap` from the origin, where a vector's length is twice its Euclidean norm."""
        (vectors,) = _last(dim, u)
        velocity = 2 * self._limited(torch.zeros_like(vectors), vectors)
        return self._ball(lorentz.exp_map0(velocity, self._curv), u.dtype, project, dim)

    def logmap(self, x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
        """The velocity at ``x`` that leads to ``y``."""
        points, others = _last(dim, x, y)
        start = self._lorentz(points)
        velocity = lorentz.log_map(start, self._lorentz(others), self._curv)
        return self._pulled(start, velocity).to(points.dtype).movedim(-1, dim)

    @__scaling__(ScalingInfo(1))
    def logmap0(self, x: Tensor, *, dim: int = -1) -> Tensor:
        """:meth:`logmap` from the origin."""
        (points,) = _last(dim, x)
        return (lorentz.log_map0(self._lorentz(points), self._curv) / 2).to(x.dtype).movedim(-1, dim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor, *, dim: int = -1) -> Tensor:
        """Parallel transport along the geodesic from ``x`` to ``y``."""
        points, others, vectors = _last(dim, x, y, v)
        start, end = self._lorentz(points), self._lorentz(others)
        moved = _transported(start, end, self._pushed(points, vectors), self._curv)
        return self._pulled(end, moved).to(vectors.dtype).movedim(-1, dim)

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, dim: int = -1
    ) -> tuple[bool, str | None]:
        (points,) = _last(dim, x.double())
        ok = bool((self._curv * dot(points, points) < 1).all())
        return ok, None if ok else "'x' norm is not less than the radius 1/sqrt(c)"

    @property
    def _curv(self) -> Tensor:
        return self.c.double()

    def _lorentz(self, points: Tensor) -> Tensor:
        return conventions.ball_to_lorentz(points.double(), self._curv)

    def _ball(self, points: Tensor, dtype: torch.dtype, project: bool, dim: int) -> Tensor:
        rounded = conventions.lorentz_to_ball(points, self._curv).to(dtype)
        return (self.projx(rounded) if project else rounded).movedim(-1, dim)

    def _limited(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Float64 vectors, shortened where the hyperboloid leaves float64: the ball ends long before."""
        x, v, c = points.double(), vectors.double(), self._curv
        with torch.no_grad():
            length = 2 * c.sqrt() * torch.linalg.vector_norm(v, dim=-1, keepdim=True) / (1 - c * dot(x, x))
            factor = (_LONGEST / length).clamp(max=1)
        return factor * v

    def _pushed(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Tangent vectors of the ball as those of the hyperboloid."""
        x, v, c = points.double(), vectors.double(), self._curv
        inside = 1 - c * dot(x, x)
        return 2 / inside * v + 4 * c * (dot(x, v) / inside / inside) * x

    def _pulled(self, points: Tensor, vectors: Tensor) -> Tensor:
        """The inverse of :meth:`_pushed`, at points of the hyperboloid."""
        c = self._curv
        time = torch.sqrt(1 + c * dot(points, points))
        return vectors / (1 + time) - c * (dot(points, vectors) / time / (1 + time) ** 2) * points


def _copy_of(name: str, value: float | Tensor) -> Tensor:
    """A copy as a float32 or wider tensor of one positive element."""
    tensor = torch.as_tensor(value).detach().clone()
    tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
    if tensor.numel() != 1 or not tensor.item() > 0:
        raise ValueError(f"{name} must be one positive number, got {value!r}")
    return tensor


def _last(dim: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Plain tensors with the dimension of the vectors last, of the dtype that arithmetic would promote to."""
    dtype = reduce(torch.promote_types, (one.dtype for one in tensors))
    return tuple(one.as_subclass(Tensor).movedim(dim, -1).to(dtype) for one in tensors)


def _spaces(dim: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one[..., 1:] for one in _last(dim, *tensors))


def _number(values: Tensor, dtype: torch.dtype, keepdim: bool, dim: int) -> Tensor:
    rounded = values.to(dtype)
    return rounded.unsqueeze(-1).movedim(-1, dim) if keepdim else rounded


def _inner(u: Tensor, v: Tensor) -> Tensor:
    products = u * v
    return products[..., 1:].sum(-1) - products[..., 0]


def _transported(x: Tensor, y: Tensor, v: Tensor, curv: Tensor) -> Tensor:
    """Space components of ``v + <y, v>_L / (k - <x, y>_L) (x + y)``, float64, from those of all three.

    ``<y, v>_L`` is that of ``y - x``, since ``v`` is tangent at ``x``.
    """
    x, y, v = torch.broadcast_tensors(x.double(), y.double(), v.double())
    x_time, y_time = (torch.sqrt(1 / curv + dot(one, one)) for one in (x, y))
    apart = y - x
    time_apart = dot(apart, x + y) / (x_time + y_time)
    along = dot(apart, v) - time_apart * dot(x, v) / x_time
    inner = lorentz.elementwise_inner(x, y, curv).unsqueeze(-1)
    return v + along / (1 / curv - inner) * (x + y)
