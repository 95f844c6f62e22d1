"""The HTTP server: a JSON API of scores, search and redirection, and a page (extra ``serve``)."""

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError(f"the server needs {error.name}: pip install 'hysac[serve]'") from error
