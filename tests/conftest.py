"""What every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def golden(project) -> Path:
    """The folder of reference arrays."""
    return project / "tests" / "golden"
