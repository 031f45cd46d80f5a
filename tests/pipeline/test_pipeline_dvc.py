"""The pipeline under the real DVC: what runs again after which change, what continues after a kill, and that DVC agrees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from projects import Project, ran, stages, trained

LOCK = "experiments/toy/smoke/dvc.lock"


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


def hanging(project: Project, run: str, *command: str) -> tuple[subprocess.Popen[str], int]:
    """Start a command that comes to a run that hangs; returns it and the run's process."""
    project.write("hang", run)
    process = project.start(*command)
    folder = project.root / "runs" / "smoke" / "toy" / "trained" / "pretrain"
    wait_for(folder / run / "checkpoints" / "step", "3")
    return process, int((folder / f".{run}.lock").read_text())


def test_run_does_everything_side_by_side_and_nothing_twice_and_dvc_agrees(project):
    output = project.run("--jobs", "2")
    assert ran(output) == stages("switch", "xmoe")
    assert "9 stages: 9 run, 0 were up to date." in output
    assert "Look at results/smoke/toy/README.md" in output
    assert "| switch | 50.0 ± 0.0 (2) |" in (project.root / "results/smoke/toy/accuracy.md").read_text()

    assert "9 stages: 0 run, 9 were up to date." in project.run()
    assert "up to date" in project.call("dvc", "status", "experiments/toy/smoke/dvc.yaml")
    before = (project.root / LOCK).read_bytes()
    assert ran(project.call("dvc", "repro", "experiments/toy/smoke/dvc.yaml")) == []
    assert (project.root / LOCK).read_bytes() == before
    assert not (project.root / "runs/smoke/toy/finished.jsonl").exists()


@pytest.mark.slow
def test_dvc_by_itself_does_the_same_and_run_agrees(project):
    project.write("params.yaml", "profile: smoke\nfolder:\n")
    project.call("moebench", "select")
    output = project.call("dvc", "repro")  # plain, from the root: reaches every stage of every paper of the profile
    assert ran(output) == sorted([*stages("switch", "xmoe"), "results@smoke"])
    assert "up to date" in project.call("dvc", "repro")
    assert "10 stages: 0 run, 10 were up to date." in project.call("moebench", "run")

    project.edit("experiments/toy/methods/xmoe.yaml", "0.01", "0.02")
    assert ran(project.call("moebench", "run")) == sorted([*trained("xmoe"), "plan", "results@smoke"])
    assert "up to date" in project.call("dvc", "repro")


def test_a_change_re_runs_what_it_reaches_and_nothing_else(project):
    project.run()
    project.edit("moebench/moe/routers/switch.py", '"""', '# a comment\n"""More words. ')
    project.edit("moebench/files.py", "\n", "\n\n\n# a comment\n")
    assert ran(project.run()) == ["plan"]  # it looks, and finds the same

    router = project.root / "moebench" / "moe" / "routers" / "switch.py"
    router.write_text(router.read_text() + "\n\nUNUSED = 1\n")
    assert ran(project.run()) == sorted(["plan", *trained("switch")])

    project.write("experiments/toy/methods/new.yaml", "{label: New, router: switch, losses: {balance: 0.1}}")
    assert ran(project.run()) == sorted(["plan", *trained("new")])

    project.edit("experiments/toy/methods/new.yaml", "label: New", "label: Old")
    assert ran(project.run()) == ["plan", "tabulate"]

    project.write("results/smoke/toy/accuracy.md", "by hand")
    assert ran(project.run()) == ["tabulate"]
    assert "by hand" not in (project.root / "results/smoke/toy/accuracy.md").read_text()

    (project.root / "moebench" / "protocols" / "vision" / "scoring.py").write_text("")  # another protocol's
    assert ran(project.run()) == ["plan"]


def test_data_that_change_repeat_the_runs_that_read_them(project):
    project.run()
    project.edit("experiments/toy/data/smoke.yaml", "noise: 0.1", "noise: 0.2")
    assert ran(project.run()) == stages("switch", "xmoe")
    project.edit("moebench/protocols/toy/prepare.py", '"source": "built-in"', '"source": "built-in", "new": 1')  # in no part that runs read
    assert ran(project.run()) == ["baselines", "evaluate", "plan", "prepare"]


@pytest.mark.slow
def test_what_was_made_before_is_taken_from_dvcs_cache(project):
    project.run()
    project.edit("experiments/toy/data/smoke.yaml", "noise: 0.1", "noise: 0.2")
    project.run()
    project.edit("experiments/toy/data/smoke.yaml", "noise: 0.2", "noise: 0.1")
    output = project.run()
    assert "toy/smoke prepare restored from the cache" in output
    assert "up to date" in project.call("dvc", "status", "experiments/toy/smoke/dvc.yaml")


@pytest.mark.slow
def test_a_profile_is_a_pair_of_files_and_leaves_tracked_files_alone(project):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *identity, *arguments], cwd=project.root, check=True, capture_output=True, text=True).stdout

    (project.root / ".dvc" / "config.local").unlink()
    shutil.copy(Path(__file__).parents[2] / ".gitignore", project.root / ".gitignore")
    for folder in ("profiles", "data"):
        home = project.root / "experiments" / "toy" / folder
        shutil.copy(home / "smoke.yaml", home / "mine.yaml")
    project.edit("experiments/toy/profiles/mine.yaml", "[0, 1]", "[7]")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    output = project.call("moebench", "run", "--profile", "mine")
    assert ran(output) == stages("switch", "xmoe", seeds=(7,))
    assert "profile `mine`" in (project.root / "results/mine/toy/accuracy.md").read_text()
    assert "mine\nsmoke\n" in project.call("moebench", "list", "profiles")
    assert git("status", "--porcelain") == "?? experiments/toy/mine/\n?? results/\n"


@pytest.mark.slow
def test_a_second_paper_is_a_folder_of_yaml(project):
    shutil.copytree(project.root / "experiments" / "toy", project.root / "experiments" / "other")
    project.edit("experiments/other/experiment.yaml", "name: Toy", "name: Other")
    output = project.run("--jobs", "2")
    assert ran(output) == sorted(stages("switch", "xmoe") * 2)
    pages = [(project.root / f"results/smoke/{paper}/accuracy.md").read_text() for paper in ("toy", "other")]
    assert pages[0] == pages[1].replace("Other", "Toy")
    pipelines = [(project.root / f"experiments/{paper}/smoke/dvc.yaml").read_text() for paper in ("toy", "other")]
    assert pipelines[0] == pipelines[1]


@pytest.mark.slow
def test_a_new_kind_of_experiment_goes_from_plan_to_tables_is_killed_and_continues_and_runs_a_method_alone(toy):
    toy.edit("experiments/toy/profiles/smoke.yaml", "steps: 40", "steps: 1000")
    process = toy.start("moebench", "run", "--profile", "smoke", "--jobs", "1")
    folder = toy.root / "runs/smoke/toy/trained/pretrain/switch-0"
    end = time.monotonic() + 100
    while not (folder / "course.csv").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "costs.json").exists()
    again = toy.start("moebench", "run", "--profile", "smoke", "--jobs", "2")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert ran(output) == trained("switch", "xmoe")
    results = toy.root / "results" / "smoke" / "toy"
    killed = (results / "records.csv").read_bytes()

    course = toy.call("moebench", "log", "--paper", "toy", "--profile", "smoke", "pretrain@switch-0").splitlines()
    assert course[0].split()[:3] == ["step", "loss", "balance"]
    assert [line.split()[0] for line in course[1:]] == [str(step) for step in range(10, 1001, 10)]  # once each, in spite of the kill

    for made in ("runs", ".dvc/cache"):
        shutil.rmtree(toy.root / made)
    (toy.root / LOCK).unlink()
    uninterrupted = toy.start("moebench", "run", "--profile", "smoke", "--jobs", "2")
    output, _ = uninterrupted.communicate(timeout=200)
    assert ran(output) == stages("switch", "xmoe")
    assert (results / "records.csv").read_bytes() == killed

    toy.write("experiments/toy/methods/plain.yaml", "{label: Plain, router: switch, losses: {balance: 0}}")
    output = toy.run("--paper", "toy", "--method", "plain")
    assert "Added to the tables: plain. Records of other methods stay as they were." in output
    lines = (results / "records.csv").read_text().splitlines()
    assert [line for line in lines if ",plain," not in line] == killed.decode().splitlines()


@pytest.mark.slow
def test_a_method_runs_alone_beside_the_records_of_the_others(project):
    project.run("--jobs", "2")
    for name in ("runs", "data/prepared", ".dvc/cache", ".dvc/tmp"):  # what a fresh clone has not
        shutil.rmtree(project.root / name)
    results = project.root / "results" / "smoke" / "toy"
    before = (results / "provenance.csv").read_text().splitlines()
    project.write("experiments/toy/methods/new.yaml", "{label: New, router: switch, losses: {balance: 0}}")
    alone = ("--jobs", "2", "--paper", "toy", "--method", "new")

    output = project.run(*alone)
    assert ran(output) == sorted(["plan", "prepare", "baselines", "pretrain@new-0", "pretrain@new-1"])
    assert "Added to the tables: new. Records of other methods stay as they were." in output
    assert "has changed" not in output
    after = (results / "provenance.csv").read_text().splitlines()
    assert [line for line in after if ",new," not in line] == before
    assert sum(",new," in line for line in after) == 2

    router = project.root / "moebench" / "moe" / "routers" / "xmoe.py"
    router.write_text(router.read_text() + "\n\nUNUSED = 1\n")
    output = project.run(*alone)
    assert "code of these has changed since they ran (provenance.csv has the commits): xmoe." in output
    assert ran(output) == ["plan"]

    shutil.rmtree(project.root / "runs" / "smoke" / "toy")
    project.edit("experiments/toy/profiles/smoke.yaml", "steps: 40", "steps: 41")
    output = project.run(*alone, status=2)
    assert "pretrain of 'switch', seed 0, noisy, ran with another configuration than" in output
    assert "remove results/smoke/toy/records.csv to begin anew" in output
    project.edit("experiments/toy/profiles/smoke.yaml", "steps: 41", "steps: 40")
    project.edit("experiments/toy/data/smoke.yaml", "noise: 0.1", "noise: 0.2")
    output = project.run(*alone, status=2)
    assert "parts/points.json: is not what dvc.lock says that experiments/toy/smoke/dvc.yaml:pretrain@switch-0 read" in output
    assert not any(name.startswith("pretrain") for name in ran(output))  # nothing was trained in vain

    (results / "records.csv").unlink()
    project.run(*alone)
    assert [line.split(",")[2] for line in (results / "provenance.csv").read_text().splitlines()] == ["method", "new", "new"]


def test_a_failing_stage_is_shown_and_the_next_run_continues(project):
    project.write("fail", "xmoe-0")
    output = project.run("--jobs", "1", status=1)
    assert "toy/smoke pretrain@xmoe-0 failed; the end of runs/smoke/toy/logs/pretrain@xmoe-0.log" in output
    assert "the stand-in fails" in output
    first = ran(output)
    assert "evaluate" not in first
    (project.root / "fail").unlink()
    again = ran(project.run("--jobs", "2"))
    assert sorted(first + again) == stages("switch", "xmoe")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_stages_and_continues(project, number):
    process, stage = hanging(project, "switch-0", "moebench", "run", "--profile", "smoke")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in output
    wait_for_end(stage)
    (project.root / "hang").unlink()
    assert "pretrain@switch-0" in ran(project.run())
    assert "from step 3" in (project.root / "runs/smoke/toy/logs/pretrain@switch-0.log").read_text()


@pytest.mark.parametrize("killed", ["dvc", "run"])
@pytest.mark.slow
def test_a_stage_does_not_outlive_a_killed_pipeline_and_continues(project, killed):
    project.call("moebench", "select", "--profile", "smoke")
    command = ("moebench", "run", "--profile", "smoke") if killed == "run" else ("dvc", "repro", "experiments/toy/smoke/dvc.yaml")
    process, stage = hanging(project, "switch-0", *command)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_end(stage)
    (project.root / "hang").unlink()
    project.run("--jobs", "2")
    assert "from step 3" in (project.root / "runs/smoke/toy/logs/pretrain@switch-0.log").read_text()


def test_what_a_killed_run_had_finished_is_not_repeated(project):
    process, stage = hanging(project, "xmoe-0", "moebench", "run", "--profile", "smoke", "--jobs", "1")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_end(stage)
    (project.root / "hang").unlink()
    journal = project.root / "runs/smoke/toy/finished.jsonl"
    with open(journal, "a") as file:
        file.write('{"pretrain@xmoe-0": {"cmd"')  # as the kill might have left it
    assert ran(project.run()) == sorted(["pretrain@xmoe-0", "pretrain@switch-1", "pretrain@xmoe-1", "evaluate", "tabulate"])
    assert not journal.exists()


def test_a_second_run_on_the_same_tree_is_refused(project):
    process, _ = hanging(project, "switch-0", "moebench", "run", "--profile", "smoke")
    assert f"another `moebench run`, process {process.pid}, works here; wait for it, or end it" in project.run(status=2)
    output = project.call("dvc", "repro", "-s", "experiments/toy/smoke/dvc.yaml:pretrain@switch-0", status=255)
    assert f"PID {process.pid}" in output  # DVC's own locks are held, too
    (project.root / "hang").unlink()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
