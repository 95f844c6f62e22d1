"""Docstrings as they are written, for Markdown.

- A role, ``:func:`dist0```, becomes a link where the reference has the name, and code elsewhere.
- ``::`` before a literal block loses its colons, and a list gets the blank line that Markdown asks for.
- A sentence on what is returned may have a colon, before which Google's style would see a type.
- The settings of a configuration, which say in their field what they are, become attributes.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(?:([^`<]+) <([\w.]+)>|(~?)([\w.]+))`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package when all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(one: griffe.Object | griffe.Alias) -> None:
    if one.is_class:
        _describe_settings(one)
    if one.docstring is not None:
        one.docstring.value = as_markdown(one.docstring.value, one)
    for member in one.members.values():
        if not member.is_alias:
            _rewrite(member)


def as_markdown(text: str, scope: griffe.Object | griffe.Alias) -> str:
    """``text`` with links, and with blocks and lists as Markdown has them."""

    def link(role: re.Match[str]) -> str:
        name = role[2] or role[4]
        try:
            path = scope.resolve(name)
        except griffe.NameResolutionError:
            path = name
        shown = role[1] or (path.rpartition(".")[2] if role[3] else name)
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    text = _ROLE.sub(link, text)
    text = re.sub(r"(?m)^ *::$\n?", "", re.sub(r"(?m)(?<=[^\s:])::$", ":", text))
    text = re.sub(r"(?m)^( *)(?![ *-])(\S.*)\n(?=\1[*-] )", r"\1\2\n\n", text)
    return re.sub(r"(?m)^( *)(Returns|Yields):\n( +)", r"\1\2:\n\3: ", text)


def _describe_settings(one: griffe.Object | griffe.Alias) -> None:
    """Take the default and the sentence from each ``name: type = _option(group, sentence, default, ...)``."""
    described = []
    for name, member in one.attributes.items():
        field = member.value
        if isinstance(field, griffe.ExprCall) and str(field.function) == "_option":
            given = [part for part in field.arguments if not isinstance(part, griffe.ExprKeyword)]
            member.value = given[2] if len(given) > 2 else "None"
            described.append(f"    {name}: {ast.literal_eval(str(given[1]))}")
    if described and one.docstring is not None:
        one.docstring.value += "\n\nAttributes:\n" + "\n".join(described)
