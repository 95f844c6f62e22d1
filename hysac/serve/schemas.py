"""The requests and answers of the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from hysac.data.images import FORMATS
from hysac.data.manifest import MAX_CAPTION
from hysac.safety import DEFAULT_STATISTIC

MAX_ITEMS = 64
MAX_K = 100
MAX_STEPS = 32

Modality = Literal["image", "text"]
Searched = Literal["image", "text", "any"]


_NOT_BLANK = r"[^\s\x1c-\x1f\x85\uFEFF]"
"""A character that neither Python nor JSON Schema's regular expressions call a space."""


def _whole(value: Any) -> Any:
    """JSON's 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextItem(_Request):
    text: str = Field(
        min_length=1,
        max_length=min(10_000, MAX_CAPTION),
        pattern=_NOT_BLANK,
        examples=["a dog on a meadow"],
        description="a caption; a long one is read in windows, and the most unsafe of them counts",
    )


class ImageItem(_Request):
    image: str = Field(
        min_length=1,
        json_schema_extra={"format": "base64-image"},
        description=f"an image file in base64: {', '.join(FORMATS)}",
    )


def _kind(item: Any) -> str:
    return "image" if isinstance(item, ImageItem) or (isinstance(item, dict) and "image" in item) else "text"


_Kind = Discriminator(_kind)
Item = Annotated[Annotated[TextItem, Tag("text")] | Annotated[ImageItem, Tag("image")], _Kind]


class ScoreRequest(_Request):
    items: list[Item] = Field(min_length=1, max_length=MAX_ITEMS)


class HowRedirected(_Request):
    """How an unsafe query is redirected."""

    to: Literal["origin", "nearest-safe"] = Field(
        default="origin",
        description="towards the origin, to the bound of the safe class; or to the nearest item called safe",
    )
    statistic: Literal["low_05", "avg", "up_95"] = Field(
        default=DEFAULT_STATISTIC, description="of the safe class: the bound"
    )
    mode: Literal["geodesic", "paper"] = "geodesic"
    margin: float = Field(
        default=0.0, ge=-100, le=100, description="added to the bound; negative is stricter"
    )


class _SearchOptions(_Request):
    k: Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)] = 10
    modality: Searched | None = Field(
        None, description="what is searched; by default the other kind than the query's"
    )
    policy: Literal["as-asked", "redirect", "block"] = "as-asked"
    redirection: HowRedirected = HowRedirected()


class _RedirectOptions(_Request):
    modality: Searched | None = Field(None, description="whose safe class is the end; default as of a search")
    steps: Annotated[int, Field(ge=2, le=MAX_STEPS), BeforeValidator(_whole)] = 8
    redirection: HowRedirected = HowRedirected()


class TextSearch(_SearchOptions, TextItem):
    pass


class ImageSearch(_SearchOptions, ImageItem):
    pass


class TextRedirect(_RedirectOptions, TextItem):
    pass


class ImageRedirect(_RedirectOptions, ImageItem):
    pass


SearchRequest = Annotated[Annotated[TextSearch, Tag("text")] | Annotated[ImageSearch, Tag("image")], _Kind]
RedirectRequest = Annotated[
    Annotated[TextRedirect, Tag("text")] | Annotated[ImageRedirect, Tag("image")], _Kind
]


class ScoreOut(BaseModel):
    """How unsafe an item is."""

    modality: Modality
    distance: float = Field(description="to the origin; the farther out, the less safe")
    probability: float | None = Field(description="of being unsafe; null for a model without thresholds")
    decision: Literal["safe", "unsafe"] | None = Field(description="null for a model without thresholds")
    nearest_class: str | None = Field(description="null for a model without bounds")


class Scores(BaseModel):
    scores: list[ScoreOut] = Field(description="in the order of the items")


class Place(BaseModel):
    """A place in the Poincaré disk, of radius 1; geodesics to the root are straight lines to (0, 0)."""

    x: float = Field(ge=-1, le=1)
    y: float = Field(ge=-1, le=1)


class Hit(BaseModel):
    """An item of the index."""

    id: int
    distance: float = Field(description="from where the search started")
    score: ScoreOut
    place: Place
    text: str | None = Field(description="of a text")
    picture: str | None = Field(description="the path of an image's thumbnail")
    hidden: bool = Field(description="whether the thumbnail is blurred until `?reveal=true`")


class Found(BaseModel):
    query: ScoreOut
    place: Place = Field(description="of the query")
    blocked: bool
    moved: float = Field(description="how far the query was redirected")
    hits: list[Hit] = Field(description="the nearest first")


class StepOut(BaseModel):
    """A place on the way, with what is nearest there."""

    share: float = Field(description="of the way, from 0 to 1")
    distance: float = Field(description="to the origin")
    place: Place
    text: Hit | None
    image: Hit | None


class Way(BaseModel):
    query: ScoreOut
    steps: list[StepOut] = Field(description="one where the query stays where it is")


class MapItem(BaseModel):
    id: int
    modality: Modality
    distance: float = Field(description="to the origin")
    decision: Literal["safe", "unsafe"] | None
    place: Place
    text: str | None = Field(description="the start of a text")


class Map(BaseModel):
    """Some of the index's items in the Poincaré disk.

    The radius is ``tanh(sqrt(curvature) distance / 2)``, exactly, for the distance to the origin. The
    angle is in the plane of the two directions in which items differ most.
    """

    curvature: float
    total: int = Field(description="how many items the index has")
    items: list[MapItem]


class About(BaseModel):
    """What the model and the index can answer."""

    version: str
    curvature: float
    thresholds: dict[Modality, float] = Field(description="a distance beyond it is called unsafe")
    policies: list[Literal["as-asked", "redirect", "block"]] = Field(description="none without an index")
    images: int = Field(description="in the index")
    texts: int = Field(description="in the index")
    max_body: int = Field(description="bytes of a request's body")


class Health(BaseModel):
    status: Literal["ok"]


class FaultyItem(BaseModel):
    item: int = Field(description="its place in the request, from 0")
    error: str


class Problem(BaseModel):
    """What is wrong with a request."""

    error: str
    items: list[FaultyItem] | None = Field(None, description="those that cannot be scored")
