"""What surrounds the stages that run side by side: devices, times, progress."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT
from rich.console import Console

from moebench.pipeline.ledger import _forget_the_dead
from moebench.pipeline.run import Clock, Display, Pool, Work, device_slots, duration


@pytest.mark.parametrize(
    ("visible", "devices", "slots"),
    [
        ("", 1, []),
        ("0", 1, ["0"]),
        ("0", 4, ["0"]),
        ("0,1,2,3", 1, ["0", "1", "2", "3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("0,1,2", 2, ["0,1"]),
    ],
)
def test_each_stage_gets_devices_of_its_own(monkeypatch, visible, devices, slots):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_slots(devices) == slots


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (0, 8.4, 99, 100, 720, 7500)] == ["0 s", "8 s", "99 s", "2 min", "12 min", "2 h 05 min"]


def test_locks_of_killed_processes_are_dropped_and_others_kept(tmp_path):
    locks = tmp_path / "rwlock"
    _forget_the_dead(locks)
    assert not locks.exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # ended, and not collected
    mine, its = {"pid": os.getpid(), "cmd": "me"}, {"pid": dead.pid, "cmd": "it"}
    locks.write_text(json.dumps({"write": {"/a": mine, "/b": its}, "read": {"/c": [mine, its], "/d": [its]}}))
    _forget_the_dead(locks)
    dead.wait()
    assert json.loads(locks.read_text()) == {"write": {"/a": mine}, "read": {"/c": [mine], "/d": []}}
    locks.write_text('{"write": {"/a"')  # killed while writing
    _forget_the_dead(locks)
    assert not locks.exists()


def work(name: str, folder: Path, running: bool = False) -> Work:
    """A stage that writes to ``folder``; its process is never looked at."""
    process: Any = object() if running else None
    return Work(f"experiments/a/b/dvc.yaml:{name}", "", folder, folder / "log", process=process, began=time.monotonic() - 10)


def test_the_time_left_comes_from_stages_of_the_same_kind(tmp_path):
    clock = Clock()
    waiting = [work(f"finetune@{seed}", tmp_path) for seed in range(4)]
    assert clock.left(waiting, [], 2) is None
    clock.took["finetune"] += [30.0, 50.0]
    assert clock.left(waiting, [], 2) == pytest.approx(4 * 40 / 2)
    assert clock.left(waiting[:1], [], 8) == pytest.approx(40)  # one stage is not shared out
    assert clock.left([], [work("finetune@9", tmp_path, running=True)], 2) == pytest.approx(30, abs=1)
    running = work("pretrain@0", tmp_path, running=True)
    assert clock.left([], [running], 2) is None
    (tmp_path / "progress.json").write_text('{"step": 25, "steps": 100}')
    assert clock.left([], [running], 2) == pytest.approx(30, abs=1)
    (tmp_path / "progress.json").write_text('{"step"')
    assert running.progress() == (None, "")


def test_the_terminal_shows_what_runs(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    ledger: Any = None
    pool = Pool(tmp_path, ledger, {"b": work("finetune@b", tmp_path)}, 2, [], set(), console, None, total=3)
    (tmp_path / "progress.json").write_text('{"step": 25, "steps": 100, "loss": 1.2345}')
    pool.running = [work("pretrain@a", tmp_path, running=True)]
    pool.done = {"plan"}
    pool.clock.took = {"pretrain": [60.0], "finetune": [600.0]}
    with Display(console, 3) as display:
        display.show(pool)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "1/3 stages" in shown
    assert "about 5 min left" in shown
    assert "a/b pretrain@a" in shown
    assert "loss 1.234" in shown


NAMES = re.compile(
    r"\b(transfer|vision|xmoe|x-moe|e3|images?|pixels?|pictures?|corpus|tokenizer|table\d|xtreme|vit|languages?)\b", re.IGNORECASE
)


@pytest.mark.parametrize("path", [*(ROOT / "moebench/pipeline").iterdir(), ROOT / "moebench/cli.py"], ids=lambda path: path.name)
def test_the_pipeline_knows_no_protocol_paper_modality_or_table(path):
    if path.is_file():
        found = {match.group() for match in NAMES.finditer(path.read_text())}
        assert not found


def test_every_pipeline_is_the_same_text():
    files = [*(ROOT / "experiments").glob("*/*/dvc.yaml"), ROOT / "moebench/pipeline/stages.yaml"]
    texts = {path.read_text() for path in files}
    assert len(texts) == 1
    assert len(texts.pop().splitlines()) <= 70


def test_the_toy_is_small():
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "tests/toy/protocol").glob("*.py")) <= 150
