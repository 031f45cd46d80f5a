"""Handing a command line to a forked copy of a process that has imported everything already."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moebench import config
from moebench.stages import warm

SERVER = """
import os, sys
from moebench.stages import warm
warm.HEAVY = ("json",)
def main(arguments):
    if arguments[0] == "wait":
        print("waiting", os.getpid(), flush=True)
        import time
        time.sleep(60)
    print("ran", arguments, os.getcwd(), os.environ["COLOUR"], flush=True)
    print("noise", file=sys.stderr, flush=True)
    if arguments[0] == "break":
        raise RuntimeError("broken")
    return 7
warm.serve(sys.argv[1], main)
"""
CLIENT = "import sys; from moebench.stages.warm import handed_over; sys.exit(handed_over(sys.argv[1:]))"


@pytest.fixture
def server(tmp_path):
    path = str(tmp_path / "socket")
    environment = os.environ | {"PYTHONPATH": str(config.project_root())}
    process = subprocess.Popen([sys.executable, "-c", SERVER, path], env=environment)
    end = time.monotonic() + 20
    while not Path(path).exists():
        assert process.poll() is None
        assert time.monotonic() < end
    yield environment | {warm.VARIABLE: path, "COLOUR": "blue"}
    process.kill()
    process.wait()


def client(environment, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )


def test_arguments_folder_environment_streams_and_status_come_across(server, tmp_path):
    done = client(server, tmp_path, "go", "there")
    assert (done.returncode, done.stdout, done.stderr) == (7, f"ran ['go', 'there'] {tmp_path} blue\n", "noise\n")


def test_a_failure_shows_its_traceback_and_the_server_lives_on(server, tmp_path):
    done = client(server, tmp_path, "break")
    assert done.returncode == 1
    assert "RuntimeError: broken" in done.stderr
    assert client(server, tmp_path, "go").returncode == 7


def test_the_work_ends_with_whoever_asked_for_it(server, tmp_path):
    asking = subprocess.Popen([sys.executable, "-c", CLIENT, "wait"], env=server, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    word, worker = asking.stdout.readline().split()
    assert word == "waiting"
    asking.kill()
    asking.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "the forked process outlived its client"


def test_without_a_server_nothing_is_handed_over(monkeypatch, tmp_path):
    monkeypatch.delenv(warm.VARIABLE, raising=False)
    assert warm.handed_over(["go"]) is None
    monkeypatch.setenv(warm.VARIABLE, str(tmp_path / "gone"))
    assert warm.handed_over(["go"]) is None
