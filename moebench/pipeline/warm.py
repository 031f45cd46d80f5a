"""A process that has already imported what stages import, and from which each stage is forked.

The imports take several seconds of every stage, longer than many a stage computes. `multiprocessing`'s fork server imports them once; it
never touches CUDA, whose state does not survive a fork, so stages that train on a GPU start from it, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.util import Finalize
from pathlib import Path

from moebench.files import write_text

STAGE = ("exec", "python", "-m", "moebench")
"""How the command of a stage of ours begins; any other is left to the shell."""
TEMPORARY = "moebench-"
"""How the name of a temporary folder of ours begins."""
CONTEXT = multiprocessing.get_context("forkserver")

Main = Callable[[Sequence[str]], int]


def preload(modules: Iterable[str]) -> None:
    """Say which modules the process imports; it starts with the first stage."""
    CONTEXT.set_forkserver_preload(["moebench.pipeline.with_parent", "moebench.pipeline.warm", *modules])


def own_temporary_folder(note: Path) -> None:
    """Let everything temporary of this process and of its stages lie in one folder, which goes with this process, or else with the next.

    It is not in the project, because the address of a socket may have a hundred characters.

    Args:
        note: file that has the folder's name before there is the folder; what it names from before is a killed process's. Nobody else may
            be using it.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        left = Path(note.read_text(encoding="utf-8"))
        if left.name.startswith(TEMPORARY) and str(left) != tempfile.tempdir:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.gettempdir(), TEMPORARY + secrets.token_hex(4))
    write_text(note, str(folder))
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)  # after multiprocessing's own folder in it, at -100


def start(command: str, root: Path, log: Path, environment: Mapping[str, str], main: Main | None) -> ForkServerProcess:
    """Start the command of a stage in a session of its own; it ends with this process, even if that is killed.

    Args:
        command: a stage's command, as in ``dvc.yaml``.
        root: where it runs.
        log: where its output goes.
        environment: variables beside those of this process.
        main: runs a command line and returns the exit status, in a forked process. None: the command starts a process of its own, as runs
            of several ranks need it, which Lightning starts by their command line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    for last in (False, True):
        process = CONTEXT.Process(target=_stage, args=(main, command, str(root), str(log), dict(environment)))
        try:
            process.start()
            break
        except (OSError, EOFError):  # the fork server was killed just now: the next start has another
            if last:
                raise
    return process


def _stage(main: Main | None, command: str, root: str, log: str, environment: dict[str, str]) -> None:
    """Be a stage: in the forked process."""
    os.setsid()  # interrupts come from the process that asked for the stage, not from the terminal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(root)
    os.environ.update(environment)
    words = shlex.split(command)
    if main is None or tuple(words[: len(STAGE)]) != STAGE:
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # `python` is this one
        os.execv("/bin/sh", ["sh", "-c", command])
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = ["moebench", *words[len(STAGE) :]]
    sys.exit(main(sys.argv[1:]))
