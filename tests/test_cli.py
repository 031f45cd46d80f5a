"""The command line: what it prints, how it ends, and that a mistake is told before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moebench import cli, config

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "pandas", "lightning", "scipy", "sklearn", "dvc")
PROGRAM = f"""
import sys
from moebench.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print(status, *(name for name in {HEAVY!r} if name in sys.modules))
"""


def call(*arguments: str, cwd: Path = ROOT) -> tuple[list[str], str]:
    """Run a verb in a process of its own; returns the lines printed, the last with the status and heavy modules, and the errors."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    return done.stdout.splitlines(), done.stderr


TRAIN = ("--paper", "xmoe", "--profile", "smoke", "--seed", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--profile", "smok"), "unknown profile 'smok' (did you mean 'smoke'?)"),
        (("run", "--paper", "xmo"), "unknown paper 'xmo' (did you mean 'xmoe'?)"),
        (("run", "--jobs", "0"), "--jobs has the value 0; should be 1 or more"),
        (("run", "--method", "dense"), "--method needs --paper"),
        (("pretrain", *TRAIN, "--method", "dens"), "unknown method 'dens' of paper 'xmoe' (did you mean 'dense'?)"),
        (("pretrain", *TRAIN[:-1], "77", "--method", "dense"), "unknown seed 77; seeds of paper 'xmoe'"),
        (
            ("finetune", *TRAIN, "--method", "dense", "--training-set", "constructed_po"),
            "unknown training set 'constructed_po' (did you mean 'constructed_pos'?)",
        ),
        (("evaluate", "--paper", "nothing"), "unknown paper 'nothing'"),
    ],
)
def test_a_mistake_is_one_message_before_anything_heavy_is_loaded(arguments, message):
    lines, errors = call(*arguments)
    assert errors.startswith("moebench: error: ")
    assert message in errors
    assert "Traceback" not in errors
    assert lines == ["2"]


def test_a_mistake_in_a_file_is_told_the_same_way(tmp_path):
    (tmp_path / "params.yaml").write_text("profil: cpu\n")
    (tmp_path / "experiments").mkdir()
    lines, errors = call("plan", cwd=tmp_path)
    assert "params.yaml: unknown key 'profil' (did you mean 'profile'?)" in errors
    assert lines == ["2"]


def test_outside_a_project(tmp_path):
    lines, errors = call("list", "routers", cwd=tmp_path)
    assert "not inside a moebench project" in errors
    assert lines == ["2"]


@pytest.mark.parametrize("arguments", [(), ("plann",), ("pretrain", "--paper", "xmoe"), ("list", "things")])
def test_a_wrong_call_shows_the_usage(arguments):
    lines, errors = call(*arguments)
    assert "usage: moebench" in errors
    assert lines == ["2"]


@pytest.mark.parametrize("kind", sorted(cli.LISTS))
def test_lists_are_names_one_a_line(kind):
    lines, _ = call("list", kind)
    assert lines.pop() == "0"
    expected = {
        "layers": config.layers(),
        "papers": config.papers(ROOT),
        "profiles": list(config.PROFILES),
        "routers": config.routers(),
        "methods": sorted({path.stem for path in (ROOT / "experiments").glob("*/methods/*.yaml")}),
    }
    assert lines == expected.get(kind, lines)
    assert len(lines) == len(set(lines)) > 0
    if kind == "metrics":
        assert {"accuracy", "f1", "em", "em_bootstrap_se", "perplexity"} <= set(lines)
    if kind == "tasks":
        assert {"xnli", "constructed_nli"} <= set(lines)


def test_the_methods_of_one_paper():
    assert call("list", "methods", "--paper", "xmoe")[0] == [
        *sorted(path.stem for path in (ROOT / "experiments/xmoe/methods").glob("*.yaml")),
        "0",
    ]


def test_listed_routing_metrics_are_functions():
    from moebench.metrics import routing

    assert all(callable(getattr(routing, name)) for name in cli.ROUTING_METRICS)


def test_listed_uncertainty_metrics_are_those_of_the_records():
    from moebench.tasks.uncertainty import DIVERSITY, MEASURES, TEMPERATURE

    assert sorted(cli.UNCERTAINTY_METRICS) == sorted((*MEASURES, *DIVERSITY, TEMPERATURE))


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(cli.VERBS, "plan", interrupted)
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == "moebench: interrupted\n"


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)
