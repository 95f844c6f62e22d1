"""Which weights something was made with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hysac.files import sha256_of
from hysac.models.pretrained import SCALARS_FILE, SUMS_FILE, TOWERS_FILE


def weights_digest(directory: Path) -> str:
    """A SHA-256 of a model directory's weights: of those in its checksums, else of the files'."""
    known = {}
    if (directory / SUMS_FILE).is_file():
        lines = (directory / SUMS_FILE).read_text(errors="replace").splitlines()
        known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    digests = [known.get(name) or sha256_of(directory / name) for name in (TOWERS_FILE, SCALARS_FILE)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
