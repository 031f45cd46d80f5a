"""Fingerprints of code: which modules a stage can reach, and a hash of what they do rather than of how they are written.

The closure is static: every ``import`` of a module of the package counts, at any depth, inside functions too. What is imported
by name at run time is not seen: a protocol's rooms, and routers, through ``moebench.moe.registry``; `moebench.pipeline.plan` and a
protocol's ``runs`` name them.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import moebench
from moebench.errors import MoebenchError

PACKAGE_ROOT = Path(moebench.__file__).parent

NOT_IN_RESULTS = re.compile(
    r"moebench(\.(errors|config|experiment|protocol|protocols(\.\w+(\.(config|runs))?)?|pipeline(\.guard)?"
    r"|data\.(catalogue|text_settings|image_settings)|models\.shapes))?"
)
"""Modules that never count. What the configuration and the catalogue say stands in the plan itself, value by value, put there by ``runs``;
the package's own ``__init__`` holds the version; messages and locks do not reach a number."""


def closure(modules: Iterable[str], package_root: Path = PACKAGE_ROOT, without: Iterable[str] = ()) -> list[str]:
    """Return the modules of the package that ``modules`` can import, themselves included, sorted.

    Args:
        modules: full names to start from.
        package_root: folder of the package.
        without: modules, or folders of modules, that are not followed; nor are those of `NOT_IN_RESULTS`.

    Raises:
        MoebenchError: a module to start from does not exist, or a file is not valid Python.
    """
    package, without = package_root.name, tuple(without)
    waiting = list(modules)
    for name in waiting:
        if _path(name, package_root) is None:
            raise MoebenchError(f"{package_root}: there is no module {name!r}")
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or NOT_IN_RESULTS.fullmatch(name) or not _within(name, (package,)) or _within(name, without):
            continue
        if (path := _path(name, package_root)) is None:  # a function or class, not a module
            continue
        found.add(name)
        waiting += _read(path)[0]
        if "." in name:  # importing a.b.c runs a.b and a first
            waiting.append(name.rpartition(".")[0])
    return sorted(found)


def fingerprint(modules: Iterable[str], package_root: Path = PACKAGE_ROOT, without: Iterable[str] = ()) -> str:
    """Return a SHA-256, in hexadecimal, of the code in the `closure` of ``modules``.

    Comments, docstrings and formatting do not change it, nor does the version of Python as long as the syntax tree is the same.
    """
    digest = hashlib.sha256()
    for name in closure(modules, package_root, without):
        if path := _path(name, package_root):
            digest.update(f"{name}\n{_read(path)[1]}\n".encode())
    return digest.hexdigest()


def _within(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


def _path(module: str, package_root: Path) -> Path | None:
    """File of a module of the package, or None if there is no such module."""
    stem = package_root.parent.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _read(path: Path) -> tuple[list[str], str]:
    """Names that a file imports, and its code as text."""
    state = path.stat()
    return _read_once(path, state.st_mtime_ns, state.st_size)


@cache
def _read_once(path: Path, changed: int, size: int) -> tuple[list[str], str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise MoebenchError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    return sorted(set(_imports(tree))), _text(tree)


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names that may be modules: of ``from a import b``, both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _text(node: Any) -> str:
    """A syntax tree without positions, bare strings (docstrings) and empty fields, which come and go between versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(_text(item) for item in node if not _is_bare_string(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"{type(node).__name__}({','.join(fields)})"


def _is_bare_string(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
