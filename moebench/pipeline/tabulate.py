"""Stage ``tabulate``: the tables and figures of an experiment from its records and its published numbers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment
from moebench.files import atomic_path, write_text
from moebench.results import records
from moebench.results.tables import Expected, Measured

README = """\
# Results of {paper} under the profile `{profile}`

All files are made by `moebench evaluate` and `moebench tabulate`; none is edited by hand.

| file | what it holds |
|---|---|
{files}
{notes}
In LaTeX: `\\input{{{first}.tex}}` with the packages `booktabs` and `graphicx`.
"""


def tabulate(experiment: Experiment) -> None:
    """Take the records of the last evaluation over into ``results/<profile>/<paper>/`` and make the tables there (`tables`).

    Raises:
        MoebenchError: as `tables`. Nothing was changed then.
    """
    source, target = experiment.records_folder, experiment.results
    texts = written(experiment, source)
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():  # tables of earlier versions, and figures whose points are gone
        if path.is_file() and path.name not in texts and not (source / path.name).is_file():
            path.unlink()
    for name in records.FILES:
        if (source / name).is_file():
            with atomic_path(target / name) as new:
                shutil.copyfile(source / name, new)
    for name, text in texts.items():
        write_text(target / name, text)


def tables(experiment: Experiment) -> None:
    """Make the tables again from the records that lie beside them, ``results/<profile>/<paper>/``; nothing is trained for it.

    Raises:
        MoebenchError: records or published numbers are missing or damaged. Nothing was changed then.
    """
    for name, text in written(experiment, experiment.results).items():
        write_text(experiment.results / name, text)


def written(experiment: Experiment, folder: Path) -> dict[str, str]:
    """Return the content of all tables, figures and the ``README.md``: file name → text. Cells without a number say why.

    Args:
        experiment: whose tables.
        folder: where the records are.

    Raises:
        MoebenchError: records or published numbers are missing or damaged, or do not fit the experiment.
    """
    protocol = experiment.protocol
    there = {name: form for name, form in records.FILES.items() if (folder / name).is_file() or name != "curves.csv"}
    found = {name: records.read(folder / name, form) for name, form in there.items()}
    curves = found.get("curves.csv", pd.DataFrame(columns=list(records.CURVES.columns)))
    measured = Measured(found["records.csv"], found["provenance.csv"], found["costs.csv"], curves)
    expected = expectation(experiment, measured, folder)
    made = protocol.tables.tables(expected, measured)
    readme = README.format(
        paper=expected.about.name,
        profile=experiment.profile,
        files=protocol.tables.FILES,
        notes=protocol.tables.NOTES,
        first=made[0].name,
    )
    texts = {"README.md": readme}
    for one in made:
        texts |= one.files(expected)
    return texts


def expectation(experiment: Experiment, measured: Measured, folder: Path) -> Expected:
    """Put together what the tables should hold, from the configuration and from what the records, of ``folder``, say about their data.

    Raises:
        MoebenchError: the records hold another profile's or paper's, mix data, or name a method or metric that there is not.
    """
    experiment.check()
    _check(folder / "records.csv", measured.records, experiment, ("profile", "paper"))
    data = sorted(set(measured.records["data"]))
    if len(data) > 1:
        raise MoebenchError(f"{folder / 'records.csv'}: column 'data' holds several values, {', '.join(data)}; run evaluate again")
    _check(folder / "records.csv", measured.records, experiment, ("metric",))
    _check(folder / "records.csv", measured.records[measured.records["stage"] != "baseline"], experiment)
    for name, frame in (("provenance", measured.provenance), ("costs", measured.costs), ("curves", measured.curves)):
        _check(folder / f"{name}.csv", frame, experiment)
    setting = experiment.setting
    return Expected(
        experiment=experiment,
        about=experiment.about,
        data=data[0] if data else "",
        methods=experiment.methods,
        seeds=setting.seeds,
        baseline=setting.baseline,
        published=experiment.published,
        notes=setting.notes,
    )


def _check(where: Path, rows: pd.DataFrame, experiment: Experiment, columns: Collection[str] = ("profile", "paper", "method")) -> None:
    """Check that the rows of a file name nothing that the experiment does not have; in a metric ``<k>`` stands for a whole number."""
    valid = {"profile": [experiment.profile], "paper": [experiment.paper], "method": [*experiment.methods]}
    valid["metric"] = [*experiment.protocol.config.METRICS]
    for column in columns:
        for name in sorted(set(rows[column])):
            if name not in valid[column] and re.sub("[1-9][0-9]*", "<k>", name) not in valid[column]:
                allowed = f"one of {', '.join(valid[column])}" if len(valid[column]) > 1 else valid[column][0]
                raise MoebenchError(f"{where}: column {column!r} holds {name!r}{nearest(name, valid[column])}; should be {allowed}")
