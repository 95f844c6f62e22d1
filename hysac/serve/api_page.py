"""The description of the API for people: one page without scripts, which loads nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hysac: the API</title>
<link rel="stylesheet" href="/page/style.css">
</head>
<body>
<header><h1>hysac: the API</h1><nav aria-label="Pages"><a href="/">Search</a>
<a href="/openapi.json">OpenAPI description</a></nav></header>
<main class="api">
"""
_TAIL = "</main>\n</body>\n</html>\n"


def api_page(description: dict[str, Any]) -> str:
    """The HTML of an OpenAPI description."""
    parts = [_HEAD, f"<p>{escape(description['info']['description'])}</p>\n"]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method, path, operation)
    parts.append("<h2>Objects</h2>\n")
    for name, schema in sorted(description["components"]["schemas"].items()):
        parts += _object(name, schema)
    return "".join([*parts, _TAIL])


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>\n"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{_prose(paragraph)}</p>\n"
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3>\n<dl>"
        for one in parameters:
            yield f"<dt><code>{escape(one['name'])}</code> in the {one['in']}</dt>"
            yield f"<dd>{_type(one['schema'])} {escape(one.get('description', ''))}</dd>"
        yield "</dl>\n"
    if body := operation.get("requestBody"):
        yield f"<p>Body: {_type(body['content']['application/json']['schema'])}</p>\n"
    yield "<h3>Answers</h3>\n<dl>"
    for status, answer in sorted(operation["responses"].items()):
        kinds = " or ".join(
            f"{escape(media)} {_type(content.get('schema', {}))}"
            for media, content in answer.get("content", {}).items()
        )
        yield f"<dt>{status}</dt><dd>{escape(answer['description'])}: {kinds}</dd>"
    yield "</dl>\n</section>\n"


def _object(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<section id="{escape(name)}"><h3><code>{escape(name)}</code></h3>\n'
    yield f"<p>{_prose(schema.get('description', ''))}</p>\n<dl>"
    for field, of_field in schema.get("properties", {}).items():
        needed = "required" if field in schema.get("required", ()) else "optional"
        yield f"<dt><code>{escape(field)}</code>, {needed}</dt>"
        yield f"<dd>{_type(of_field)} {_prose(of_field.get('description', ''))}</dd>"
    yield "</dl></section>\n"


def _prose(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


_BOUNDS = (
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    "format",
    "default",
)


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to the objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return " or ".join(map(_type, schema[choice])) + _bounds(schema)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values) + _bounds(schema)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}{_bounds(schema)}"
    return escape(schema.get("type", "")) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    told = [f"{name} {json.dumps(schema[name])}" for name in _BOUNDS if name in schema]
    return f" <small>({escape(', '.join(told))})</small>" if told else ""
