"""A small paper on language models, as files."""

import copy
from functools import partial

import pytest
import yaml

from moebench import files
from moebench.experiment import Experiment

DATA = {
    "texts": {"pivot": {"source": "constructed"}},
    "constructed": {"languages": 2, "documents": 300, "test": 20},
    "tasks": {"role": 0, "entailment": 0},
    "sequence_length": 32,
    "validation_rows": 12,
    "tokens": {"vocabulary": 400},
}
SETTING = {
    "seeds": [0],
    "baseline": "moe",
    "decoder": {"layers": 2, "width": 24, "heads": 2, "inner": 16, "context": 32},
    "experts": 4,
    "pretrain": {"steps": 30, "batch": 4, "rate": 0.003, "checkpoint_every": 10},
}
METHODS = {
    "dense": {"label": "Dense", "layer": "dense"},
    "moe": {"label": "MoE", "layer": "moe", "router": "topk", "losses": {"balance": 0.02}, "published": "MoE + L_aux", "coupling": 1.0},
    "aoe": {"label": "AoE", "layer": "aoe", "rank": "1/3", "losses": {"balance": 0.02, "entropy": 0}},
    "removed": {
        "label": "no router",
        "table": "removed",
        "pretrain_as": "moe",
        "layer": "aoe",
        "options": {"node": "gate"},
        "losses": {"balance": 0, "entropy": 0},
    },
}


@pytest.fixture(scope="session")
def write_paper(project):
    """Function that writes that paper into a folder with changes: (file, key, …, value); a value of none deletes the key."""

    def write_paper(root, *changes):
        parts = {"data": copy.deepcopy(DATA), "setting": copy.deepcopy(SETTING), "methods": copy.deepcopy(METHODS)}
        for *at, last, value in changes:
            place = parts
            for key in at:
                place = place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        home = root / "experiments/aoe"
        for name in ("experiment.yaml", "published.yaml"):
            files.write_text(home / name, (project / "experiments/aoe" / name).read_text(encoding="utf-8"))
        files.write_text(home / "data/smoke.yaml", yaml.safe_dump(parts["data"]))
        files.write_text(home / "profiles/smoke.yaml", yaml.safe_dump(parts["setting"]))
        for name, method in parts["methods"].items():
            files.write_text(home / f"methods/{name}.yaml", yaml.safe_dump(method))
        return Experiment(root, "aoe", "smoke")

    return write_paper


@pytest.fixture
def write(tmp_path, write_paper):
    """`write_paper` into the test's own folder."""
    return partial(write_paper, tmp_path)
