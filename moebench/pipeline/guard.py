"""One process per run folder, and none that outlives the pipeline which started it.

A killed pipeline does not end its children: an orphan would go on writing beside the run that the next call starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from moebench.errors import MoebenchError

LOOK_EVERY = 0.2
"""Seconds between two looks at the parent."""


@contextlib.contextmanager
def guard(run_folder: Path) -> Iterator[None]:
    """Hold a run's folder, and end this process when its parent dies.

    The lock is the file ``.<run>.lock`` beside the folder (DVC is told to ignore it). Of the processes of one distributed run only the
    first takes it.

    Raises:
        MoebenchError: another process works in the folder.
    """
    end_with_parent()
    if any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        yield
        return
    with held(run_folder.with_name(f".{run_folder.name}.lock"), f"{run_folder}: process {{}} is working on this run"):
        yield


@contextlib.contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; the kernel releases it with the process, however that ends.

    Raises:
        MoebenchError: another process holds it; the message is ``busy``, with its number for ``{}``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise MoebenchError(f"{busy.format(lock.read().strip() or '(unknown)')}; wait for it, or end it and run again") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def end_with_parent() -> None:
    """End this process, from a thread beside it, as soon as the process that started it has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        sys.stderr.write("moebench: the process that started this one has ended, so this one ends too\n")
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="guard", daemon=True).start()
