"""The ``hysac`` command, a file for each of its commands."""

from hysac.cli.main import main

__all__ = ["main"]
