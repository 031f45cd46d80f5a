"""The pipeline files under the real DVC: what runs again after which change, what continues after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

METHODS = ("dense", "dotted", "frozen", "lowdim")


@pytest.fixture
def project(project):
    """The stand-in project with one task, to save time."""
    for profile in ("smoke", "cpu"):
        project.edit(f"data/profiles/{profile}.yaml", "[constructed_pos, constructed_nli]", "[constructed_pos]")
    return project


def keep(project, *methods: str) -> None:
    """Remove the other methods."""
    for name in set(METHODS) - set(methods):
        (project.root / "experiments" / "xmoe" / "methods" / f"{name}.yaml").unlink()


def trained(*methods: str, seeds: tuple[int, ...] = (0,)) -> list[str]:
    """What the calls are when these methods are trained, and evaluated."""
    calls = [f"pretrain {name}-{seed}" for name in methods if name != "frozen" for seed in seeds]
    calls += [f"finetune {name}-constructed_pos-{seed}" for name in methods for seed in seeds]
    return sorted([*calls, "evaluate", "tabulate"])


def wait_for(path: Path, text: str) -> None:
    """Wait until a file holds ``text``."""
    end = time.monotonic() + 30
    while not path.exists() or path.read_text() != text:
        assert time.monotonic() < end, f"{path} never came to hold {text!r}"
        time.sleep(0.02)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not a child of this one has ended, be it collected or not."""
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {pid} did not end"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_change_re_runs_what_it_reaches_and_nothing_else(project):
    project.call("moebench", "select")
    project.call("dvc", "repro")  # plain, from the root: reaches every stage of every file
    assert project.calls() == sorted([*trained(*METHODS), "prepare", "baselines"])

    assert "up to date" in project.call("dvc", "repro")
    assert project.calls() == []

    project.edit("moebench/moe/routers/dot.py", '"""', '# a comment\n"""More words. ')
    project.edit("moebench/files.py", "\n", "\n\n\n# a comment\n")
    project.call("dvc", "repro")
    assert project.calls() == []

    router = project.root / "moebench" / "moe" / "routers" / "dot.py"
    router.write_text(router.read_text() + "\n\nUNUSED = 1\n")
    project.call("dvc", "repro")
    assert project.calls() == trained("dotted", "frozen")

    (project.root / "experiments" / "xmoe" / "methods" / "new.yaml").write_text(
        "{label: New, layer: moe, router: dot, losses: {balance: 0.1}}"
    )
    assert "run `moebench select --profile smoke`" in project.call("dvc", "repro", status=255)
    project.call("moebench", "select")
    project.call("dvc", "repro")
    assert project.calls() == trained("new")


@pytest.mark.slow
def test_switching_the_profile_and_back_re_runs_nothing(project):
    keep(project, "dense")
    project.call("moebench", "select")
    project.call("dvc", "repro")
    project.calls()
    before = {path: (project.root / path).read_bytes() for path in ("params.yaml", "experiments/xmoe/params.yaml")}

    project.call("moebench", "select", "--profile", "cpu")
    project.call("dvc", "repro")
    assert project.calls() == sorted([*trained("dense", seeds=(0, 1)), "prepare", "baselines"])

    project.edit("params.yaml", "profile: cpu", "profile: smoke")  # by hand: half a switch, which the lists do not follow
    assert "run `moebench select --profile smoke`" in project.call("moebench", "plan", status=2)

    project.call("moebench", "select", "--profile", "smoke")
    assert {path: (project.root / path).read_bytes() for path in before} == before
    assert "up to date" in project.call("dvc", "repro")
    assert project.calls() == []


def test_run_does_everything_side_by_side_and_nothing_twice(project):
    keep(project, "dense")
    output = project.call("moebench", "run", "--jobs", "2", "--profile", "smoke")
    assert project.calls() == sorted([*trained("dense"), "prepare", "baselines"])
    assert "7 stages: 7 run, 0 were up to date." in output
    assert "[7/7] tabulate@smoke-xmoe done" in output
    assert "results/smoke/xmoe/table1_xtreme.md" in output

    output = project.call("moebench", "run")
    assert project.calls() == []
    assert "7 stages: 0 run, 7 were up to date." in output


@pytest.mark.slow
def test_a_method_runs_alone_beside_the_records_of_the_others(project):
    keep(project, "dense", "dotted", "frozen")
    project.call("moebench", "run", "--jobs", "2")
    project.calls()
    for name in ("runs", "data/prepared", ".dvc/cache", ".dvc/tmp"):  # what a fresh clone has not
        shutil.rmtree(project.root / name)
    results = project.root / "results" / "smoke" / "xmoe"
    before = (results / "provenance.csv").read_text().splitlines()
    (project.root / "experiments" / "xmoe" / "methods" / "new.yaml").write_text("{label: New, layer: none}")
    alone = ("moebench", "run", "--jobs", "2", "--paper", "xmoe", "--method", "new")

    output = project.call(*alone)
    assert project.calls() == sorted([*trained("new"), "prepare", "baselines"])
    assert "Added to the tables: new. Records of other methods stay as they were." in output
    assert "has changed" not in output
    after = (results / "provenance.csv").read_text().splitlines()
    assert [line for line in after if ",new," not in line] == before
    assert sum(",new," in line for line in after) == 2

    router = project.root / "moebench" / "moe" / "routers" / "dot.py"
    router.write_text(router.read_text() + "\n\nUNUSED = 1\n")
    assert "code of these has changed since they ran (provenance.csv has the commits): dotted, frozen." in project.call(*alone)
    assert project.calls() == ["evaluate", "tabulate"]

    shutil.rmtree(project.root / "runs" / "smoke" / "xmoe")
    project.edit("experiments/xmoe/profiles/smoke.yaml", "steps: 5", "steps: 6")
    output = project.call(*alone, status=2)
    assert "pretrain of 'dense', seed 0, mlm, ran with another configuration than" in output
    assert "remove results/smoke/xmoe/records.csv to begin anew" in output
    project.edit("experiments/xmoe/profiles/smoke.yaml", "steps: 6", "steps: 5")
    project.edit("data/profiles/smoke.yaml", "vocabulary: 100", "vocabulary: 200")
    output = project.call(*alone, status=2)
    assert "data/prepared/smoke/tokenizer: is not what dvc.lock says that experiments/xmoe/dvc.yaml:finetune@smoke-dense" in output
    assert project.calls() == ["prepare"]  # nothing was trained in vain

    (results / "records.csv").unlink()
    project.call(*alone)
    assert project.calls() == trained("new")
    assert [line.split(",")[2] for line in (results / "provenance.csv").read_text().splitlines()] == ["method", "new", "new"]


@pytest.mark.slow
def test_a_failing_stage_is_shown_and_the_next_run_continues(project):
    keep(project, "dense", "dotted")
    (project.root / "fail").write_text("dotted")
    output = project.call("moebench", "run", "--jobs", "1", status=1)
    assert "pretrain@smoke-dotted-0 failed; the end of runs/smoke/logs/experiments/xmoe/pretrain@smoke-dotted-0.log" in output
    assert "the stand-in fails" in output
    ran = project.calls()
    assert "evaluate" not in ran
    (project.root / "fail").unlink()
    project.call("moebench", "run", "--jobs", "2")
    again = project.calls()
    assert sorted({*ran, *again}) == sorted([*trained("dense", "dotted"), "prepare", "baselines"])
    assert set(ran) & set(again) == {"pretrain dotted-0"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupted_run_ends_its_stages_and_continues(project, number):
    keep(project, "dense")
    (project.root / "hang").write_text("dense")
    process = project.start("moebench", "run")
    folder = project.root / "runs" / "smoke" / "xmoe" / "pretrain"
    wait_for(folder / "dense-0" / "checkpoints" / "step", "3")
    stage = int((folder / ".dense-0.lock").read_text())
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in output
    wait_for_end(stage)
    (project.root / "hang").unlink()
    project.calls()
    project.call("moebench", "run")
    assert "pretrain dense-0 from step 3" in project.calls()


@pytest.mark.parametrize("killed", ["dvc", "run"])
@pytest.mark.slow
def test_a_stage_does_not_outlive_a_killed_pipeline_and_continues(project, killed):
    keep(project, "dense")
    (project.root / "hang").write_text("dense")
    project.call("moebench", "select")
    process = project.start("moebench", "run") if killed == "run" else project.start("dvc", "repro")
    folder = project.root / "runs" / "smoke" / "xmoe" / "pretrain"
    wait_for(folder / "dense-0" / "checkpoints" / "step", "3")
    stage = int((folder / ".dense-0.lock").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_end(stage)
    (project.root / "hang").unlink()
    project.calls()
    project.call("moebench", "run", "--jobs", "2")
    assert "pretrain dense-0 from step 3" in project.calls()
