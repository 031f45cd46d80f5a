"""Stage ``prepare``: the data of an experiment, and the checksums of each part of them that runs depend on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import replacing, sha256, write_json


def prepare(experiment: Experiment) -> None:
    """Prepare the data in ``data/prepared/<profile>/<paper>``; a previous result is replaced only by a complete new one.

    ``parts/<part>.json`` lists the files of a part with their checksums. A run depends on its part alone, so other data that change do not
    repeat it.

    Raises:
        MoebenchError: the configuration is wrong, or the source is not there.
    """
    what = f"prepare {experiment.paper}, {experiment.profile}"
    with replacing(experiment.prepared) as folder, Console(stderr=True).status(what) as status:
        experiment.protocol.prepare.prepare(experiment, folder, lambda now: status.update(f"{what}: {now}"))
        status.update(f"{what}: checksums")
        for part, paths in experiment.protocol.prepare.parts(experiment).items():
            if lacking := [path for path in paths if not _files(folder / path)]:
                raise MoebenchError(f"{experiment.prepared}: nothing was made of {', '.join(lacking)}, which runs of part {part!r} read")
            files = sorted({file for path in paths for file in _files(folder / path)} - set(_files(folder / "parts")))
            write_json(folder / "parts" / f"{part}.json", {file.relative_to(folder).as_posix(): sha256(file) for file in files})


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
