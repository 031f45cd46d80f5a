"""The command line: ``python -m moebench VERB``. A stage is imported only after its arguments have been checked, and torch with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import moebench
from moebench import catalogue, config, config_images
from moebench.errors import MoebenchError, nearest
from moebench.stages.warm import handed_over, serve

TASK_METRICS = {name for task in catalogue.TASKS.values() for name in task.metrics}
ROUTING_METRICS = ("inter_run_consistency", "load_entropy", "max_violation", "representation_collapse", "router_fluctuation")
UNCERTAINTY_METRICS = (
    *("adaptive_ece", "aurc", "brier", "disagreement", "ece", "ece_scaled", "mutual_information", "nll", "nll_scaled", "signed_ece"),
    "temperature",
)
MEASURED_IN_RUNS = ("dropped_share", "experts_per_token", "flops_per_token", "router_entropy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 1 (a stage or a training failed), 2 (a mistake in the input) or 130 (interrupted)."""
    try:
        options = _parser().parse_args(arguments)
        if options.verb == "warm":
            return serve(options.socket, main)
        options.arguments = sys.argv[1:] if arguments is None else list(arguments)
        root = config.project_root()
        if options.paper:
            config.check_paper(root, options.paper)
        profile = config.check_profile(options.profile) if options.profile else config.params(root).profile
        return VERBS[options.verb](root, profile, options) or 0
    except MoebenchError as error:
        print(f"moebench: error: {error}", file=sys.stderr)
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

    def verb(name: str, what: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        added.add_argument("--profile", help="default: the one selected in params.yaml")
        added.set_defaults(paper=None)
        return added

    run = verb("run", "run whatever is not up to date, stages side by side")
    run.add_argument("--paper", help="default: all of them")
    run.add_argument(
        "--method", action="append", help="train and score this one alone, the records of the others stay; may be repeated; needs --paper"
    )
    run.add_argument("--jobs", type=int, help="stages side by side; default: one a GPU, or as many as the CPU cores allow")
    verb("select", "write the profile into params.yaml and the lists of stages that the pipeline expands")
    names = verb("list", "print the names of one kind, one a line")
    names.add_argument("kind", choices=sorted(LISTS))
    names.add_argument("--paper", help="whose methods; default: those of all papers")
    verb("plan", "validate the configuration and write what every run is")
    verb("prepare", "make the data, the tokenizer and the pre-training rows")
    verb("images", "make the image sets of the papers on images")
    verb("baselines", "predict with the shallow baselines")
    for name, what in (("pretrain", "pre-train a method with one seed"), ("finetune", "fine-tune a method on a training set and predict")):
        training = verb(name, what)
        training.add_argument("--paper", required=True)
        training.add_argument("--method", required=True)
        training.add_argument("--seed", type=int, required=True)
        if name == "finetune":
            training.add_argument("--training-set", required=True)
    verb("evaluate", "score all predictions of a paper").add_argument("--paper", required=True)
    verbs.add_parser("warm").add_argument("socket")  # not listed: `run` starts it
    verb("tabulate", "make a paper's tables from its records").add_argument("--paper", required=True)
    return parser


def _run(root: Path, profile: str, options: argparse.Namespace) -> int:
    from moebench.stages.run import run

    if options.jobs is not None and options.jobs < 1:
        raise MoebenchError(f"--jobs has the value {options.jobs}; should be 1 or more")
    if options.method and not options.paper:
        raise MoebenchError("--method needs --paper: methods of two papers may have one name")
    return run(root, profile, options.jobs, options.paper, options.method or ())


def _select(root: Path, profile: str, options: argparse.Namespace) -> None:
    from moebench.stages.select import select

    select(root, profile)


def _list(root: Path, profile: str, options: argparse.Namespace) -> None:
    print("\n".join(LISTS[options.kind](root, options.paper)))


def _methods(root: Path, paper: str | None) -> Iterable[str]:
    papers = [paper] if paper else config.papers(root)
    return sorted({path.stem for paper in papers for path in (root / "experiments" / paper / "methods").glob("*.yaml")})


def _plan(root: Path, profile: str, options: argparse.Namespace) -> None:
    from moebench.stages.plan import plan

    plan(root, profile)


def _prepare(root: Path, profile: str, options: argparse.Namespace) -> None:
    config.data(root, profile)
    from moebench.stages.prepare import prepare

    prepare(root, profile)


def _images(root: Path, profile: str, options: argparse.Namespace) -> None:
    config_images.data(root, profile)
    from moebench.stages.images import images

    images(root, profile)


def _baselines(root: Path, profile: str, options: argparse.Namespace) -> None:
    config.data(root, profile)
    from moebench.stages.baselines import baselines

    baselines(root, profile)


def _pretrain(root: Path, profile: str, options: argparse.Namespace) -> int:
    _check_training(root, profile, options)
    if (status := handed_over(options.arguments)) is not None:
        return status
    if config_images.of_images(root, options.paper):
        from moebench.stages.pretrain_images import pretrain_images

        pretrain_images(root, profile, options.paper, options.method, options.seed)
        return 0
    from moebench.stages.pretrain import pretrain

    pretrain(root, profile, options.paper, options.method, options.seed)
    return 0


def _finetune(root: Path, profile: str, options: argparse.Namespace) -> int:
    _check_training(root, profile, options)
    pictures = config_images.of_images(root, options.paper)
    sets = [config_images.DOWNSTREAM] if pictures else sorted({task.train for task in config.tasks(config.data(root, profile))})
    if options.training_set not in sets:
        raise MoebenchError(
            f"unknown training set {options.training_set!r}{nearest(options.training_set, sets)};"
            f" training sets of profile {profile!r} are: {', '.join(sets)}"
        )
    if (status := handed_over(options.arguments)) is not None:
        return status
    if pictures:
        from moebench.stages.finetune_images import finetune_images

        finetune_images(root, profile, options.paper, options.method, options.seed)
        return 0
    from moebench.stages.finetune import finetune

    finetune(root, profile, options.paper, options.method, options.training_set, options.seed)
    return 0


def _evaluate(root: Path, profile: str, options: argparse.Namespace) -> None:
    if config_images.of_images(root, options.paper):
        config_images.setting(root, options.paper, profile)
        from moebench.stages.evaluate_images import evaluate_images

        evaluate_images(root, profile, options.paper)
        return
    config.setting(root, options.paper, profile)
    from moebench.stages.evaluate import evaluate

    evaluate(root, profile, options.paper)


def _tabulate(root: Path, profile: str, options: argparse.Namespace) -> None:
    if config_images.of_images(root, options.paper):
        config_images.setting(root, options.paper, profile)
        from moebench.stages.tabulate_images import tabulate_images

        tabulate_images(root, profile, options.paper)
        return
    config.setting(root, options.paper, profile)
    from moebench.stages.tabulate import tabulate

    tabulate(root, profile, options.paper)


def _check_training(root: Path, profile: str, options: argparse.Namespace) -> None:
    kind = config_images if config_images.of_images(root, options.paper) else config
    kind.method(root, options.paper, options.method)
    seeds = kind.setting(root, options.paper, profile).seeds
    if options.seed not in seeds:
        raise MoebenchError(
            f"unknown seed {options.seed}; seeds of paper {options.paper!r}, profile {profile!r}, are: {', '.join(map(str, seeds))}"
        )


VERBS: dict[str, Callable[[Path, str, argparse.Namespace], int | None]] = {
    "plan": _plan,
    "prepare": _prepare,
    "images": _images,
    "baselines": _baselines,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "tabulate": _tabulate,
    "select": _select,
    "run": _run,
    "list": _list,
}

LISTS: dict[str, Callable[[Path, str | None], Iterable[str]]] = {
    "layers": lambda root, paper: config.layers(),
    "methods": _methods,
    "metrics": lambda root, paper: sorted(
        {*TASK_METRICS, *map(catalogue.standard_error, TASK_METRICS), "perplexity"}
        | {*ROUTING_METRICS, *MEASURED_IN_RUNS, *UNCERTAINTY_METRICS}
    ),
    "papers": lambda root, paper: config.papers(root),
    "profiles": lambda root, paper: config.PROFILES,
    "routers": lambda root, paper: config.routers(),
    "tasks": lambda root, paper: catalogue.TASKS,
}
