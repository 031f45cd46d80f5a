"""The command line: ``python -m moebench VERB``. A stage is imported only after its arguments have been checked, and torch with it."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import moebench
from moebench import config, experiment, protocol
from moebench.errors import MoebenchError, nearest
from moebench.experiment import Experiment, Run
from moebench.pipeline.guard import end_with_parent

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 1 (a stage or a training failed), 2 (a mistake in the input) or 130 (interrupted)."""
    try:
        options = _parser().parse_args(arguments)
        if VERBS[options.verb] in (_of_one, _train):  # a stage ends with the pipeline that started it, before it imports what takes seconds
            end_with_parent()
        status = VERBS[options.verb](config.project_root(), options) or 0
        sys.stdout.flush()
        return status
    except MoebenchError as error:
        print(f"moebench: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not error.filename:
            raise
        print(f"moebench: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"moebench: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("moebench: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moebench", description="Reproducible benchmarks of sparse mixture-of-experts methods.")
    parser.add_argument("--version", action="version", version=moebench.__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, what: str, one_paper: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        added.add_argument("--profile", help="default: that of params.yaml")
        added.add_argument("--paper", required=one_paper, help=None if one_paper else "default: all that have the profile")
        return added

    run = verb("run", "run whatever is not up to date, stages side by side")
    run.add_argument(
        "--method", action="append", help="train and score this one alone, the records of the others stay; may be repeated; needs --paper"
    )
    run.add_argument("--jobs", type=int, help="stages side by side; default: one a GPU, or as many as the CPU cores allow")
    run.add_argument("--logger", choices=("tensorboard", "wandb"), help="what training runs report to, beside their own course.csv")
    verb("tables", "make tables and figures from the records that are there; trains nothing")
    log = verb("log", "print the course of a training run", one_paper=True)
    log.add_argument("run", metavar="RUN", help="its stage, such as pretrain@dense-0")
    names = verbs.add_parser("list", help="print the names of one kind, one a line")
    names.add_argument("kind", choices=sorted(LISTS))
    names.add_argument("--paper", help="whose methods or profiles; default: those of all papers")
    verb("select", "write the pipelines that DVC reads, which `run` does by itself")
    verb("plan", "stage: validate the configuration and write what every run is", one_paper=True)
    verb("prepare", "stage: make the data", one_paper=True)
    verb("baselines", "stage: predict with the shallow baselines", one_paper=True)
    for name, what in (("pretrain", "pre-train a method with one seed"), ("finetune", "fine-tune a method on a training set and predict")):
        training = verb(name, f"stage: {what}", one_paper=True)
        training.add_argument("--method", required=True)
        training.add_argument("--seed", type=int, required=True)
        if name == "finetune":
            training.add_argument("--training-set", required=True)
    verb("evaluate", "stage: score all predictions of a paper", one_paper=True)
    verb("tabulate", "stage: take the records over and make a paper's tables", one_paper=True)
    return parser


def _experiments(root: Path, options: Options) -> list[Experiment]:
    given = config.params(root)  # read even where it is not asked, because DVC reads it, too
    return experiment.experiments(root, options.profile or given.profile, options.paper)


def _run(root: Path, options: Options) -> int:
    if options.jobs is not None and options.jobs < 1:
        raise MoebenchError(f"--jobs has the value {options.jobs}; should be 1 or more")
    if options.method and not options.paper:
        raise MoebenchError("--method needs --paper: methods of two papers may have one name")
    chosen = _experiments(root, options)
    for one in chosen:
        one.check()
        config.check_devices(one.setting_file, one.setting)
    from moebench.pipeline.run import run

    return run(chosen, main, options.jobs, options.method or (), options.logger)


def _tables(root: Path, options: Options) -> None:
    measured = [one for one in _experiments(root, options) if options.paper or (one.results / "records.csv").is_file()]
    if not measured:
        profile = options.profile or config.params(root).profile
        raise MoebenchError(f"{root / 'results' / profile}: no paper has records here; make them with: make reproduce PROFILE={profile}")
    for one in measured:
        one.check()
        from moebench.pipeline.tabulate import tables

        tables(one)
        print(f"Look at results/{one.profile}/{one.paper}/README.md")


def _log(root: Path, options: Options) -> None:
    from moebench.pipeline.log import course

    print(course(_experiments(root, options)[0], options.run))


def _list(root: Path, options: Options) -> None:
    if options.paper:
        experiment.check_paper(root, options.paper)
    print("\n".join(LISTS[options.kind](root, options.paper)))


def _methods(root: Path, paper: str | None) -> Iterable[str]:
    return sorted({path.stem for path in (root / "experiments").glob(f"{paper or '*'}/methods/*.yaml")})


def _named(kind: str) -> Callable[[Path, str | None], Iterable[str]]:
    """The names of one kind in the configuration of all protocols."""

    def names(root: Path, paper: str | None) -> Iterable[str]:
        found = (getattr(protocol.Protocol(name).config, kind) for name in protocol.names())
        return sorted({name for one in found for name in one})

    return names


def _select(root: Path, options: Options) -> None:
    for one in _experiments(root, options):
        _stage(options.verb)(one)


def _of_one(root: Path, options: Options) -> None:
    """A stage of one paper; its configuration is checked before the stage is imported."""
    one = _experiments(root, options)[0]
    one.check()
    _stage(options.verb)(one)


def _stage(verb: str) -> Callable[[Experiment], object]:
    """The function of the module of the same name."""
    found: Callable[[Experiment], object] = getattr(importlib.import_module(f"moebench.pipeline.{verb}"), verb)
    return found


def _train(root: Path, options: Options) -> None:
    chosen = _experiments(root, options)[0]
    run = _asked(chosen, Run(options.verb, options.method, options.seed, getattr(options, "training_set", "")))
    chosen.check()
    config.check_devices(chosen.setting_file, chosen.setting)
    from moebench.pipeline.train import train

    train(chosen, run)


def _asked(chosen: Experiment, asked: Run) -> Run:
    """The run that the arguments name.

    Raises:
        MoebenchError: there is none; the message names what there is.
    """
    for run in chosen.runs:
        if run == asked:
            return run
    chosen.method(asked.method)
    whose = f"of paper {chosen.paper!r}, profile {chosen.profile!r}, are"
    seeds = chosen.setting.seeds
    if asked.seed not in seeds:
        raise MoebenchError(f"unknown seed {asked.seed}; seeds {whose}: {', '.join(map(str, seeds))}")
    mine = [run for run in chosen.runs if run.stage == asked.stage]
    sets = sorted({run.training_set for run in mine} - {""})
    if asked.training_set and asked.training_set not in sets:
        raise MoebenchError(
            f"unknown training set {asked.training_set!r}{nearest(asked.training_set, sets)}; training sets {whose}: {', '.join(sets)}"
        )
    names = sorted({run.plan_name.partition("/")[2] for run in mine})
    raise MoebenchError(f"method {asked.method!r} has no such run of stage {asked.stage!r}; runs {whose}: {', '.join(names)}")


VERBS: dict[str, Callable[[Path, Options], int | None]] = {
    "run": _run,
    "tables": _tables,
    "log": _log,
    "list": _list,
    "select": _select,
    "pretrain": _train,
    "finetune": _train,
    **dict.fromkeys(("plan", "prepare", "baselines", "evaluate", "tabulate"), _of_one),
}

LISTS: dict[str, Callable[[Path, str | None], Iterable[str]]] = {
    "layers": lambda root, paper: config.layers(),
    "methods": _methods,
    "metrics": _named("METRICS"),
    "papers": lambda root, paper: experiment.papers(root),
    "profiles": lambda root, paper: experiment.profiles(root, paper),
    "protocols": lambda root, paper: protocol.names(),
    "routers": lambda root, paper: config.routers(),
    "tasks": _named("TASKS"),
}
