#!/usr/bin/env bash
# What milvus-lite keeps of the descriptions that a collection and its fields are made with: nothing, and says nothing.
#
# pymilvus 3.0.2, milvus-lite 3.2.2:
#   create_schema(description=...) and add_field(description=...) are accepted; describe_collection returns "" for both,
#     at once and after the file is opened again
#   create_collection(properties={...}), beside them, is kept, which is where hypkernels puts an index's header
# Expected before it was run: the descriptions, as a server returns them.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'pymilvus==3.0.2' 'milvus-lite==3.2.2'
cat > "$work/descriptions.py" <<'PY'
import sys
from importlib.metadata import version

from pymilvus import DataType, MilvusClient

print(*(f"{name} {version(name)}" for name in ("pymilvus", "milvus-lite")))


def kept(client):
    found = client.describe_collection("papers")
    fields = [field["description"] for field in found["fields"]]
    return found["description"], fields, found["properties"].get("note")


client = MilvusClient(sys.argv[1])
schema = client.create_schema(auto_id=False, description="abstracts of papers")
schema.add_field("id", DataType.INT64, is_primary=True, description="of the paper")
schema.add_field("vector", DataType.FLOAT_VECTOR, dim=8, description="of the abstract")
index = client.prepare_index_params()
index.add_index("vector", index_type="FLAT", metric_type="L2")
client.create_collection("papers", schema=schema, index_params=index, properties={"note": "abstracts of papers"})
at_once = kept(client)
client.close()
again = kept(MilvusClient(sys.argv[1]))
for when, found in (("at once", at_once), ("opened again", again)):
    print(f"{when}: collection {found[0]!r}, fields {found[1]}, property {found[2]!r}")
    assert found == ("", ["", ""], "abstracts of papers")
PY
"$work/venv/bin/python" -W ignore "$work/descriptions.py" "$work/papers.db"
