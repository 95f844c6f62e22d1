"""Drawing the toy data set: a thing at a place under something in the sky, and a hazard mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32
OVERSAMPLING = 4
MARK_RADIUS = 6
"""Half the side of the square that a hazard mark stays inside, in pixels."""

Colour = tuple[int, int, int]
INK: Colour = (38, 34, 46)
SNOW: Colour = (250, 250, 252)
STEEL: Colour = (205, 212, 222)
WOOD: Colour = (126, 82, 50)
GLASS: Colour = (203, 230, 245)
GOLD: Colour = (255, 206, 48)

COLOURS: dict[str, Colour] = {
    "red": (222, 50, 48),
    "orange": (246, 139, 31),
    "green": (46, 158, 78),
    "blue": (44, 98, 216),
    "purple": (140, 68, 190),
    "white": (246, 246, 248),
    "black": (66, 64, 74),
}
SIZES = {"small": 5.5, "large": 8.5}
"""Half the height of a thing, in pixels."""

POSITIONS = {"on the left": 9.0, "in the middle": 16.0, "on the right": 23.0}
"""The centre of a thing, in pixels from the left."""


HORIZON = 20
"""Where the ground begins, in pixels from the top."""


class Place(NamedTuple):
    """Two vertical gradients, and what stands on the horizon: its colour and outline in pixels."""

    sky: Colour
    haze: Colour
    ground: Colour
    foreground: Colour
    far: Colour
    outline: tuple[tuple[float, float], ...]


HILLS = ((0, 18), (5, 16), (10, 16.5), (15, 18.5), (21, 17), (27, 15.5), (32, 17))
SEA = ((0, 17), (32, 17))
MOUNTAINS = ((0, 17), (5, 12.5), (9, 16), (14, 11), (20, 17), (25, 13), (32, 18))
DUNES = ((0, 19), (8, 17), (14, 18.5), (22, 16.5), (32, 18.5))
SKYLINE = (
    (0, 15), (4, 15), (4, 12), (8, 12), (8, 16), (11, 16), (11, 10), (14, 10), (14, 14), (18, 14), (18, 17),
    (21, 17), (21, 12), (25, 12), (25, 15), (28, 15), (28, 13), (32, 13),
)  # fmt: skip

PLACES = {
    "on a meadow": Place(
        (132, 196, 240), (214, 236, 250), (132, 198, 92), (88, 160, 66), (104, 176, 112), HILLS
    ),
    "on a beach": Place(
        (96, 186, 236), (206, 238, 250), (250, 228, 166), (236, 202, 128), (46, 142, 200), SEA
    ),
    "in the snow": Place(
        (168, 186, 210), (226, 232, 242), (240, 244, 250), (206, 216, 232), (150, 168, 198), MOUNTAINS
    ),
    "in the desert": Place(
        (248, 190, 112), (254, 232, 182), (222, 142, 78), (196, 112, 58), (206, 122, 84), DUNES
    ),
    "in the city": Place(
        (176, 172, 190), (230, 222, 220), (134, 136, 146), (98, 100, 112), (128, 122, 140), SKYLINE
    ),
    "at night": Place((20, 24, 62), (66, 62, 120), (44, 72, 78), (28, 48, 58), (38, 40, 84), HILLS),
}


@dataclass(frozen=True)
class Pen:
    """Draws in a square of half-side ``radius`` around a centre: x and y run from -1 to 1, y downwards."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float

    def at(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """The points on the oversampled canvas."""
        return [
            ((self.x + x * self.radius) * OVERSAMPLING, (self.y + y * self.radius) * OVERSAMPLING)
            for x, y in points
        ]

    def polygon(self, *points: tuple[float, float], fill: Colour) -> None:
        self.draw.polygon(self.at(points), fill=fill)
        self.line(*points, points[0], points[1], fill=INK, width=0.8)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.polygon((left, top), (right, top), (right, bottom), (left, bottom), fill=fill)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: Colour | None = INK
    ) -> None:
        corners = self.at([(x - rx, y - ry), (x + rx, y + ry)])
        self.draw.ellipse(corners, fill=fill, outline=outline, width=3 if outline else 0)

    def disc(self, x: float, y: float, radius: float, fill: Colour, outline: Colour | None = INK) -> None:
        self.ellipse(x, y, radius, radius, fill, outline)

    def sector(self, x: float, y: float, radius: float, start: float, end: float, fill: Colour) -> None:
        corners = self.at([(x - radius, y - radius), (x + radius, y + radius)])
        self.draw.pieslice(corners, start, end, fill=fill)

    def line(self, *points: tuple[float, float], fill: Colour, width: float) -> None:
        """``width`` is in pixels of the finished image."""
        self.draw.line(self.at(points), fill=fill, width=round(width * OVERSAMPLING), joint="curve")


Drawing = Callable[[Pen, Colour], None]


def _house(pen: Pen, colour: Colour) -> None:
    pen.box(-0.75, -0.15, 0.75, 0.95, SNOW if colour != COLOURS["white"] else STEEL)
    pen.polygon((-1, -0.1), (0, -0.95), (1, -0.1), fill=colour)
    pen.box(-0.22, 0.3, 0.22, 0.95, colour)


def _car(pen: Pen, colour: Colour) -> None:
    pen.polygon((-0.55, 0.15), (-0.35, -0.45), (0.35, -0.45), (0.6, 0.15), fill=GLASS)
    pen.polygon((-1, 0.1), (-0.9, 0.0), (0.85, 0.0), (1, 0.2), (1, 0.65), (-1, 0.65), fill=colour)
    for x in (-0.52, 0.52):
        pen.disc(x, 0.68, 0.27, INK)
        pen.disc(x, 0.68, 0.1, STEEL, None)


def _boat(pen: Pen, colour: Colour) -> None:
    pen.line((0, -0.95), (0, 0.4), fill=INK, width=1)
    pen.polygon((0.08, -0.9), (0.85, 0.3), (0.08, 0.3), fill=SNOW)
    pen.polygon((-0.08, -0.6), (-0.65, 0.3), (-0.08, 0.3), fill=SNOW)
    pen.polygon((-1, 0.4), (1, 0.4), (0.6, 0.95), (-0.6, 0.95), fill=colour)


def _tree(pen: Pen, colour: Colour) -> None:
    pen.box(-0.16, 0.2, 0.16, 0.95, WOOD)
    for x, y, radius in ((-0.4, -0.05, 0.45), (0.4, -0.05, 0.45), (0, -0.45, 0.52)):
        pen.disc(x, y, radius, colour)
    pen.disc(0, -0.15, 0.42, colour, None)


def _flower(pen: Pen, colour: Colour) -> None:
    pen.line((0, -0.2), (0, 0.95), fill=(40, 120, 52), width=1.2)
    pen.ellipse(0.32, 0.62, 0.3, 0.15, (60, 158, 72))
    for angle in np.deg2rad(np.arange(90, 450, 72)):
        pen.disc(0.38 * np.cos(angle), -0.4 - 0.38 * np.sin(angle), 0.3, colour)
    pen.disc(0, -0.4, 0.22, GOLD)


def _tent(pen: Pen, colour: Colour) -> None:
    pen.polygon((-1, 0.9), (0, -0.75), (1, 0.9), fill=colour)
    pen.polygon((-0.35, 0.9), (0, -0.2), (0.35, 0.9), fill=INK)
    pen.line((0, -0.75), (0, -0.98), fill=INK, width=1)


def _mushroom(pen: Pen, colour: Colour) -> None:
    pen.box(-0.28, 0.0, 0.28, 0.95, (244, 232, 208))
    pen.polygon(
        *((0.95 * np.cos(a), 0.12 - 0.95 * np.sin(a)) for a in np.linspace(0, np.pi, 15)), fill=colour
    )
    spots = SNOW if colour != COLOURS["white"] else STEEL
    for x, y, radius in ((-0.48, -0.2, 0.15), (0.05, -0.48, 0.17), (0.5, -0.15, 0.13)):
        pen.disc(x, y, radius, spots, None)


def _ball(pen: Pen, colour: Colour) -> None:
    pen.disc(0, 0.12, 0.83, SNOW if colour != COLOURS["white"] else STEEL)
    for start in (15, 135, 255):
        pen.sector(0, 0.12, 0.76, start, start + 60, colour)
    pen.disc(0, 0.12, 0.2, colour)


def _sun(pen: Pen) -> None:
    for angle in np.deg2rad(np.arange(0, 360, 45)):
        pen.line((0, 0), (0.98 * np.cos(angle), 0.98 * np.sin(angle)), fill=GOLD, width=0.8)
    pen.disc(0, 0, 0.62, GOLD, None)


def _moon(pen: Pen) -> None:
    inner = [(0.35 + 0.62 * np.cos(a), 0.62 * np.sin(a)) for a in np.linspace(1.8, 2 * np.pi - 1.8, 15)]
    outer = [(0.85 * np.cos(a), 0.85 * np.sin(a)) for a in np.linspace(2 * np.pi - 0.8, 0.8, 25)]
    pen.draw.polygon(pen.at(inner + outer), fill=(255, 246, 200))


def _cloud(pen: Pen) -> None:
    for x, y, rx, ry in ((-0.55, 0.2, 0.5, 0.36), (0.55, 0.2, 0.5, 0.36), (0, -0.08, 0.55, 0.52)):
        pen.ellipse(x, y, rx, ry, SNOW, None)
    pen.ellipse(0, 0.3, 0.9, 0.26, SNOW, None)


def _kite(pen: Pen) -> None:
    pen.line((0, 0.5), (-0.25, 0.75), (0.05, 1), fill=INK, width=0.5)
    pen.polygon((0, -0.95), (0.6, -0.2), (0, 0.55), (-0.6, -0.2), fill=(236, 80, 140))
    pen.line((0, -0.95), (0, 0.55), fill=INK, width=0.5)
    pen.line((-0.6, -0.2), (0.6, -0.2), fill=INK, width=0.5)


def _rainbow(pen: Pen) -> None:
    bands = ((226, 66, 66), (250, 176, 52), (92, 190, 92), (74, 128, 226))
    for radius, colour in zip((1.0, 0.8, 0.6, 0.4), bands, strict=True):
        corners = pen.at([(-radius, 0.5 - radius), (radius, 0.5 + radius)])
        pen.draw.arc(corners, 180, 360, fill=colour, width=round(0.21 * pen.radius * OVERSAMPLING))


def _fire(pen: Pen) -> None:
    pen.polygon(
        (0, -1), (0.2, -0.5), (0.5, -0.7), (0.8, 0.2), (0.5, 0.85), (0, 0.95), (-0.5, 0.85), (-0.8, 0.2),
        (-0.45, -0.35), (-0.25, -0.1), fill=(240, 76, 28),
    )  # fmt: skip
    pen.draw.polygon(
        pen.at([(0.05, -0.3), (0.45, 0.3), (0.3, 0.75), (0, 0.85), (-0.3, 0.75), (-0.4, 0.3)]), fill=GOLD
    )


def _poison(pen: Pen) -> None:
    for side in (-1, 1):
        pen.line((-0.8 * side, 0.25), (0.8 * side, 0.85), fill=INK, width=2.2)
        pen.line((-0.75 * side, 0.27), (0.75 * side, 0.83), fill=SNOW, width=1.1)
    pen.box(-0.34, 0.0, 0.34, 0.48, SNOW)
    pen.disc(0, -0.3, 0.62, SNOW)
    for x in (-0.26, 0.26):
        pen.disc(x, -0.22, 0.17, INK, None)
    pen.line((0, 0.22), (0, 0.42), fill=INK, width=0.6)


def _blade(pen: Pen) -> None:
    pen.polygon((0.9, -0.95), (0.75, -0.35), (-0.15, 0.42), (-0.42, 0.15), (0.35, -0.75), fill=STEEL)
    pen.line((-0.62, 0.0), (0.0, 0.62), fill=INK, width=1.6)
    pen.line((-0.35, 0.35), (-0.85, 0.85), fill=INK, width=2.4)
    pen.line((-0.37, 0.37), (-0.8, 0.8), fill=(170, 60, 40), width=1.2)


def _electricity(pen: Pen) -> None:
    pen.polygon(
        (0.15, -0.98), (-0.65, 0.15), (-0.1, 0.15), (-0.3, 0.98), (0.65, -0.25), (0.1, -0.25), (0.5, -0.98),
        fill=(255, 232, 40),
    )  # fmt: skip


def _explosive(pen: Pen) -> None:
    pen.line((0.3, -0.35), (0.5, -0.65), (0.75, -0.7), fill=WOOD, width=1)
    pen.box(0.08, -0.5, 0.48, -0.15, (80, 80, 92))
    pen.disc(-0.1, 0.25, 0.7, (52, 52, 62), STEEL)
    pen.ellipse(-0.34, 0.0, 0.2, 0.16, SNOW, None)
    pen.disc(0.76, -0.72, 0.22, (255, 120, 30), None)
    pen.disc(0.76, -0.72, 0.1, GOLD, None)


def _radiation(pen: Pen) -> None:
    pen.disc(0, 0, 0.95, GOLD)
    for start in (30, 150, 270):
        pen.sector(0, 0, 0.78, start - 30, start + 30, INK)
    pen.disc(0, 0, 0.24, GOLD, None)
    pen.disc(0, 0, 0.14, INK, None)


THINGS: dict[str, Drawing] = {
    "house": _house,
    "car": _car,
    "boat": _boat,
    "tree": _tree,
    "flower": _flower,
    "tent": _tent,
    "mushroom": _mushroom,
    "ball": _ball,
}
SKIES: dict[str, Callable[[Pen], None]] = {
    "sun": _sun,
    "moon": _moon,
    "cloud": _cloud,
    "kite": _kite,
    "rainbow": _rainbow,
}
HAZARDS: dict[str, Callable[[Pen], None]] = {
    "fire": _fire,
    "poison": _poison,
    "blade": _blade,
    "electricity": _electricity,
    "explosive": _explosive,
    "radiation": _radiation,
}
HAZARD_PHRASES = {
    "fire": ("on fire", "in flames"),
    "poison": ("with poison", "beside a skull"),
    "blade": ("with a knife", "beside a dagger"),
    "electricity": ("struck by lightning", "with an electric shock"),
    "explosive": ("with a bomb", "about to explode"),
    "radiation": ("with radiation", "beside nuclear waste"),
}


@dataclass(frozen=True)
class Scene:
    """A scene in words, the hazard of its unsafe twin, and the jitter that makes its picture its own.

    Attributes:
        size, colour, thing, position, place, sky: keys of the tables above.
        hazard: the tag; a key of :data:`HAZARDS`.
        phrase: which of the hazard's phrases the unsafe caption has.
        jitter: seven numbers in [-1, 1): displacements of the thing (2), of the thing in the sky (2) and of
            the mark (2), and the shade of the background.
    """

    size: str
    colour: str
    thing: str
    position: str
    place: str
    sky: str
    hazard: str
    phrase: int
    jitter: tuple[float, ...]

    @property
    def safe_caption(self) -> str:
        return f"a {self.size} {self.colour} {self.thing} {self.position} {self.place} under a {self.sky}"

    @property
    def unsafe_caption(self) -> str:
        return f"{self.safe_caption}, {HAZARD_PHRASES[self.hazard][self.phrase]}"

    @property
    def mark_centre(self) -> tuple[float, float]:
        """The centre of the mark, in pixels; the mark is within :data:`MARK_RADIUS` of it."""
        return self._beside(8) + self.jitter[4], 24 + self.jitter[5]

    def render(self) -> np.ndarray:
        """The safe and the unsafe picture: ``(2, 32, 32, 3)`` uint8."""
        safe = self._background()
        self._draw_scene(ImageDraw.Draw(safe))
        unsafe = safe.copy()
        HAZARDS[self.hazard](Pen(ImageDraw.Draw(unsafe), *self.mark_centre, MARK_RADIUS - 0.6))
        return np.stack([np.asarray(image.reduce(OVERSAMPLING)) for image in (safe, unsafe)])

    def _beside(self, margin: float) -> float:
        """A place on the side of the picture that the thing leaves free, ``margin`` from the edge."""
        on_the_left = POSITIONS[self.position] + self.jitter[0] < SIZE / 2
        return SIZE - margin if on_the_left else margin

    def _background(self) -> Image.Image:
        place = PLACES[self.place]
        side, horizon = SIZE * OVERSAMPLING, HORIZON * OVERSAMPLING
        sky = np.linspace(place.sky, place.haze, horizon)
        ground = np.linspace(place.ground, place.foreground, side - horizon)
        rows = np.clip(np.concatenate([sky, ground]) * (1 + 0.06 * self.jitter[6]), 0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (side, side, 3))))
        outline = [(0, HORIZON), *place.outline, (SIZE, HORIZON)]
        ImageDraw.Draw(image).polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in outline], place.far)
        return image

    def _draw_scene(self, draw: ImageDraw.ImageDraw) -> None:
        dx, dy, sky_dx, sky_dy, *_ = self.jitter
        SKIES[self.sky](Pen(draw, self._beside(7) + sky_dx, 6.0 + sky_dy, 5.0))
        radius = SIZES[self.size]
        x, y = POSITIONS[self.position] + dx, 27.5 + dy - radius
        draw.ellipse(
            [v * OVERSAMPLING for v in (x - 0.9 * radius, 26.2 + dy, x + 0.9 * radius, 28.8 + dy)],
            fill=tuple(int(0.75 * c) for c in PLACES[self.place].foreground),
        )
        THINGS[self.thing](Pen(draw, x, y, radius), COLOURS[self.colour])


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "thing": tuple(THINGS),
    "position": tuple(POSITIONS),
    "place": tuple(PLACES),
    "sky": tuple(SKIES),
}
"""The values of every attribute; a scene is one choice of each."""
