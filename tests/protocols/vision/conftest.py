"""A small paper on images, as files."""

import pytest
import yaml

from moebench import files
from moebench.experiment import Experiment


@pytest.fixture(scope="session")
def write_paper(project):
    """Function that writes the configuration of a paper on images and returns it under a profile, as its files then are."""

    def write_paper(root, setting, methods, profile="cpu", data=None):
        home = root / "experiments/e3"
        for name in ("experiment.yaml", "published.yaml"):
            files.write_text(home / name, (project / "experiments/e3" / name).read_text(encoding="utf-8"))
        files.write_text(home / f"data/{profile}.yaml", yaml.safe_dump(data or {}))
        files.write_text(home / f"profiles/{profile}.yaml", yaml.safe_dump(setting))
        for name, method in methods.items():
            files.write_text(home / f"methods/{name}.yaml", yaml.safe_dump(method))
        return Experiment(root, "e3", profile)

    return write_paper
