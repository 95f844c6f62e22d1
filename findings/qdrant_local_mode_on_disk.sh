#!/usr/bin/env bash
# What the local mode of Qdrant's client does with points in a folder: a transaction for each, and a pickle.
#
# qdrant-client 1.20.0: upsert() of a batch of 200 points to QdrantClient(path=...) commits to SQLite 200 times,
#   a wait for the disk each (output seen: 20 ms); in memory none of it
#   each point is a pickle in that database, which opening the folder unpickles: a folder from elsewhere runs its code
# Expected before it was run: one transaction for a call, and no pickles.
# Fails if the number of commits or the form of the points changes; times are shown, not judged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'qdrant-client==1.20.0'
cat > "$work/commits.py" <<'PY'
import pickle
import sqlite3
import sys
import time
from importlib.metadata import version
from pathlib import Path

commits = []
connect = sqlite3.connect


def traced(*args, **kwargs):
    connection = connect(*args, **kwargs)
    connection.set_trace_callback(lambda statement: commits.append(1) if statement.startswith("COMMIT") else None)
    return connection


sqlite3.connect = traced

from qdrant_client import QdrantClient, models  # noqa: E402

print("qdrant-client", version("qdrant-client"))
POINTS = 200


def fill(client):
    client.create_collection("points", models.VectorParams(size=4, distance=models.Distance.EUCLID))
    commits.clear()
    began = time.perf_counter()
    batch = models.Batch(ids=list(range(POINTS)), vectors=[[float(i), 0.0, 0.0, 0.0] for i in range(POINTS)])
    client.upsert("points", batch)
    return len(commits), 1000 * (time.perf_counter() - began) / POINTS


for name, client in (("folder", QdrantClient(path=sys.argv[1])), ("memory", QdrantClient(":memory:"))):
    count, milliseconds = fill(client)
    print(f"{name}: {count} commits for {POINTS} points in one call, {milliseconds:.2f} ms each")
    assert count == (POINTS if name == "folder" else 0)
    client.close()

stored = connect(next(Path(sys.argv[1]).rglob("*.sqlite"))).execute("SELECT point FROM points").fetchone()[0]
print("a stored point:", stored[:60], "...")
assert type(pickle.loads(stored)) is models.PointStruct
PY
"$work/venv/bin/python" -W ignore "$work/commits.py" "$work/folder"
