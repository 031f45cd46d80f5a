"""The part of stage ``plan`` that is about a paper on images: its stages, its runs, and what is wrong with its configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from moebench import config, config_images
from moebench.config_images import DOWNSTREAM, ImageMethod, ImageSetting
from moebench.errors import MoebenchError, nearest
from moebench.stages.fingerprint import fingerprint

SCALE = {"precision", "threads", "devices", "nodes", "experts", "last"}
NOT_PRETRAINING = {"label", "published", "of", "pretrain_as", "draw"}
NOT_FINETUNING = {"label", "published", "of"}
ORIGINALS = ["moebench.data.image_benchmarks", "moebench.data.image_files"]
"""Modules of source ``files``; training reads what was prepared."""


def check(root: Path, profile: str, paper: str) -> None:
    """Check that a paper's methods fit its setting and each other.

    Raises:
        MoebenchError: they do not; the message names the file, the key and what would be right.
    """
    setting, names = config_images.setting(root, paper, profile), config_images.method_names(root, paper, profile)
    home = root / "experiments" / paper
    if setting.baseline not in names:
        path = home / "profiles" / f"{profile}.yaml"
        raise MoebenchError(
            f"{path}: key 'baseline' names {setting.baseline!r}{nearest(setting.baseline, names)}; methods are: {', '.join(names)}"
        )
    _check_side(root, profile, paper, setting)
    for name in names:
        path, method = home / "methods" / f"{name}.yaml", config_images.method(root, paper, name, profile)
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise MoebenchError(f"{path}: a method's name is made of letters, digits and underscores")
        config_images.vision(setting, method)
        for member in method.of:
            if member not in names or config_images.method(root, paper, member).variant == "deep":
                raise MoebenchError(f"{path}: key 'of.{member}'{nearest(member, names)}: should be a method with runs that takes part")
        if method.members > 1 and method.router == "partitioned" and setting.experts % method.members:
            raise MoebenchError(f"{path}: members {method.members} do not divide the {setting.experts} experts of profile {profile!r}")
        if method.pretrain_as is not None:
            _check_start(path, method, config_images.method(root, paper, method.pretrain_as))


def _check_side(root: Path, profile: str, paper: str, setting: ImageSetting) -> None:
    """The transformer should have the side of the images; that of built-in ones shows when they are read."""
    path = root / "data" / "images" / f"{profile}.yaml"
    files = config_images.data(root, profile).files if path.is_file() else None
    if files is None:
        return
    given = {"vision.image": setting.vision.image, "finetune_side": setting.finetune_side or setting.vision.image}
    prepared = {"vision.image": files.upstream_side or files.side, "finetune_side": files.side, "vision.channels": 3}
    for key, value in prepared.items():
        if (mine := given.get(key, setting.vision.channels)) != value:
            home = root / "experiments" / paper / "profiles" / f"{profile}.yaml"
            raise MoebenchError(f"{home}: key {key!r} has the value {mine}; the images that {path} prepares have {value}")


def _check_start(path: Path, method: ImageMethod, start: ImageMethod) -> None:
    layered = (method.router is not None, start.variant == "vmoe")
    if start.pretrain_as or start.variant not in ("dense", "vmoe") or layered[0] != layered[1]:
        wanted = "a V-MoE" if layered[0] else "a dense transformer"
        raise MoebenchError(
            f"{path}: key 'pretrain_as' names {method.pretrain_as!r}, which should be {wanted} that is pre-trained by itself"
        )
    mine, theirs = ({key: value for key, value in each.shape.items() if key != "dropout"} for each in (method, start))
    if mine != theirs:
        raise MoebenchError(f"{path}: key 'shape' has the value {mine}, but {method.pretrain_as!r} was pre-trained with {theirs}")


def trained(root: Path, profile: str, paper: str) -> dict[str, ImageMethod]:
    """The methods that have runs, by name: all but deep ensembles."""
    methods = {name: config_images.method(root, paper, name, profile) for name in config_images.method_names(root, paper, profile)}
    return {name: method for name, method in methods.items() if method.variant != "deep"}


def stages(root: Path, profile: str, paper: str) -> dict[str, Any]:
    """The content of the paper's ``params.yaml``: the key of every training stage → its values."""
    methods, seeds = trained(root, profile, paper), config_images.setting(root, paper, profile).seeds
    starts = {name: method.pretrain_as or name for name, method in methods.items()}
    pretrain = {f"{profile}-{name}-{seed}": {"method": name, "seed": seed} for name in sorted(set(starts.values())) for seed in seeds}
    finetune = {
        f"{profile}-{name}-{DOWNSTREAM}-{seed}": {"method": name, "set": DOWNSTREAM, "seed": seed, "start": f"{starts[name]}-{seed}"}
        for name in methods
        for seed in seeds
    }
    return {"profile": profile, "profiles": [profile], "pretrain": pretrain, "finetune": finetune}


def prepared(root: Path, profile: str) -> dict[str, Any]:
    """Plan of the prepared images. Original files that are not there are stage ``images``'s error: papers on texts run without them."""
    data = config_images.data(root, profile)
    what = data.model_dump(mode="json")
    if data.files is not None:
        from moebench.data.image_benchmarks import listing

        with contextlib.suppress(MoebenchError):  # no folder is given
            folder = config.benchmark_folder(root)
            what["listings"] = {name: listing(folder / where) for name, where in sorted(data.files.folders.items())}
    code = fingerprint(["moebench.stages.images"], without=() if data.files else ORIGINALS)
    return {"config": what, "fingerprint": code}


def of_paper(root: Path, profile: str, paper: str) -> dict[str, dict[str, Any]]:
    """Plan of a paper: one entry a method in pre-training and in fine-tuning, and those of evaluation and tables."""
    setting, methods = config_images.setting(root, paper, profile), trained(root, profile, paper)
    planned = {}
    for name in sorted({method.pretrain_as or name for name, method in methods.items()}):
        method = config_images.method(root, paper, name, profile)
        what = _model(setting, method, NOT_PRETRAINING) | {"pretrain": setting.pretrain.model_dump(mode="json")}
        planned[f"pretrain/{name}"] = {"config": what, "fingerprint": _code("pretrain_images", method)}
    for name, method in methods.items():
        what = _model(setting, method, NOT_FINETUNING) | {"finetune": setting.finetune.model_dump(mode="json")}
        what["vision"]["image"] = setting.finetune_side or what["vision"]["image"]
        planned[f"finetune/{name}-{DOWNSTREAM}"] = {"config": what, "fingerprint": _code("finetune_images", method)}
    every = {name: config_images.method(root, paper, name, profile) for name in config_images.method_names(root, paper, profile)}
    runs = {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for name, value in planned.items()}
    shown = {
        "setting": setting.model_dump(mode="json"),
        "methods": {name: method.model_dump(mode="json") for name, method in every.items()},
    }
    evaluated = {"runs": runs, "seeds": setting.seeds, "shots": setting.shots, "draws": setting.draws, "shallow": setting.shallow}
    evaluated["ensembles"] = {name: method.of for name, method in every.items() if method.of}
    planned["evaluate"] = {"config": evaluated, "fingerprint": fingerprint(["moebench.stages.evaluate_images"])}
    planned["tabulate"] = {"config": shown, "fingerprint": fingerprint(["moebench.stages.tabulate_images"])}
    return planned


def _model(setting: ImageSetting, method: ImageMethod, without: set[str]) -> dict[str, Any]:
    """What pre-training and fine-tuning of a method have in common."""
    return setting.model_dump(mode="json", include=SCALE) | {
        "method": {"label": ""} | method.model_dump(mode="json", exclude=without),
        "vision": config_images.vision(setting, method).model_dump(mode="json"),
    }


def _code(stage: str, method: ImageMethod) -> str:
    """Fingerprint of a training stage; the router, imported by name at run time, is named here."""
    return fingerprint(
        [f"moebench.stages.{stage}", *([f"moebench.moe.routers.{method.router}"] if method.router else [])], without=ORIGINALS
    )
