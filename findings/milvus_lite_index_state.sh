#!/usr/bin/env bash
# What milvus-lite says of an index that it has not built: that it is finished. Results change when it is.
#
# pymilvus 3.0.2, milvus-lite 3.2.2, an HNSW index of 20,000 vectors by inner product, among which it finds little:
#   after insert() and flush(), describe_index() has state Finished, 20000 indexed and 0 pending rows, while every row is
#     compared: recall 1; some seconds later, with nothing called, the same search goes through the index: recall 0.04
#   release_collection() and load_collection() after flush() wait for the index, which is what hypkernels does
# A recall that is measured in between is not that of the index.
# Expected before it was run: pending rows, or a search that uses the index.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'pymilvus==3.0.2' 'milvus-lite==3.2.2' 'numpy==2.4.6'
cat > "$work/state.py" <<'PY'
import sys
import time
from importlib.metadata import version

import numpy as np
from pymilvus import DataType, MilvusClient

print(*(f"{name} {version(name)}" for name in ("pymilvus", "milvus-lite")))
ROWS, WIDTH, K = 20_000, 64, 10
rng = np.random.default_rng(0)
points = rng.normal(size=(ROWS, WIDTH))
points *= np.sinh(rng.uniform(0.3, 1.2, (ROWS, 1))) / np.linalg.norm(points, axis=1, keepdims=True)
time_of = np.sqrt(1 + (points**2).sum(1, keepdims=True))
vectors = np.hstack([points, time_of]).astype(np.float32)
queries = np.hstack([points, -time_of]).astype(np.float32)[:20]
exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]


def filled(name):
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH + 1)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 32, "efConstruction": 200})
    client.create_collection(name, schema=schema, index_params=index)
    for start in range(0, ROWS, 1000):
        client.insert(name, [{"id": i, "vector": vectors[i]} for i in range(start, start + 1000)])
    client.flush(name)


def recall(name):
    found = client.search(name, list(queries), limit=K, search_params={"params": {"ef": 200}})
    return np.mean([len({hit["id"] for hit in hits} & set(row)) / K for hits, row in zip(found, exact.tolist())])


client = MilvusClient(sys.argv[1])
filled("waiting")
said = client.describe_index("waiting", "vector")
at_once = recall("waiting")
print({name: said[name] for name in ("state", "indexed_rows", "pending_index_rows")}, f"recall {at_once:.2f}")
assert (said["state"], said["indexed_rows"], said["pending_index_rows"]) == ("Finished", ROWS, 0)
assert at_once == 1
for _ in range(300):
    later = recall("waiting")
    if later < 0.5:
        break
    time.sleep(1)
print(f"later, with nothing called: recall {later:.2f}")
assert later < 0.5

filled("loaded")
client.release_collection("loaded")
client.load_collection("loaded")
loaded = recall("loaded")
print(f"released and loaded: recall {loaded:.2f}")
assert loaded < 0.5
PY
"$work/venv/bin/python" -W ignore "$work/state.py" "$work/points.db"
