"""The command line: what it prints, how it ends, and that a mistake is told before torch is loaded."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moebench import cli, config, experiment, protocol
from moebench.errors import MoebenchError

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
        (("run", "--profile", "smok"), "unknown profile 'smok' (did you mean 'smoke'?)"),
        (("run", "--paper", "xmo"), "unknown paper 'xmo' (did you mean 'xmoe'?)"),
        (("run", "--jobs", "0"), "--jobs has the value 0; should be 1 or more"),
        (("run", "--method", "dense"), "--method needs --paper"),
        (("pretrain", *TRAIN, "--method", "dens"), "unknown method 'dens' of paper 'xmoe' (did you mean 'dense'?)"),
        (("pretrain", *TRAIN[:-1], "77", "--method", "dense"), "unknown seed 77; seeds of paper 'xmoe', profile 'smoke', are: 0"),
        (
            ("finetune", *TRAIN, "--method", "dense", "--training-set", "constructed_po"),
            "unknown training set 'constructed_po' (did you mean 'constructed_pos'?)",
        ),
        (("evaluate", "--paper", "nothing"), "unknown paper 'nothing'"),
        (("log", "--paper", "xmoe", "pretrain@dens-0"), "unknown run 'pretrain@dens-0' (did you mean 'pretrain@dense-0'?)"),
        (("tables", "--profile", "paper"), "no paper has records here; make them with: make reproduce PROFILE=paper"),
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
    lines, errors = call("run", cwd=tmp_path)
    assert "params.yaml: unknown key 'profil' (did you mean 'profile'?)" in errors
    assert lines == ["2"]


@pytest.mark.parametrize(
    "text", [b"- a\n", b"\xef\xbb\xbfprofile: smoke\n", "profile: Zürich\n".encode("latin-1"), b"profile: smoke\nfoldr: x\n"]
)
def test_odd_params_are_refused_though_the_profile_is_given(tmp_path, text):
    (tmp_path / "params.yaml").write_bytes(text)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    lines, errors = call("select", "--profile", "smoke", cwd=tmp_path)
    assert errors.startswith(f"moebench: error: {tmp_path}/params.yaml: ")
    assert lines == ["2"]


def test_a_reader_that_has_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)  # before anything is written; a reader such as `head` closes it at some time
    ends = subprocess.run(
        [sys.executable, "-m", "moebench", "list", "routers"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (ends.returncode, ends.stderr) == (128 + signal.SIGPIPE, "")


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
        "papers": experiment.papers(ROOT),
        "profiles": experiment.profiles(ROOT),
        "protocols": protocol.names(),
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


@pytest.mark.parametrize(("paper", "profile"), [("xmoe", "cpu"), ("xmoe", "real"), ("e3", "cpu")])
def test_listed_metrics_are_those_of_the_records(paper, profile):
    from moebench.results import records

    found = records.read(ROOT / "results" / profile / paper / "records.csv", records.RECORDS)
    listed = experiment.Experiment(ROOT, paper, profile).protocol.config.METRICS
    assert len(listed) == len(set(listed))
    assert {re.sub("[0-9]+_shot", "<k>_shot", metric) for metric in set(found["metric"])} <= set(listed)


BAD = {
    "protocol: transfer": ("protocol: transfers", "experiment.yaml: key 'protocol' has the value 'transfers' (did you mean 'transfer'?)"),
    "name: X-MoE": ("nam: X-MoE", "experiment.yaml: unknown key 'nam' (did you mean 'name'?); keys are: arxiv, name, protocol, title"),
    'arxiv: "2204.09179"': ("arxiv: 2204.0917", "experiment.yaml: key 'arxiv' has the value 2204.0917"),
}


@pytest.mark.parametrize("old", BAD)
def test_a_mistake_in_what_a_paper_is(tmp_path, old):
    new, message = BAD[old]
    (tmp_path / "params.yaml").write_text("profile: smoke\n")
    shutil.copytree(ROOT / "experiments" / "xmoe", tmp_path / "experiments" / "xmoe")
    about = tmp_path / "experiments" / "xmoe" / "experiment.yaml"
    about.write_text(about.read_text().replace(old, new))
    lines, errors = call("run", cwd=tmp_path)
    assert message in errors
    assert lines == ["2"]


def test_a_protocol_that_lacks_a_room(tmp_path, monkeypatch):
    folder = tmp_path / "half"
    folder.mkdir()
    for room in protocol.ROOMS:
        if room not in ("runs", "tables"):
            (folder / f"{room}.py").write_text("")
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    with pytest.raises(MoebenchError, match=r"half: protocol 'half' lacks runs\.py, tables\.py; a protocol has the rooms config, prepare,"):
        protocol.find("half", Path("experiment.yaml"))


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(cli.VERBS, "select", interrupted)
    assert cli.main(["select"]) == 130
    assert capsys.readouterr().err == "moebench: interrupted\n"


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)
