"""Stage ``evaluate``: predictions and measures of every run of an experiment become its records."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import read_object, replacing, sha256, write_text
from moebench.pipeline.kept import keep
from moebench.results import records
from moebench.results.scored import measures_of


def evaluate(experiment: Experiment, only: Collection[str] = ()) -> list[str]:
    """Score every prediction and write ``records.csv``, ``provenance.csv``, ``costs.csv`` and, for figures, ``curves.csv``.

    They go to ``runs/<profile>/<paper>/records/``, from which `moebench.pipeline.tabulate` takes them. Everything is read and scored before
    the first file is written.

    Args:
        experiment: whose predictions.
        only: score the runs of these methods alone; the records of all others stay as they are (`moebench.pipeline.kept`). None: score all.

    Returns:
        The methods whose records stay although their code has changed.

    Raises:
        MoebenchError: runs or predictions are missing (the message lists them and the command that makes the first), a file is damaged, or
            the records of other methods cannot stay.
    """
    experiment.check()
    manifest = read_object(experiment.prepared / "manifest.json", source=str, revision=str)
    common = {"profile": experiment.profile, "data": data_name(manifest), "paper": experiment.paper}
    kept, changed = keep(experiment, only)
    judged = only or list(experiment.methods)
    wanted = [run for run in experiment.runs if run.method in judged]
    finished = {run for run in experiment.runs if _is_finished(experiment.folder(run))}
    missing: list[tuple[Path, Run | None]] = [(experiment.folder(run), run) for run in wanted if run not in finished]
    for run in wanted:
        if run in finished:
            measures = measures_of(experiment.folder(run) / "measures.json", run.stage)
            kept["records.csv"] += (common | {"method": run.method, "seed": run.seed} | measure for measure in measures)
            provenance, costs = _facts(experiment, run, manifest)
            kept["provenance.csv"].append(provenance)
            kept["costs.csv"].append(costs)
    scored = experiment.protocol.scoring.score(experiment, judged, finished)
    kept["records.csv"] += (common | row for row in scored.records)
    kept["curves.csv"] += (common | row for row in scored.curves)
    missing += scored.missing
    if missing:
        first = missing[0][1]
        make = experiment.command(first) if first else f"dvc repro {experiment.address('baselines')}"
        listed = "\n".join(f"  {path.relative_to(experiment.root)}" for path, _ in missing)
        raise MoebenchError(f"{len(missing)} missing under {experiment.root}:\n{listed}\nThe first is made by: {make}")
    with replacing(experiment.records_folder) as folder:
        for name, form in records.FILES.items():
            if kept[name] or name != "curves.csv":  # not every protocol has figures
                write_text(folder / name, records.render(kept[name], form, experiment.records_folder / name))
    return changed


def _is_finished(folder: Path) -> bool:
    return (folder / "costs.json").is_file() and not (folder / "run.json").exists()


def _facts(experiment: Experiment, run: Run, manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's rows of ``provenance.csv`` and of ``costs.csv``."""
    plan, cost = experiment.plan_file(run), read_object(experiment.folder(run) / "costs.json")
    identity = {"profile": experiment.profile, "paper": experiment.paper, "method": run.method, "seed": run.seed, "stage": run.stage}
    identity["task"] = run.training_set or experiment.protocol.runs.PRETRAINED_ON
    facts = cost | {
        "train_language": manifest.get("train_languages", {}).get(run.training_set),
        "config_hash": sha256(plan),
        "fingerprint": read_object(plan, fingerprint=str)["fingerprint"],
    }
    return tuple(identity | {column: facts.get(column) for column in form.values} for form in (records.PROVENANCE, records.COSTS))  # type: ignore[return-value]


def data_name(manifest: dict[str, Any]) -> str:
    """Return the short name of the data that every record carries: ``constructed-1``, or ``files:`` and 12 digits of the revision."""
    revision = str(manifest["revision"])
    return f"files:{revision[:12]}" if manifest["source"] == "files" else revision
