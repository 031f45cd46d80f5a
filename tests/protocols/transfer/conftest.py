"""A project of one paper on texts, made of the configuration that a test gives it."""

import pytest
import yaml

from moebench.experiment import Experiment
from moebench.files import write_text

ABOUT = {
    "protocol": "transfer",
    "name": "X-MoE",
    "title": "Sparse Mixture of Experts",
    "arxiv": "2204.09179",
}


@pytest.fixture
def write_paper(tmp_path):
    """A function that writes the paper ``xmoe`` under a profile: data, setting and methods; it returns the experiment."""

    def write(profile, data, setting=None, methods=None):
        home = tmp_path / "experiments" / "xmoe"
        files = {"experiment": ABOUT, "published": {"tables": {}}, f"data/{profile}": data}
        files |= {f"profiles/{profile}": setting} if setting else {}
        for name, value in (files | {f"methods/{name}": method for name, method in (methods or {}).items()}).items():
            write_text(home / f"{name}.yaml", yaml.safe_dump(value))
        return Experiment(tmp_path, "xmoe", profile)

    return write
