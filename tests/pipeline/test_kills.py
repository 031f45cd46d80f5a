"""Whatever is killed, and whenever: nothing that was finished is repeated or lost, nothing goes on, and the results are the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from projects import Project, ran, stages

LOCK = "experiments/toy/smoke/dvc.lock"
RUNS = "runs/smoke/toy"


def processes(root: Path) -> list[psutil.Process]:
    """Processes, not yet ended, that work in a project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(root):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def until(what, seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def results(project: Project) -> dict[str, bytes]:
    """What has to be the same bytes."""
    folder = project.root / "results" / "smoke" / "toy"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.stem not in ("costs", "provenance")}


def forks(root: Path) -> list[psutil.Process]:
    """The processes that stages are forked from, with the stages."""
    return [process for process in processes(root) if any("forkserver" in word for word in process.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["top", "any", "stage"])
def test_random_kills_change_nothing(toy, victim):
    toy.edit("experiments/toy/profiles/smoke.yaml", "steps: 40", "steps: 200")
    toy.run()
    undisturbed = results(toy)
    for made in ("runs", "data", "results", ".dvc/cache", LOCK):
        subprocess.run(["rm", "-r", toy.root / made], check=True)
    generator = random.Random(victim)
    finished: set[str] = set()
    for _ in range(4):
        process = toy.start("moebench", "run", "--profile", "smoke", "--jobs", "2")
        time.sleep(generator.uniform(0.5, 10.0))
        if victim == "top":
            process.kill()
        elif (victim == "any" and (there := processes(toy.root))) or (victim == "stage" and (there := forks(toy.root))):
            generator.choice(there).kill()
        output, _ = process.communicate(timeout=120)
        assert not finished & set(ran(output)), "what was finished ran again"
        finished |= set(ran(output))
        until(lambda: not processes(toy.root))
    toy.run()
    assert results(toy) == undisturbed
    assert "up to date" in toy.call("dvc", "status", "experiments/toy/smoke/dvc.yaml")
    assert not [path for path in toy.root.rglob(".*.new")] + [path for path in toy.root.rglob(".*.old")]


def test_the_top_killed_in_its_first_seconds_leaves_nothing_behind(project):
    note, temporary = project.root / ".dvc/tmp/moebench.temporary", []
    for seconds in (0.3, 1.0, 2.0):
        process = project.start("moebench", "run", "--profile", "smoke")
        time.sleep(seconds)
        process.kill()
        process.communicate()
        until(lambda: not processes(project.root), 20.0)
        temporary += [Path(note.read_text())] if note.is_file() else []
    assert ran(project.run())
    assert not any(path.exists() for path in [*temporary, Path(note.read_text())])


def test_stages_go_on_without_the_process_that_they_were_forked_from(project):
    project.write("hang", "xmoe-1")
    process = project.start("moebench", "run", "--profile", "smoke", "--jobs", "1")
    state = project.root / RUNS / "trained/pretrain/xmoe-1/checkpoints/step"
    until(lambda: state.exists() and state.read_text() == "3")
    server = next(one for one in forks(project.root) if one.ppid() == process.pid)
    (project.root / "hang").unlink()
    server.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "toy/smoke pretrain@xmoe-1 was lost with the process that it was forked from, and starts again" in output
    assert ran(output) == stages("switch", "xmoe")


@pytest.mark.slow
def test_dvc_killed_while_it_refills_its_lock_file(project):
    project.run()
    path = project.root / LOCK
    whole = yaml.safe_load(path.read_text())
    entry = whole["stages"]["pretrain@xmoe-1"]
    padded = whole | {"stages": whole["stages"] | {f"pretrain@other-{number}": entry for number in range(1500)}}
    path.write_text(yaml.safe_dump(padded, sort_keys=False))  # as long as that of a paper with many methods
    project.edit("experiments/toy/methods/xmoe.yaml", "0.01", "0.02")
    process = project.start("dvc", "repro", "experiments/toy/smoke/dvc.yaml")
    size = path.stat().st_size
    until(lambda: path.stat().st_size < 0.9 * size, 60.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not processes(project.root))
    assert path.stat().st_size < 0.9 * size
    output = project.run()
    assert f"{LOCK} was damaged, as by a kill, and is put right; finished runs are not repeated." in output
    assert not {"pretrain@switch-0", "pretrain@switch-1", "prepare"} & set(ran(output))
    assert "up to date" in project.call("dvc", "status", "experiments/toy/smoke/dvc.yaml")


def test_a_damaged_lock_file_is_noticed_and_put_right(project):
    project.run()
    whole = (project.root / LOCK).read_bytes()
    for content in ("", "schema: '2.0'\nstages:\n  plan:\n    cm", "[1]", "schema: '2.0'\nstages: {plan: []}\n", "\0"):
        (project.root / LOCK).write_text(content)
        output = project.run()
        assert "was damaged" in output
        assert ran(output) == []
        assert (project.root / LOCK).read_bytes() == whole


@pytest.mark.slow
def test_without_any_lock_file_finished_runs_are_not_repeated(toy):
    toy.run()
    folders = [toy.root / RUNS / "trained/pretrain" / name for name in ("switch-0", "xmoe-1")]
    before = [json.loads((folder / "costs.json").read_text()) for folder in folders]
    for path in (LOCK, f"{RUNS}/dvc.lock"):
        (toy.root / path).unlink()
    assert "pretrain@switch-0" in ran(toy.run())  # it looks, and finds it finished
    assert "is finished already" in (toy.root / RUNS / "logs/pretrain@switch-0.log").read_text()
    assert [json.loads((folder / "costs.json").read_text()) for folder in folders] == before

    (folders[1] / "right.json").write_text("[]")  # a run that is not as it was left is made again
    toy.run()
    assert len(json.loads((folders[1] / "right.json").read_text())) == 400


def test_a_stage_is_made_by_one_process_at_a_time(project):
    project.run()
    project.write("moebench/protocols/toy/baselines.py", "import time\n\n\ndef baselines(experiment, folder):\n    time.sleep(60)\n")
    first = project.start("moebench", "baselines", "--paper", "toy", "--profile", "smoke")
    lock = project.root / RUNS / ".baselines.lock"
    until(lambda: (project.root / RUNS / ".baselines.new").exists() and lock.read_text().strip() == str(first.pid))
    output = project.call("moebench", "baselines", "--paper", "toy", "--profile", "smoke", status=2)
    assert f"baselines: process {first.pid} is making it; wait for it, or end it and run again" in output
    first.kill()
    first.communicate()
    assert (project.root / RUNS / "baselines/first").is_dir()  # what was there before


@pytest.mark.parametrize("verb", ["plan", "prepare", "baselines", "evaluate", "tabulate"])
def test_every_stage_ends_with_whoever_started_it(project, verb):
    project.run() if verb in ("evaluate", "tabulate") else project.call("moebench", "select", "--profile", "smoke")
    for room in ("prepare", "baselines", "scoring", "tables", "runs"):
        path = project.root / "moebench/protocols/toy" / f"{room}.py"
        path.write_text("import time\nopen('imported', 'w').close()\ntime.sleep(600)\n" + path.read_text())
    command = [sys.executable, "-m", "moebench", verb, "--paper", "toy", "--profile", "smoke"]
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"], cwd=project.root)
    until((project.root / "imported").exists)
    assert len(processes(project.root)) == 2
    parent.kill()
    parent.wait()
    until(lambda: not processes(project.root), 20.0)
