"""Reading and writing files so that nothing is ever half-written and every failure names its file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from moebench.errors import MoebenchError, shown

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success rename it into place, on failure delete it.

    Raises:
        MoebenchError: the file could not be written (full disk, no permission); ``path`` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be written: {error.strerror or error}; nothing was changed there") from error
    finally:
        with contextlib.suppress(OSError):  # what went wrong is said already
            temporary.unlink(missing_ok=True)


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


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder``; on success it takes that name, on failure it is deleted and ``folder`` is as it was.

    The lock file ``.<folder>.lock`` beside it is held meanwhile, so what lies there from before is a killed process's.

    Raises:
        MoebenchError: another process is making the same folder, or it cannot be written.
    """
    new, old, lock = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old", "lock"))
    with _naming(folder), held(lock, f"{folder}: process {{}} is making it"):
        try:
            _tidy(folder, new, old)
            new.mkdir(parents=True)
            yield new
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        finally:
            _tidy(folder, new, old)


def _tidy(folder: Path, new: Path, old: Path) -> None:
    if old.exists() and not folder.exists():  # stopped between the two renames
        old.replace(folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MoebenchError(f"{folder}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when complete and on disk; text is UTF-8 with Unix line ends."""
    mode: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": "\n"}
    with atomic_path(path) as temporary, open(temporary, **mode) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_write(path) as handle:
        handle.write(text)


def json_text(value: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    write_text(path, json_text(value))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; returns the number of lines."""
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        MoebenchError: the file is missing or damaged; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MoebenchError(f"{path}: not valid JSON ({error}); delete it and run again") from error


def read_object(path: Path, **kinds: type) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        kinds: key that it has to have → type of its value.

    Raises:
        MoebenchError: as `read_json`, or it has another shape.
    """
    value = read_json(path)
    wrong = [key for key, kind in kinds.items() if not isinstance(value, dict) or not isinstance(value.get(key), kind)]
    if wrong or not isinstance(value, dict):
        needed = "".join(f", {key!r} in it of type {kinds[key].__name__}" for key in wrong)
        raise MoebenchError(f"{path}: should be a JSON object{needed}; delete it and run again")
    return value


def read_array(path: Path, mapped: bool = False, remedy: str = "delete it and run again") -> np.ndarray:
    """Read a ``.npy`` file, or map it into memory.

    Raises:
        MoebenchError: the file is missing, damaged, or no single array; the message names it.
    """
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MoebenchError(f"{path}: not a readable array ({error}); {remedy}") from error
    if not isinstance(found, np.ndarray):
        raise MoebenchError(f"{path}: not a readable array, but an archive; {remedy}")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Raises:
        MoebenchError: the file is missing or damaged; the message names it and the line.
    """
    rows = []
    try:
        with open(path, encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise MoebenchError(f"{path}:{number}: not valid JSON ({error}); delete the file and run again") from error
                if not isinstance(rows[-1], dict):
                    raise MoebenchError(f"{path}:{number}: should be a JSON object, is {shown(rows[-1])}; delete the file and run again")
    except (OSError, UnicodeDecodeError) as error:
        raise MoebenchError(f"{path}: cannot be read: {error}") from error
    return rows


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal.

    Raises:
        MoebenchError: the file cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
