"""What every test may use."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

from moebench.experiment import Experiment

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("calm", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("calm")


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def golden(project) -> Path:
    """The folder of reference arrays."""
    return project / "tests" / "golden"


@pytest.fixture
def copy(tmp_path, project):
    """A copy of a paper's configuration, and a function that edits one of its files."""
    shutil.copytree(project / "experiments" / "xmoe", tmp_path / "experiments" / "xmoe")
    experiment = Experiment(tmp_path, "xmoe", "smoke")

    def edit(file, change):
        path = experiment.home / file
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value))

    return experiment, edit
