"""The application: its routes, its errors, and its limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import metadata, resources
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from hysac.index import Index
from hysac.scoring import SafetyScorer
from hysac.serve import metrics, schemas
from hysac.serve.api_page import api_page
from hysac.serve.batching import EncodingError, OverloadedError
from hysac.serve.engine import FaultyItemsError, TooMuchError
from hysac.serve.limits import Guard, Limits
from hysac.serve.metrics import Measured
from hysac.serve.service import MissingError, Service, UnavailableError, score_out

_PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "draw.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_OPEN_PATHS = ("/", "/api", "/healthz", "/openapi.json", *(f"/page/{name}" for name in _PAGE_FILES))
_PROBLEMS = {
    400: "no JSON, or a wrong host name",
    401: "the token is missing or wrong",
    409: "the model or the index cannot answer this",
    413: "the body, or its texts, are too long",
    422: "the request is not as described, or items cannot be read",
    503: "too much is waiting; try again after Retry-After",
    504: "it took too long",
}

router = APIRouter()


def create_app(
    scorer: SafetyScorer,
    index: Index | None = None,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    hosts: Iterable[str] | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        scorer: the model, on its device; nothing else may use it meanwhile.
        index: made by this model; without one only ``/score`` answers.
        token: required as ``Authorization: Bearer`` but for the page, ``/healthz`` and the description.
        limits: see :class:`Limits`.
        hosts: the host names that requests may name; None for any.

    Raises:
        ValueError: an empty token, or an index of other weights.
    """
    if token is not None and not token.strip():
        raise ValueError("the token is empty")
    limits = limits or Limits()
    service = Service(scorer, index, limits)
    app = FastAPI(
        title="hysac",
        version=metadata.version("hysac"),
        description="How unsafe images and captions are, and a search that knows it.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_running,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    app.include_router(router)
    app.openapi = _described(app)  # type: ignore[method-assign]
    _add_pages(app)
    _add_errors(app)
    app.add_middleware(Guard, limits=limits, token=token, open_paths=_OPEN_PATHS, hosts=hosts)
    app.add_middleware(Measured, metrics=service.metrics)
    return app


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    engine = app.state.service.engine
    engine.start()
    try:
        yield
    finally:
        await engine.stop()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.Problem, "description": _PROBLEMS[status]}
        for status in (400, 401, 503, 504, *statuses)
    }


@router.post("/score", responses=_responses(413, 422))
async def score(request: Request, asked: schemas.ScoreRequest) -> schemas.Scores:
    """How unsafe images and texts are."""
    queries = await _service(request).encode(asked.items)
    return schemas.Scores(scores=[score_out(query.score) for query in queries])


@router.post("/search", responses=_responses(409, 413, 422))
async def search(request: Request, asked: schemas.SearchRequest) -> schemas.Found:
    """The items of the index nearest to a text or an image.

    `as-asked` searches with the query as it is. `redirect` moves an unsafe one first. `block` answers an
    unsafe query with nothing, and leaves unsafe items out of other answers.
    """
    service = _service(request)
    service.check_index()
    (query,) = await service.encode([asked])
    return await service.engine.run(service.find, query, asked)


@router.post("/redirect", responses=_responses(409, 413, 422))
async def redirect(request: Request, asked: schemas.RedirectRequest) -> schemas.Way:
    """The geodesic along which an unsafe query is redirected, with the nearest items at steps of it."""
    service = _service(request)
    service.check_index()
    (query,) = await service.encode([asked])
    return await service.engine.run(service.way, query, asked)


@router.get("/map", responses=_responses(409))
async def disk_map(request: Request) -> schemas.Map:
    """Up to 500 items of the index in the Poincaré disk."""
    return _service(request).map()


_JPEG = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/pictures/{number}",
    response_class=Response,
    responses={
        200: {"content": _JPEG, "description": "the thumbnail"},
        404: {"model": schemas.Problem, "description": "no such image"},
        **_responses(409, 422),
    },
)
async def picture(
    request: Request,
    number: Annotated[str, Path(pattern=r"^(0|[1-9][0-9]{0,15})$", description="the id of a hit")],
    reveal: Literal["true", "false"] = "false",
) -> Response:
    """The thumbnail of an image of the index, blurred unless it is called safe or `reveal` asks for it."""
    service = _service(request)
    service.check_index()
    content = await service.engine.run(service.picture, int(number), reveal == "true")
    return Response(content, media_type="image/jpeg")


@router.get("/about", responses=_responses())
async def about(request: Request) -> schemas.About:
    """What the model and the index can answer."""
    return _service(request).about()


@router.get("/healthz", responses=_responses())
async def healthz() -> schemas.Health:
    """Whether the server runs."""
    return schemas.Health(status="ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "for Prometheus"}, **_responses()},
)
async def prometheus(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    """The page, its files, and the description of the API, all from memory."""
    folder = resources.files("hysac.serve") / "page"
    files = {name: (folder / name).read_bytes() for name in _PAGE_FILES}
    described = api_page(app.openapi())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(files["index.html"], media_type=_PAGE_FILES["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return Response(files[name], media_type=_PAGE_FILES[name])

    @app.get("/api", include_in_schema=False)
    async def api() -> Response:
        return HTMLResponse(described)


def _described(app: FastAPI) -> Any:
    """``app.openapi`` without FastAPI's own form of errors, which this application does not send."""
    made = FastAPI.openapi.__get__(app)

    def openapi() -> dict[str, Any]:
        description: dict[str, Any] = made()
        for name in ("HTTPValidationError", "ValidationError"):
            description["components"]["schemas"].pop(name, None)
        return description

    return openapi


def _problem(status: int, error: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _invalid(error)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), **(error.headers or {}))

    @app.exception_handler(FaultyItemsError)
    async def faulty(request: Request, error: FaultyItemsError) -> Response:
        items = [{"item": place, "error": fault} for place, fault in error.faults.items()]
        return JSONResponse({"error": str(error), "items": items}, 422)

    for kind, status in ((UnavailableError, 409), (MissingError, 404), (TooMuchError, 413)):
        app.add_exception_handler(kind, _as_problem(status))
    app.add_exception_handler(OverloadedError, _as_problem(503, **{"retry-after": "1"}))
    for failure in (EncodingError, FloatingPointError):
        app.add_exception_handler(failure, _as_problem(500))


def _as_problem(status: int, **headers: str) -> Any:
    async def handler(request: Request, error: Exception) -> Response:
        return _problem(status, str(error), **headers)

    return handler


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The faults of a request, without the values that were sent: these may be invalid as JSON."""
    told = []
    for one in error.errors():
        if one["type"] == "json_invalid":
            return _problem(400, f"the body is no JSON, at character {one['loc'][-1]}")
        where = ".".join(str(part) for part in one["loc"] if part not in ("body", "path", "query"))
        told.append(f"{where}: {one['msg']}" if where else one["msg"])
    message = "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")
    return _problem(422, message.encode("utf-8", "backslashreplace").decode())
