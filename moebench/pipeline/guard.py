"""One process per run folder, and none that outlives the pipeline which started it.

A killed pipeline does not end its children: an orphan would go on writing beside the run that the next call starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from moebench.files import held

PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when its parent ends."""


@contextlib.contextmanager
def guard(run_folder: Path) -> Iterator[None]:
    """Hold a run's folder: the lock is the file ``.<run>.lock`` beside it (DVC is told to ignore it).

    Of the processes of one distributed run only the first takes it.

    Raises:
        MoebenchError: another process works in the folder.
    """
    if any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        yield
        return
    with held(run_folder.with_name(f".{run_folder.name}.lock"), f"{run_folder}: process {{}} is working on this run"):
        yield


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it has ended."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold interrupts back until the block, or the one around it, is done.

    For what must not be cut, or would swallow them: DVC writes its file of locks on paths in place, and its progress bars ignore what is
    raised while they are collected.
    """
    caught: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
