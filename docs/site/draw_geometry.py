"""``python docs/site/draw_geometry.py`` draws the pictures of docs/geometry.md.

They show points of the plane, D = 2, of curvature -1, computed by hypkernels. Needs the extra ``plot``.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import hypkernels as hk
from hypkernels.conventions import lorentz_to_ball

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Arc

IMAGES = Path(__file__).parents[1] / "images"
MIN_RADIUS = 0.1
INK, BLUE, ORANGE, GREY = "#222222", "#0072b2", "#d55e00", "#999999"
STYLE = {
    "svg.fonttype": "none",  # letters stay text
    "svg.hashsalt": "geometry",  # the same file every time
    "font.family": "sans-serif",
    "font.size": 9,
    "lines.linewidth": 1.4,
}


def point(distance: float, degrees: float) -> Tensor:
    """At a distance from the origin, in a direction."""
    angle = math.radians(degrees)
    return hk.exp_map0(distance * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64))


def ray(start: Tensor, angle: float, lengths: Tensor) -> Tensor:
    """Points on the geodesic that leaves ``start`` at an angle to the direction away from the origin."""
    outward = start / start.norm() * (1 + start.square().sum()).sqrt()  # of length 1 in the tangent space
    across = torch.stack([-start[1], start[0]]) / start.norm()
    direction = math.cos(angle) * outward + math.sin(angle) * across
    return hk.exp_map(start.expand(len(lengths), 2), lengths[:, None] * direction)


def geodesic(start: Tensor, end: Tensor) -> Tensor:
    shares = torch.linspace(0, 1, 20, dtype=torch.float64)
    return hk.exp_map(start.expand(20, 2), shares[:, None] * hk.log_map(start, end))


def disk(axes: Axes) -> None:
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, linewidth=1))
    axes.set_aspect("equal")
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.axis("off")
    axes.plot(0, 0, "o", color=INK, markersize=3)
    axes.annotate("O", (0, 0), (-9, -10), textcoords="offset points")


def draw(axes: Axes, points: Tensor, color: str, style: str = "-") -> None:
    ball = lorentz_to_ball(points)
    axes.plot(ball[:, 0].numpy(), ball[:, 1].numpy(), style, color=color)


def mark(axes: Axes, at: Tensor, name: str, color: str, offset: tuple[float, float] = (5, -12)) -> None:
    x, y = lorentz_to_ball(at).tolist()
    axes.plot(x, y, "o", color=color, markersize=4)
    axes.annotate(name, (x, y), offset, textcoords="offset points", color=color)


def cone(axes: Axes, apex: Tensor, color: str) -> None:
    """The cone at ``apex``: its edges, and the area between them."""
    width = float(hk.half_aperture(apex, min_radius=MIN_RADIUS))
    lengths = torch.linspace(0, 6, 30, dtype=torch.float64)
    edges = [lorentz_to_ball(ray(apex, sign * width, lengths)) for sign in (1, -1)]
    middle = math.atan2(float(apex[1]), float(apex[0]))
    ends = [math.atan2(float(edge[-1, 1]), float(edge[-1, 0])) - middle for edge in edges]
    ends = [middle + math.remainder(end, math.tau) for end in ends]
    arc = torch.linspace(ends[0], ends[1], 30, dtype=torch.float64)
    rim = torch.stack([arc.cos(), arc.sin()], dim=1)
    area = torch.cat([edges[0], rim, edges[1].flip(0)]).numpy()
    axes.fill(area[:, 0], area[:, 1], color=color, alpha=0.15, linewidth=0)
    for edge in edges:
        axes.plot(edge[:, 0].numpy(), edge[:, 1].numpy(), color=color)


def hyperboloid() -> plt.Figure:
    """The line of space, the hyperbola over it, and the ball that a point is projected to."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6))
    space = torch.linspace(-2.2, 2.2, 60, dtype=torch.float64)
    axes.plot(space.numpy(), (1 + space.square()).sqrt().numpy(), color=BLUE)
    tangent = torch.tensor([[1.15]], dtype=torch.float64)
    x = hk.exp_map0(tangent).item()
    time = math.sqrt(1 + x * x)
    ball = lorentz_to_ball(torch.tensor([x], dtype=torch.float64)).item()
    axes.plot([-1, 1], [0, 0], color=ORANGE, linewidth=3, solid_capstyle="butt")
    axes.plot([0, x], [-1, time], "--", color=GREY, linewidth=1)
    axes.plot([x, x], [0, time], ":", color=INK, linewidth=1)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.annotate("", (tangent.item(), 1), (0, 1), arrowprops={"arrowstyle": "->", "color": INK})
    at = ((0, 1), (x, time), (ball, 0), (x, 0), (0, -1))
    for (across, up), color in zip(at, (INK, BLUE, ORANGE, INK, GREY), strict=True):
        axes.plot(across, up, "o", color=color, markersize=4)
    axes.annotate("O", (0, 1), (-12, -12), textcoords="offset points")
    axes.annotate("v", (tangent.item(), 1), (-8, -12), textcoords="offset points")
    axes.annotate("exp_map0(v)", (x, time), (6, -4), textcoords="offset points", color=BLUE)
    axes.annotate("x, its space component", (x, 0), (5, 4), textcoords="offset points")
    axes.annotate("the point of the ball", (ball, 0), (-36, -13), textcoords="offset points", color=ORANGE)
    axes.annotate("-1 / sqrt(c)", (0, -1), (6, -3), textcoords="offset points", color=GREY)
    axes.set_xlim(-2.2, 3.4)
    axes.set_ylim(-1.2, 2.5)
    axes.set_xlabel("space")
    axes.set_ylabel("time")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def cones() -> plt.Figure:
    """Cones of three points: the farther from the origin, the narrower."""
    figure, axes = plt.subplots(figsize=(3.8, 3.8))
    disk(axes)
    for distance, degrees, color, offset in (
        (0.3, 195, INK, (-24, 14)),
        (0.7, 285, ORANGE, (8, -4)),
        (1.5, 40, BLUE, (-98, -3)),
    ):
        apex = point(distance, degrees)
        cone(axes, apex, color)
        half = math.degrees(float(hk.half_aperture(apex, min_radius=MIN_RADIUS)))
        mark(axes, apex, f"{distance} from O: {half:.0f}°", color, offset)
    return figure


def entailment() -> plt.Figure:
    """A point inside a cone and one outside, with the exterior angle of each."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    disk(axes)
    x = point(0.55, 0)
    cone(axes, x, BLUE)
    draw(axes, ray(x, 0.0, torch.linspace(0, 6, 2, dtype=torch.float64)), GREY, ":")
    draw(axes, geodesic(torch.zeros(2, dtype=torch.float64), x), INK)
    half = float(hk.half_aperture(x, min_radius=MIN_RADIUS))
    told = [f"half-aperture at x: {math.degrees(half):.0f}°"]
    for y, name, color, size in ((point(2.0, -9), "y", BLUE, 0.34), (point(1.6, 58), "z", ORANGE, 0.22)):
        draw(axes, geodesic(x, y), color)
        mark(axes, y, name, color)
        angle = float(hk.oxy_angle(x, y))
        turn = math.copysign(math.degrees(angle), float(y[1]))
        start = lorentz_to_ball(x).tolist()
        axes.add_patch(Arc(start, size, size, theta1=min(0, turn), theta2=max(0, turn), color=color))
        told.append(f"to {name}: {math.degrees(angle):.0f}°, loss {max(0.0, angle - half):.2f}")
    mark(axes, x, "x", INK, (-4, -13))
    axes.text(-0.62, -0.62, "\n".join(told), color=INK)
    return figure


def main() -> None:
    with plt.rc_context(STYLE):
        for picture in (hyperboloid, cones, entailment):
            path = IMAGES / f"geometry-{picture.__name__}.svg"
            picture().savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
            print(path)


if __name__ == "__main__":
    main()
