"""A process that has already imported torch and Lightning, from which training stages are forked.

The imports take several seconds, as long as a short fine-tuning. `moebench.stages.run` starts one such process and names its socket in
the environment variable MOEBENCH_WARM; a verb that finds it there hands its arguments, folder, environment and standard streams over
and waits for the exit status. Without the variable the verb runs by itself, with the same result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moebench.stages.guard import end_with_parent

VARIABLE = "MOEBENCH_WARM"
HEAVY = tuple(f"moebench.stages.{name}" for name in ("pretrain", "finetune", "pretrain_images", "finetune_images"))


@contextlib.contextmanager
def warm() -> Iterator[dict[str, str]]:
    """Start the process and give the environment variable that leads to it; it ends with the block, or with this process."""
    with tempfile.TemporaryDirectory(prefix="moebench-") as folder:
        path = str(Path(folder) / "socket")
        process = subprocess.Popen([sys.executable, "-m", "moebench", "warm", path], stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield {VARIABLE: path}
        finally:
            process.terminate()
            process.wait()


def handed_over(arguments: Sequence[str]) -> int | None:
    """Let the warm process run a command line; returns its exit status, or None where there is no such process."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    end_with_parent()  # and the forked process ends with this one
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return None
        request = json.dumps({"arguments": list(arguments), "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(request)
        status = connection.recv(1)
    return status[0] if status else 1


def serve(path: str, main: Callable[[Sequence[str]], int]) -> int:
    """Listen on ``path`` and fork a child per request, until the parent is gone."""
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        for name in HEAVY:
            importlib.import_module(name)
        server.settimeout(1.0)
        while os.getppid() == parent:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                if os.fork() == 0:
                    server.close()
                    _child(connection, main)
    return 0


def _child(connection: socket.socket, main: Callable[[Sequence[str]], int]) -> None:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.setblocking(True)
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        request = json.loads(connection.makefile("rb").read(int.from_bytes(size, "big")))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update({name: value for name, value in request["environment"].items() if name != VARIABLE})
        sys.argv = ["moebench", *request["arguments"]]
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        status = main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status]))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """End this process when whoever asked for it is gone."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os._exit(1)
