"""The server by its own description: schemathesis asks whatever that allows and forbids.

``HYSAC_FUZZ_EXAMPLES=300`` makes more than 5,000 requests of it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import make_index, serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("schemathesis")

from hysac.serve.app import create_app  # noqa: E402

pytestmark = pytest.mark.slow

EXAMPLES = os.environ.get("HYSAC_FUZZ_EXAMPLES", "5")


def test_the_server_does_as_it_says(tmp_path):
    """No 5xx, no answer beside the description; what fits it is taken, and what does not is refused."""
    folder = Path(__file__).parent
    with serving(create_app(*make_index(tmp_path))) as address:
        program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        options = ["run", f"{address}/openapi.json", "--max-examples", EXAMPLES, "--seed", "1", "--no-color"]
        done = subprocess.run(
            [sys.executable, "-c", program, *options],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": f"{folder}{os.pathsep}{folder.parents[1]}",
            },
        )
        metrics = httpx.get(f"{address}/metrics").text
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    counts = re.findall(r'hysac_requests_total\{path="(.*)",status="(.)..\"\} (\S+)', metrics)
    assert {kind for _, kind, _ in counts} == {"2", "4"}
    assert sum(float(count) for *_, count in counts) > 200
    print(f"{sum(float(count) for *_, count in counts):.0f} requests")
