#!/usr/bin/env bash
# What webdataset reads of a shard that is longer, or shorter, than its first end of an archive: no error, less data.
#
# webdataset 1.0.2, Python's tarfile, each of 5 samples with two members:
#   two archives one after the other, as `cat a.tar b.tar` makes and `tar --ignore-zeros` reads: the first one's samples
#   a shard whose copy stopped between two members: those before it, the last one with the members that it has left, as
#     if that were all; no end-of-archive mark is missed
#   a block of zeros between two members: the samples before it, and the one that it divides, in part
#   handler=reraise_exception, which is to raise what is wrong, changes none of it: nothing is raised inside
# Expected before it was run: the samples of both archives, and an error for the other two under reraise_exception.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'webdataset==1.0.2' 'numpy==2.4.6'
cat > "$work/shards.py" <<'PY'
import io
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import webdataset as wds

print("webdataset", metadata.version("webdataset"), "Python", sys.version.split()[0])
folder = Path(sys.argv[1])


def shard(name, keys):
    with tarfile.open(folder / name, "w") as archive:
        for key in keys:
            for suffix in ("cls", "txt"):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = 1
                archive.addfile(member, io.BytesIO(b"1"))
    return (folder / name).read_bytes()


def read(content):
    """Key and number of members of each sample."""
    (folder / "read.tar").write_bytes(content)
    samples = wds.WebDataset(
        str(folder / "read.tar"), shardshuffle=False, empty_check=False, handler=wds.reraise_exception
    )
    return [(one["__key__"], sum(not name.startswith("__") for name in one)) for one in samples]


first, second = shard("a.tar", "01234"), shard("b.tar", "56789")
with tarfile.open(folder / "a.tar") as archive:
    offsets = [member.offset for member in archive]
whole = [(key, 2) for key in "01234"]
cases = {
    "whole": (first, whole),
    "two archives": (first + second, whole),
    "cut between members": (first[: offsets[5]], [("0", 2), ("1", 2), ("2", 1)]),
    "zeros between members": (
        first[: offsets[5]] + bytes(512) + first[offsets[5] :],
        [("0", 2), ("1", 2), ("2", 1)],
    ),
}
for name, (content, expected) in cases.items():
    found = read(content)
    print(f"{name}: {found}")
    assert found == expected, name
PY
"$work/venv/bin/python" -W error::UserWarning "$work/shards.py" "$work"
