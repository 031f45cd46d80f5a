"""Forking a stage from a process that has imported everything already, and that has left CUDA alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moebench import protocol

ROOT = Path(__file__).parents[2]
MAIN = """
import os, sys, tempfile, time
def main(arguments):
    tempfile.mkstemp()
    print("ran", arguments, os.getcwd(), os.environ["COLOUR"], "sqlite3" in sys.modules, flush=True)
    print("noise", file=sys.stderr, flush=True)
    if arguments[0] == "break":
        raise RuntimeError("broken")
    if arguments[0] == "wait":
        print(os.getpid(), flush=True)
        time.sleep(60)
    return 7
"""
RUN = """
import sys
from pathlib import Path
from moebench.pipeline import warm
from stage import main
if __name__ == "__main__":
    warm.preload(["sqlite3"])
    warm.own_temporary_folder(Path("note"))
    there, colour = Path(sys.argv[1]), {"COLOUR": "blue"}
    processes = [warm.start(f"exec python -m moebench {word}", there, Path(word), colour, main) for word in sys.argv[2:]]
    processes.append(warm.start("echo $COLOUR; exit 3", there, Path("shell"), {"COLOUR": "red"}, main))
    print("up", flush=True)
    for process in processes:
        process.join()
    print(*(process.exitcode for process in processes))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program that starts stages."""
    (tmp_path / "stage.py").write_text(MAIN)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "there").mkdir()
    return tmp_path


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The system's folder of temporary files; its name is short, for the address of a socket in it is."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def start(folder: Path, *words: str, temporary: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"} | ({"TMPDIR": str(temporary)} if temporary else {})
    return subprocess.Popen([sys.executable, "run.py", "there", *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_arguments_folder_environment_output_and_status_come_across(folder, temporary):
    output, _ = start(folder, "go", "break", "go-on", temporary=temporary).communicate(timeout=60)
    assert output == "up\n7 1 7 3\n"
    assert (folder / "go").read_text() == f"ran ['go'] {folder / 'there'} blue True\nnoise\n"  # sqlite3 was imported for it
    assert "RuntimeError: broken" in (folder / "break").read_text()
    assert (folder / "shell").read_text() == "red\n"
    assert not [*temporary.iterdir()]


def test_temporary_files_of_a_killed_run_go_with_the_next(folder, temporary):
    (temporary / "other").touch()
    asking = start(folder, "wait", temporary=temporary)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "up\n"
    asking.kill()
    asking.wait()
    left = next(path for path in temporary.iterdir() if path.is_dir())
    assert list(left.glob("pymp-*"))
    start(folder, "go", temporary=temporary).communicate(timeout=60)
    assert [path.name for path in temporary.iterdir()] == ["other"]


def test_a_stage_ends_with_whoever_asked_for_it(folder):
    asking = start(folder, "wait")
    assert asking.stdout is not None
    assert asking.stdout.readline() == "up\n"
    end = time.monotonic() + 30
    while len(lines := (folder / "wait").read_text().splitlines() if (folder / "wait").exists() else []) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    asking.kill()
    asking.wait()
    while Path(f"/proc/{lines[-1]}").exists():
        assert time.monotonic() < end, "the forked process outlived who asked for it"
        time.sleep(0.02)


def test_what_is_imported_for_all_stages_leaves_cuda_alone():
    """A process that has started CUDA cannot be forked from; asking for the number of GPUs starts it, unless NVML is asked."""
    rooms = [protocol.Protocol(name).module(room) for name in protocol.names() for room in protocol.ROOMS]
    program = f"""
import torch
import os
def touched(*arguments):
    if os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") != "1":
        raise RuntimeError("CUDA was touched")
    return 0
def started(*arguments):
    raise RuntimeError("CUDA was started")
torch.cuda.is_available = torch.cuda.device_count = touched
torch.cuda._lazy_init = started
import importlib
for name in {["moebench.cli", "moebench.pipeline.train", *rooms]!r}:
    importlib.import_module(name)
print(torch.cuda.is_initialized(), os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False 1\n", done.stderr  # Lightning has NVML asked, which forks survive
