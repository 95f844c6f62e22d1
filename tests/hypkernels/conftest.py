"""Files of tests that are of the PyTorch implementation, those of the families of ops among them; the others
take what a machine has, ``"auto"``.

The compiled lane has files of its own, ``test_cpu_*.py`` and ``test_native_backend.py``, in which it is
compared with this implementation and with the definitions.
"""

import os

import postgresql
import pytest
from rowwise_ops import FAMILIES

from hypkernels import use_backend

OF_PYTORCH = {
    *(f"test_{name}" for name in FAMILIES),
    "test_curvatures",
    "test_registration",
    "test_scaled_map",
}


@pytest.fixture(autouse=True)
def _implementation(request):
    if request.module.__name__ not in OF_PYTORCH:
        yield
        return
    with use_backend("torch"):
        yield


@pytest.fixture(scope="session")
def postgresql_url():
    """Of PostgreSQL with pgvector: that of the environment, or of a server for these tests."""
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    if postgresql.VARIABLE in os.environ:
        yield os.environ[postgresql.VARIABLE]
        return
    try:
        postgresql.programs()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with postgresql.server() as url:
        yield url
