"""What a command of ``hysac`` is, and how its help looks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: its usage, how its help ends, what adds its flags, and what runs it for an exit code."""

    usage: str
    epilog: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_parser(
    subparsers: Any, command: str, usage: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    """The parser of ``command``, such as ``hysac index build``, listed by its last word."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        command.rpartition(" ")[2],
        usage=f"{command} {usage}",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=Formatter,
    )
    return parser


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and shows defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        is_told = default is None or default is False or default == [] or default is argparse.SUPPRESS
        if is_told or action.required or not action.option_strings:
            return text
        shown = " ".join(map(_quoted, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {shown})".replace("%", "%%")


def _quoted(word: Any) -> str:
    return f"'{word}'" if " " in str(word) else str(word)
