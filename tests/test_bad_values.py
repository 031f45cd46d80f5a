"""One leaf of any shipped configuration changed to a bad value is an error that names the file and the key, before anything runs."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moebench import config
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles

ROOT = Path(__file__).parents[1]
NAN, INFINITE = float("nan"), float("inf")
BAD: list[Any] = [
    NAN,
    INFINITE,
    -INFINITE,
    -1,
    -0.5,
    0,
    1.5,
    10**9,
    10**10,
    10**30,
    1e30,
    True,
    None,
    "",
    "nonsense",
    "9" * 3000,
    [],
    {},
    [[]],
]
SAMPLED, SAMPLED_SLOWLY = 200, 3000
"""Changes that the default tests and the slow ones try, of all: those take ten minutes."""

Leaf = tuple[Any, ...]


def leaves(value: Any, at: Leaf = ()) -> Iterator[Leaf]:
    """The places of all values that hold no others."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, part in parts for leaf in leaves(part, (*at, key))]
    yield from inner or [at]


def get(value: Any, at: Leaf) -> Any:
    """The value in one place."""
    for key in at:
        value = value[key]
    return value


def put(value: Any, at: Leaf, new: Any) -> Any:
    """A copy with another value in one place."""
    value = copy.deepcopy(value)
    get(value, at[:-1])[at[-1]] = new
    return value


def used(paper: str, profile: str) -> dict[str, list[Leaf]]:
    """The files that a profile of a paper reads, with their leaves."""
    methods = [f"methods/{name}.yaml" for name in Experiment(ROOT, paper, profile).methods]
    names = ["experiment.yaml", "published.yaml", f"profiles/{profile}.yaml", f"data/{profile}.yaml", *methods]
    return {name: list(leaves(config.read_yaml(ROOT / "experiments" / paper / name))) for name in names}


def changes() -> list[tuple[str, str, str, Leaf, int]]:
    """All changes: paper, profile, file, leaf and number of the bad value; what several profiles read is changed under one."""
    found: dict[tuple[str, str], tuple[str, list[Leaf]]] = {}
    for paper in papers(ROOT):
        for profile in profiles(ROOT, paper):
            for name, places in used(paper, profile).items():
                found.setdefault((paper, name), (profile, places))
    return [
        (paper, profile, name, leaf, number)
        for (paper, name), (profile, places) in found.items()
        for leaf in places
        for number in range(len(BAD))
    ]


OPTIONAL = {
    *(
        "rank",
        "published",
        "methods",
        "last",
        "max_train",
        "max_test",
        "max_corrupted",
        "pretrain_as",
        "temperature",
        "dim",
        "capacity_factor",
    ),
}
SWITCHES = {"identity", "freeze_in_finetuning", "freeze_embedding", "pretrained", "romanised", "reduce", "normalise"}
IN_FOLDER = {"coco", "vqa", "nlvr", "captions", "pictures", "texts"}
"""Keys of paths below the folder of original files."""
FROM_FILES = ("data/real.yaml", "data/paper.yaml")
MAY_BE_0 = {
    *("steps", "freeze_blocks", "warmup", "weight_decay", "betas", "shift", "draws", "shallow", "translation", "consistency"),
    *("tasks", "floor", "coupling"),
    *("cognates", "dropout", "repetition", "token_types", "shared", "jitter", "overlap"),
}
MAY_BE_LARGE = {
    *("steps", "epochs", "rate", "checkpoint_every", "stride", "head_rate", "sparse_rate", "clip", "weight_decay", "initial_std"),
    *("max_train", "max_test", "max_corrupted", "shallow", "draws", "shots", "freeze_blocks", "fast_std", "capacity_factor"),
    *(
        "temperature",
        "stage1_steps",
        "epsilon",
        "consistency",
        "low",
        "base",
        "coupling",
        "coupling_alpha",
        "tokens",
        "shard_rows",
        "examine_batch",
        "context",
        "accumulate",
        "codebook_images",
        "predict_batch",
    ),
}


def reason(name: str, leaf: Leaf, bad: Any) -> str:
    """Why a change is no mistake that the configuration alone can show; empty: it is one."""
    keys = [key for key in leaf if not isinstance(key, int)]
    number = isinstance(bad, int | float) and not isinstance(bad, bool)
    if isinstance(bad, str) and len(bad) < 500:
        if {"label", "name", "title", "source", "notes", "columns", "remark"} & {*keys}:
            return "free text" if bad or {"notes", "remark"} & {*keys} else ""
        if {"train_files", "corpus_files", "folders"} & {*keys} or keys == ["tokens", "checkpoint"] or IN_FOLDER & {*keys[1:]}:
            return "whether a file is there shows when the data are prepared"
    if name == "published.yaml":
        if "rows" in keys:
            return "a published number" if number and abs(bad) < INFINITE else ""
        return "not stated, or large" if keys[-1] in ("seeds", "decimals") and bad in (None, 0) else ""
    if bad is None and (OPTIONAL & {*keys} or keys in (["vocabulary"], ["answers"], ["files", "pictures"], ["files", "texts"])):
        return "optional"
    if name in FROM_FILES and keys[0] in ("masked", "vqa", "nlvr", "caption"):
        return "as many as there are" if bad in (None, 10**9) else ""
    if isinstance(bad, bool) or (bad == 0 and keys[-1] in SWITCHES):
        return "a switch, of which 0 is no" if keys[-1] in SWITCHES else ""
    if name == "methods/moe_large_router.yaml" and keys[-1] == "low":
        return "the profile gives it again" if isinstance(bad, int) and not isinstance(bad, bool) and bad <= 10**9 else ""
    if "seeds" in keys or keys[-1] in ("seed", "draw"):
        return "a seed" if bad in (0, 10**9) else ""
    if "losses" in keys:
        return "a coefficient" if bad in (0, 1.5) else ""
    if keys[-2:] in (["files", "validation"], ["corpus", "validation_rows"]) or keys == ["validation_rows"]:
        return "how many there are shows when the data are prepared" if bad == 10**9 else ""
    if "sources" in keys and keys[-1] != "sources" and bad == 1.5:
        return "a weight"
    if "of" in keys:
        return "places are counted round the end" if bad in (0, 10**9) else ""
    if bad == 0 and MAY_BE_0 & {*keys}:
        return "turns it off"
    if number and 0 < bad <= (10**13 if keys[-1] == "tokens" else 10**9) and MAY_BE_LARGE & {*keys}:
        return "large, and possible"
    return ""


CHANGES = changes()


def tried(tmp_path: Path, which: list[tuple[str, str, str, Leaf, int]]) -> list[str]:
    """Try changes; returns those that are accepted without a reason, or refused without naming file and key."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("dvc.*", "params.yaml"))
    wrong = []
    for paper, profile, name, leaf, number in which:
        path, bad = tmp_path / "experiments" / paper / name, BAD[number]
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
        if get(value, leaf) == bad:
            continue
        path.write_text(yaml.safe_dump(put(value, leaf, bad), allow_unicode=True), encoding="utf-8")
        what = f"{paper} {profile} {name} {'.'.join(map(str, leaf))} = {str(bad)[:20]!r}"
        try:
            Experiment(tmp_path, paper, profile).check()
        except MoebenchError as error:
            said = str(error)
            if Path(name).stem not in said and f"profiles/{profile}.yaml" not in said:
                wrong.append(f"{what}: does not name the file: {said[:200]}")
            elif not any(str(key) in said for key in leaf if not isinstance(key, int)):  # or what holds it
                wrong.append(f"{what}: does not name the key: {said[:200]}")
            elif max(map(len, said.splitlines())) > 2000:
                wrong.append(f"{what}: a line of {max(map(len, said.splitlines()))} characters")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__} {error}")
        else:
            if not reason(name, leaf, bad):
                wrong.append(f"{what}: accepted")
        path.write_text(text, encoding="utf-8")
    return wrong


def test_a_bad_value_is_refused(tmp_path):
    assert not tried(tmp_path, random.Random(0).sample(CHANGES, SAMPLED))


@pytest.mark.slow
def test_many_bad_values_are_refused(tmp_path):
    assert not tried(tmp_path, random.Random(1).sample(CHANGES, SAMPLED_SLOWLY))
