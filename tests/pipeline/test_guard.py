"""One process per run folder, and none without its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moebench.errors import MoebenchError
from moebench.pipeline.guard import guard, uninterrupted

HOLD = """
import sys
from pathlib import Path
from moebench.pipeline.guard import guard
with guard(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""
ROOT = Path(__file__).parents[2]


def test_a_second_process_is_refused_and_told_who_works(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MoebenchError, match=rf"run: process {holder.pid} is working on this run"), guard(folder):
            pass
        with guard(tmp_path / "other"):
            pass
        monkeypatch.setenv("LOCAL_RANK", "1")
        with guard(folder):  # a further process of the same distributed run
            pass
        monkeypatch.delenv("LOCAL_RANK")
        holder.kill()
    with guard(folder):  # a killed process holds nothing
        pass
    assert not folder.exists()


def test_a_process_ends_with_its_parent():
    child = "import time; from moebench.pipeline.guard import end_with_parent; end_with_parent(); print('up', flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
        process.communicate(timeout=30)  # the pipe closes when the child has ended too


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_wait_for_what_must_not_be_cut(number):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    done = []

    @uninterrupted()
    def inner():
        signal.raise_signal(number)
        done.append("inner")

    @uninterrupted()
    def outer():
        inner()
        done.append("outer")

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            outer()
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert done == ["inner", "outer"]
