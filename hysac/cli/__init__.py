"""The ``hysac`` command."""

from hysac.cli.commands import main

__all__ = ["main"]
