"""Where a checkpoint in Hugging Face layout lies: a folder, or a repository of the hub at a pinned commit.

A checkpoint is named by a folder (absolute, or below ``data/downloads``) or by ``owner/name@revision``, the revision being the 40
hexadecimal digits of a commit, because a branch or a tag can move. A pinned checkpoint is looked for in the hub's own cache layout,
``models--owner--name/snapshots/revision``, first below ``data/downloads``, then in the cache that other programs of this user share; where
it is in neither, ``huggingface_hub`` downloads it into the first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from moebench.errors import MoebenchError
from moebench.files import read_json

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
WANTED = [CONFIG, TOKENIZER, WEIGHTS, INDEX, "model-*.safetensors"]
"""What is downloaded of a repository; parts of divided weights are called ``model-00001-of-00002.safetensors``."""
PINNED = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)@(?P<revision>[^/@]+)")


def resolve(name: str, downloads: Path) -> Path:
    """Return the folder that holds ``config.json`` and the weights of a checkpoint, downloading it once if it has to.

    Args:
        name: a folder, or ``owner/name@revision``.
        downloads: where a relative folder is looked for and where downloads go (``data/downloads``).

    Raises:
        MoebenchError: the name is neither, a file is missing, or the download failed; the message says which files to put where by hand.
    """
    folder = downloads / Path(name).expanduser()
    if folder.is_dir():
        if lacking := missing(folder):
            raise MoebenchError(f"checkpoint {name!r}: {folder} lacks {lacking}")
        return folder
    match = PINNED.fullmatch(name)
    if not match:
        raise MoebenchError(
            f"checkpoint {name!r}: {folder} is no folder, and the name is not owner/name@revision, the revision being the 40 hexadecimal"
            " digits of a commit"
        )
    owner, repository, revision = match.group("owner", "name", "revision")
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise MoebenchError(
            f"checkpoint {name!r}: the revision {revision!r} can move or is cut short; give the 40 hexadecimal digits of a commit"
            f" (https://huggingface.co/{owner}/{repository}/commits/main lists them)"
        )
    inside = Path(f"models--{owner}--{repository}", "snapshots", revision)
    for cache in (downloads, _shared_cache()):
        if not missing(cache / inside):
            return cache / inside
    reason = _download(f"{owner}/{repository}", revision, downloads)
    folder = downloads / inside
    if lacking := missing(folder):
        raise MoebenchError(
            f"checkpoint {name!r}: neither in {folder} nor in {_shared_cache() / inside}, and the download failed ({reason or lacking}).\n"
            f"On a machine with network take {CONFIG}, {TOKENIZER} and {WEIGHTS} (or {INDEX} and the parts that it names)\n"
            f"from https://huggingface.co/{owner}/{repository}/tree/{revision} and put them into {folder}"
        )
    return folder


def missing(folder: Path) -> str:
    """Say which of the files that a checkpoint needs are not in ``folder``; an empty text if all are there.

    The tokenizer's file is not among them: whoever needs it says so.
    """
    lacking = [] if (folder / CONFIG).is_file() else [CONFIG]
    if (folder / WEIGHTS).is_file():
        pass
    elif (folder / INDEX).is_file():
        lacking += [file for file in parts(folder) if not (folder / file).is_file()]
    else:
        lacking.append(f"{WEIGHTS} (or {INDEX} and the parts that it names)")
        if (folder / "pytorch_model.bin").is_file():
            lacking[-1] += "; pytorch_model.bin is not read: convert it to safetensors"
    return ", ".join(lacking)


def parts(folder: Path) -> list[str]:
    """Names of the files that divided weights are in, sorted.

    Raises:
        MoebenchError: the index is damaged.
    """
    index = read_json(folder / INDEX)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise MoebenchError(f"{folder / INDEX}: key 'weight_map' should say in which file each tensor is")
    return sorted(set(map(str, files.values())))


def _shared_cache() -> Path:
    """The hub's cache of this user, as ``huggingface_hub`` finds it."""
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{general}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _download(repository: str, revision: str, downloads: Path) -> str:
    """Fetch the wanted files of a repository; returns why it failed, or an empty text."""
    try:
        from huggingface_hub import model_info, snapshot_download
    except ImportError:
        return "huggingface_hub is not installed"
    try:
        model_info(repository, revision=revision, timeout=5)  # fails at once; the download itself first retries for half a minute
        snapshot_download(repository, revision=revision, cache_dir=downloads, allow_patterns=WANTED)
    except Exception as error:  # its own classes, httpx's and the system's: all mean that nothing came
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""
