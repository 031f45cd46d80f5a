"""Stage ``baselines``: predictions of the shallow baselines for every task of a profile."""

from __future__ import annotations

import shutil
from pathlib import Path

from moebench import config, files
from moebench.errors import MoebenchError
from moebench.tasks.baselines import BASELINES


def baselines(root: Path, profile: str) -> None:
    """Write ``runs/<profile>/baselines/<baseline>/<task>/<language>.jsonl``; earlier ones of the profile are replaced.

    Args:
        root: the project's root.
        profile: name of the profile; its data must be prepared.

    Raises:
        MoebenchError: prepared data is missing or damaged; the message names the file. Nothing was changed then.
    """
    prepared = root / "data" / "prepared" / profile / "tasks"
    written = {}
    for one in config.tasks(config.data(root, profile)):
        name, kind, folder = one.name, one.kind, prepared / one.train
        train = files.read_jsonl(folder / "train.jsonl")
        tests = {path.stem: files.read_jsonl(path) for path in sorted((folder / "test" / name).glob("*.jsonl"))}
        if not train or not tests:
            lacking = folder / "train.jsonl" if not train else folder / "test" / name
            raise MoebenchError(f"{lacking}: no examples of task {name!r}; run 'moebench prepare' for the profile {profile!r}")
        every = [row for rows in tests.values() for row in rows]  # one call for all languages: a baseline is fitted once
        for baseline, predict in BASELINES[kind].items():
            predictions = iter(predict(train, every))
            for language, rows in tests.items():
                written[Path(baseline, name, f"{language}.jsonl")] = [next(predictions) for _ in rows]
    folder = root / "runs" / profile / "baselines"
    shutil.rmtree(folder, ignore_errors=True)
    for path, rows in written.items():
        files.write_jsonl(folder / path, rows)
