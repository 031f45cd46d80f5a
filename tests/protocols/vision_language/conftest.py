"""A small paper on images and words, as files."""

import copy

import pytest
import yaml

from moebench import files
from moebench.experiment import Experiment
from moebench.pipeline.prepare import prepare

ROWS = {"train": 48, "validation": 12, "test": 24}
DATA = {
    "source": "scenes",
    "masked": {"pairs": 30, "images": 20, "texts": 25, "validation": 8},
    "vqa": dict(ROWS),
    "nlvr": dict(ROWS),
    "caption": dict(ROWS),
    "codebook": 8,
    "codebook_images": 20,
}
STEPS = {"steps": 4, "batch": 8, "rate": 0.001}
SETTING = {
    "seeds": [0],
    "baseline": "moe",
    "model": {"image": 24, "patch": 8, "channels": 1, "layers": 2, "width": 24, "heads": 2, "inner": 48, "words": 25},
    "experts": 4,
    "sparse_every": 2,
    "pretrain": STEPS | {"rows": {"pairs": 4, "images": 2, "texts": 2}},
    "vqa": dict(STEPS),
    "nlvr": dict(STEPS),
    "caption": dict(STEPS),
}
METHODS = {
    "dense": {"label": "Dense", "layer": "dense", "published": "Dense"},
    "moe": {"label": "MoE", "layer": "moe", "router": "mhmoe_topk", "losses": {"balance": 0.01}, "published": "X-MoE"},
    "heads": {
        "label": "two heads",
        "layer": "moe",
        "router": "mhmoe_topk",
        "losses": {"balance": 0.01},
        "options": {"k": 2},
        "multi_head": {"heads": 2},
    },
}


@pytest.fixture(scope="session")
def write_paper(project):
    """Function that writes the configuration of a paper on images and words and returns it, as its files then are."""

    def write_paper(root, data=DATA, setting=SETTING, methods=METHODS):
        home = root / "experiments/mhmoe_vision_language"
        for name in ("experiment.yaml", "published.yaml"):
            files.write_text(home / name, (project / "experiments/mhmoe_vision_language" / name).read_text(encoding="utf-8"))
        files.write_text(home / "data/smoke.yaml", yaml.safe_dump(data))
        files.write_text(home / "profiles/smoke.yaml", yaml.safe_dump(setting))
        for name, method in methods.items():
            files.write_text(home / f"methods/{name}.yaml", yaml.safe_dump(method))
        return Experiment(root, "mhmoe_vision_language", "smoke")

    return write_paper


@pytest.fixture(scope="session")
def methods():
    """The methods of that paper."""
    return METHODS


@pytest.fixture
def write(tmp_path, write_paper):
    """Function that writes that paper with changes: (file, key, …, value); a value of none deletes the key."""

    def write(*changes):
        parts = {"data": copy.deepcopy(DATA), "setting": copy.deepcopy(SETTING), "methods": copy.deepcopy(METHODS)}
        for *at, last, value in changes:
            place = parts
            for key in at:
                place = place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        return write_paper(tmp_path, **parts)

    return write


@pytest.fixture(scope="session")
def prepared_paper(write_paper, tmp_path_factory):
    """That paper with its data; nobody changes it."""
    paper = write_paper(tmp_path_factory.mktemp("prepared"))
    prepare(paper)
    return paper
