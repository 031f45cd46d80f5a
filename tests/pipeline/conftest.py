"""Projects with one paper, whose protocol is the toy of ``tests/toy``: real pipeline, plan, configuration and DVC."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from projects import ROOT, STAND_IN, TOY, Project


@pytest.fixture
def toy(tmp_path: Path) -> Project:
    """The project as a user would have it: the paper ``toy`` with two methods, two seeds and the profile smoke; nothing has run."""
    shutil.copytree(ROOT / "moebench", tmp_path / "moebench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOY / "protocol", tmp_path / "moebench" / "protocols" / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOY / "experiment", tmp_path / "experiments" / "toy")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return Project(tmp_path)


@pytest.fixture
def project(toy: Project) -> Project:
    """The same, with a stand-in for training that takes no time and can be made to fail and to hang."""
    toy.write("moebench/pipeline/train.py", STAND_IN)
    toy.write("moebench/protocols/toy/training.py", "")
    return toy
