"""Built-in English: the prose of the documentation strings of the pinned packages and of Python's standard library.

Sources are read with `ast`, never imported. Versions are pinned, so the text is the same on every machine: `PACKAGES` holds the SHA-256 of
each package's text, and `texts` refuses another. The standard library is the running Python's; `revision` says where that is not the
Python whose text is pinned. ``docs/TEXTS.md`` says what kind of English it is.

Left out are torch, whose wheels for CPU and for CUDA are separate builds of separate files; packages that few installations have (the
``dev`` extra); copies of other projects inside a package; tests; files that a build writes. Of dulwich, numpy, scipy, pandas, scikit-learn,
scikit-image and matplotlib, which are compiled in part, the wheels for Linux, macOS and Windows give the same text, and so does another
version of Python that reads them.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import platform
import re
import sysconfig
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from moebench.errors import MoebenchError, nearest
from moebench.files import sha256

Split = Literal["train", "validation", "test"]

PACKAGES: dict[str, tuple[str, str]] = {
    "asyncssh": ("2.24.1", "8e62255c05d97b67f7ab2af251928f4192d2ee2483be7d022cd230a979bc0aa0"),
    "celery": ("5.7.0", "8dbc14ca928ac6e6119a3b3996eb224b7d3e18d6c4c6821166e000a0eef8cb5f"),
    "click": ("8.5.1", "17789537e902f14b785ca3402df06a4c86d2286c44db0ae9675343dc48209eb5"),
    "datasets": ("5.2.0", "e0b0cbe76e313f5731a0d205ae56d1ccc8c6238448afbe377cf093be23d62043"),
    "dulwich": ("1.2.21", "339b50de7e29c3ceefc286685354e970a8d633571995b54afec175f0419e50b7"),
    "fsspec": ("2026.9.0", "9a3feba950512449741d589aec5ff77c523d8299caf867928405634c9e6bcf99"),
    "gitpython": ("3.2.1", "799572689a54f8787ff0fd8e7879cbcca52fabe255521d9b47d20f53f8f720b9"),
    "huggingface-hub": ("2.4.0", "a318ad4662f1a5872fd633b04998718e89d29d188010d37b191b20dfe7db0a68"),
    "imageio": ("2.38.1", "9ac409ec4a235480f061d77f89d83d0d3f66171ab4a82578481d85ac85cbb26d"),
    "jinja2": ("3.1.6", "ddbc140bd308e2bb8ec184c657d7e8d20f5b3f16f0a1fbb9134b104bda3be6f3"),
    "joblib": ("1.6.0", "90b5c1cbc664a6f9d5a69a6141d9452bd5811a022cfc855ddd9e807fea5d9a98"),
    "kombu": ("5.7.0", "9855b510c51fa5ffe4ad99541b8b573421c5efcb88acce501845d4ed9bac0be6"),
    "matplotlib": ("3.11.2", "22d9cd2bd46a800a31434a3c68fffd02eb8879521eb5e8f2e03143c4f6581f00"),
    "mlxtend": ("0.25.0", "d357211af35a6dd938ddbb9cc22f6359b8a6858098dd31bbabd27eeda57a79b4"),
    "networkx": ("3.6.1", "73f6a6b1f106e2fbf52cac37b57ad54fd455b4a32182af5603edbf4a0b329638"),
    "numpy": ("2.4.6", "5bfa9bf32ffd1b0db510a78d1838ae55281be99f10d18a082636665b1997fa31"),
    "pandas": ("3.1.1", "77681573d7a0d7235fe1b3fee463966ed18fde9e147449e59a8a94e27cc7ff5c"),
    "prompt-toolkit": ("3.0.53", "7d3855935624700ff297cb7f735630253815baf18906fbf8f9089ee0bb16c3f9"),
    "pytorch-lightning": ("2.6.6", "82a9b700c78f1c987cca501e1cdbcf3faa2d894df4324aecd2d191383217db37"),
    "scikit-image": ("0.26.0", "7c5d640fc1141d2c20d83de11ff489fbb46b1173ce44a7f4990016257de00975"),
    "scikit-learn": ("1.9.1", "1a33de8bb2cef3776fc31f7590c15a181d47a8a8361270fceff76b382821ffbd"),
    "scipy": ("1.17.1", "904c973ba20ff3111c9a4089c31ba6c69168239827d3d4d8f868cdfdbb0687a9"),
    "setuptools": ("84.2.1", "3632059118bf28b8d528decd5a13767453110aee778dd76b6f7c341de3ea1207"),
    "torchmetrics": ("1.9.0", "7cef2533fbfb7c143f4a8224e427ce9c106d2720387af52759c66ce5e6d1cb00"),
    "urllib3": ("2.8.0", "d58d553d3ed2338cda0a454e12114b577f98ed45d94215e40656cdc913d0c004"),
}
"""Package → its pinned version and the SHA-256 of its text, before copies are dropped (`package_digest`)."""

STANDARD_LIBRARY = "python"
"""The name under which `texts` yields the standard library."""

PYTHONS: dict[str, str] = {"3.11.7": "61b7f25b823e006afae05db2e34109570843a8d5b9b96f2cc6958fb9db114fea"}
"""Version of Python → SHA-256 of the sources of its standard library that are read (`python_digest`)."""

REVISION = "b0d1f9e521495eb748c436fffae113b7c4dd9b42e64cc4aded57bac2062fbd67"
"""SHA-256 of all that `texts` yields where the standard library is a pinned one (`digest`); names the text."""

VALIDATION = frozenset({"prompt-toolkit", "scikit-image"})
TEST = frozenset({"asyncssh", "gitpython", "imageio"})
"""Whole packages are held out, one of numerical arrays and one of other things at least in each split: such that say little that others say
too, and about 5 % of the text each."""

SHINGLE = 8
"""Words in a row by which copies are found."""
COPY = 0.5
"""A paragraph of which more than this share of shingles has been seen is a copy."""
LEAST_WORDS = 20
"""Of a document."""
LEAST_IN_PARAGRAPH = 5
PROSE = 0.8
"""Least share of plain words among those of a paragraph."""

_NOT_READ = re.compile(
    r"(^|/)(tests?|testing|conftest|_?vendor(ed)?|_vendored|externals?|extern|_external|compat|array_api_\w+|cobyqa|pyprima|_uarray"
    r"|__pycache__|lib2to3|idlelib|turtledemo|tkinter|ensurepip|distutils|pydoc_data|msilib|site-packages|config-[^/]*)/"
    r"|(^|/)(test_[^/]*|conftest|_sysconfigdata[^/]*|_?_?version_*|__config__|_version_\w+|_distributor_init)\.py$"
)
"""Tests, copies of other projects, what a build or a platform writes, and parts of Python that distributions leave out."""


class Text(NamedTuple):
    """A document: the prose of one documentation string, a paragraph a line."""

    package: str
    text: str


def split_of(package: str) -> Split:
    """Return the split that all texts of ``package`` belong to."""
    return "validation" if package in VALIDATION else "test" if package in TEST else "train"


def texts(packages: Collection[str] = ()) -> Iterator[Text]:
    """Yield the documents of all splits: test, then validation, then training packages, each in the order of names and paths.

    Reading all takes most of a minute; a few packages are enough to try something. None given: all.

    No paragraph is a copy of an earlier one, so none of training is one of the held-out text: of the `SHINGLE`-word shingles of a
    paragraph (letters and digits alone, case ignored; a shorter paragraph is one shingle) at most the share `COPY` has occurred before.

    Raises:
        MoebenchError: a package is not installed, has another version than the pinned one, or its text is not the pinned one; or no such
            package is read.
    """
    known = [*PACKAGES, STANDARD_LIBRARY]
    for name in packages:
        if name not in known:
            raise MoebenchError(f"no documentation strings are read of {name!r}{nearest(name, known)}; packages are: {', '.join(known)}")
    seen: set[int] = set()
    for package in sorted(packages or known, key=lambda name: (("test", "validation", "train").index(split_of(name)), name)):
        documents = list(_documents(_python_files() if package == STANDARD_LIBRARY else _package_files(package)))
        if package != STANDARD_LIBRARY and (found := _digest(documents)) != PACKAGES[package][1]:
            raise MoebenchError(
                f"the documentation strings of {package} {PACKAGES[package][0]} have SHA-256 {found}, not {PACKAGES[package][1]}: the"
                f" package was changed here; install it anew: pip install --force-reinstall --no-deps {package}=={PACKAGES[package][0]}"
            )
        for document in documents:
            kept = [paragraph for paragraph in document if not _copied(paragraph, seen)]
            if sum(len(paragraph.split()) for paragraph in kept) >= LEAST_WORDS:
                yield Text(package, "\n".join(kept))


@cache
def revision() -> str:
    """Return what names the text of this machine: `REVISION`, and which standard library it has where that is not a pinned one."""
    version, found = platform.python_version(), python_digest()
    return REVISION + ("" if PYTHONS.get(version) == found else f"-python-{version}-{found[:16]}")


def digest(found: Iterable[Text]) -> str:
    """Return the SHA-256 of documents and the packages they are of."""
    total = hashlib.sha256()
    for package, text in found:
        total.update(f"{package}\0{text}\0".encode())
    return total.hexdigest()


def package_digest(package: str) -> str:
    """Return the SHA-256 of the documents of an installed package, before copies are dropped."""
    return _digest(_documents(_package_files(package)))


def python_digest() -> str:
    """Return the SHA-256 over paths and contents of the sources of the standard library that are read."""
    return hashlib.sha256("".join(f"{name}\0{sha256(path)}\n" for name, path in _python_files()).encode()).hexdigest()


def _digest(documents: Iterable[list[str]]) -> str:
    return hashlib.sha256("\0".join("\n".join(paragraphs) for paragraphs in documents).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------------ sources


def _package_files(package: str) -> list[tuple[str, Path]]:
    version = PACKAGES[package][0]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise MoebenchError(f"the built-in texts need the package {package}=={version}, which is not installed: pip install it") from error
    if distribution.version != version:
        raise MoebenchError(
            f"the built-in texts need {package}=={version}, installed is {distribution.version}: pip install {package}=={version}"
        )
    return _kept((file.as_posix(), Path(str(distribution.locate_file(file)))) for file in distribution.files or ())


def _python_files() -> list[tuple[str, Path]]:
    folder = Path(sysconfig.get_path("stdlib"))
    wanted = [top for top in folder.iterdir() if not _NOT_READ.search(f"{top.name}/")]
    return _kept((path.relative_to(folder).as_posix(), path) for top in wanted for path in (top.rglob("*.py") if top.is_dir() else [top]))


def _kept(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    return sorted(
        (name, path) for name, path in files if PurePosixPath(name).suffix == ".py" and not _NOT_READ.search(name) and ".." not in name
    )


def _documents(files: Iterable[tuple[str, Path]]) -> Iterator[list[str]]:
    """The paragraphs of each documentation string that has prose."""
    for _, path in files:
        try:
            source = path.read_bytes()
            if b'"""' not in source and b"'''" not in source:
                continue  # parsing takes most of the time
            tree = _parsed(source)
        except (OSError, SyntaxError) as error:
            raise MoebenchError(f"{path}: cannot be read: {error}; install its package anew") from error
        for string in _strings(tree.body, ast.get_docstring(tree, clean=False)):
            if paragraphs := prose(string):
                yield paragraphs


def _parsed(source: bytes) -> ast.Module:
    collecting = gc.isenabled()
    gc.disable()  # trees have no cycles, and to look for some takes a third of the time
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes
            return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def _strings(body: list[ast.stmt], own: str | None) -> Iterator[str]:
    """Documentation strings of a module or class and of what is defined in it, in the order of the source."""
    if own:
        yield own
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _strings(node.body, ast.get_docstring(node, clean=False))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _strings([], ast.get_docstring(node, clean=False))
        elif isinstance(node, ast.If | ast.Try):
            yield from _strings([*node.body, *node.orelse], None)


def _copied(paragraph: str, seen: set[int]) -> bool:
    """Whether a paragraph is a copy of earlier ones; its shingles count as seen from now on."""
    words = np.array([zlib.crc32(word.encode()) for word in re.findall(r"\w+", paragraph.lower())], dtype=np.uint64)
    width = min(SHINGLE, len(words))
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    hashes = np.zeros(len(words) - width + 1, dtype=np.uint64)
    for place in range(width):
        hashes = (hashes ^ words[place : len(hashes) + place]) * multiplier
    found = hashes.tolist()
    known = sum(one in seen for one in found)
    seen.update(found)
    return known > COPY * len(found)


# -------------------------------------------------------------------------------------------------------------------- prose

_ADMONITION = re.compile(r"\.\. (note|warning|tip|hint|important|caution|attention|danger)::\s*")
_ITEM = re.compile(r"([-*+•]|\(?\d+[.)]|\([a-z]\)|#\.)\s+")
_FIELD = re.compile(r"[:@](param|arg|argument|parameter|key|keyword|raises?|returns?|var|ivar|cvar|yields?)\b[^:]*:\s*")
_TYPED = re.compile(r"[*`'\"\w.,\s()\[\]-]{1,80} : ")
"""The line ``name : type`` of numpydoc."""
_NAMED = re.compile(
    r"[*`'\"]*[A-Za-z_][\w.*]*[`'\"]*(\s*[,/]\s*[*`]*\w+`*)*(\[[^\]]*\])?\s*(\([^()]*(\([^()]*\)[^()]*)*\)`*)?\s*(:|--|–| -)\s+(?=\S)"
)
"""What stands before the description of a parameter elsewhere: a name, possibly a type in brackets, and a colon or dash."""
_RULE = re.compile(r"([=\-~^\"'#*+.`:_])\1{2,}$")
_TABLE = re.compile(r"[+|].*|.*[=\-]{3,}\s+[=\-]{3,}.*|.*\S {3,}\S.*")
_MARKUP = (
    (re.compile(r"!?\[([^\]]+)\]\([^)\s]*\)"), r"\1"),  # Markdown's links
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # titled links of reST
    (re.compile(r":[a-z:+\-]+:`[~!]?([^`]+)`"), r"\1"),  # roles
    (re.compile(r"``?([^`]+)``?_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\[[\w.\-]+\]_"), ""),  # footnotes
    (re.compile(r"\b(\w+)_(?=[\s.,;]|$)"), r"\1"),  # links by name
)
_WORD = re.compile(r"[(\"'“‘]*[A-Za-z]+(['’\-/][A-Za-z]+)*[)\"'”’]*[.,;:!?]*[)\"'”’]*")
_SIGNS = re.compile(r"[\\{}<>=|$@^~]|%\(|::|https?:|__")
"""What prose does not have: mathematics, code, templates, addresses."""


def prose(docstring: str) -> list[str]:
    """Return the paragraphs of a documentation string that are prose, each on one line, without markup.

    Left out are doctests, code blocks, tables, headings, directives (of notes and warnings the text is kept), names and types of parameters
    (their descriptions are kept), formulas, addresses, lines that end in a colon and lead to what is left out, and paragraphs of less than
    `LEAST_IN_PARAGRAPH` words.
    """
    paragraphs: list[str] = []
    lines: list[str] = []
    for line in [*_text_lines(inspect.cleandoc(docstring).split("\n")), ""]:
        starts = _ITEM.match(line) or _FIELD.match(line) or (_NAMED.match(line) and lines and lines[-1].endswith((".", "!", "?")))
        if lines and (not line or starts):
            paragraphs += _paragraph(" ".join(lines))
            lines = []
        if line:
            lines.append(line)
    return paragraphs


def _text_lines(lines: list[str]) -> Iterator[str]:
    """Lines that may be prose, without indentation; an empty one ends a paragraph."""
    skipped: int | None = None  # the indentation below which nothing is read
    doctest = fenced = False
    before = 0
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        bare, indent = line.strip(), _indent(line)
        if bare.startswith(("```", "~~~")):
            fenced = not fenced
            bare = ""
        doctest = bool(bare) and (doctest or bare.startswith(">>>"))
        if not bare or fenced or doctest or (skipped is not None and indent > skipped):
            yield ""
            continue
        skipped = None
        if indent < before:
            yield ""
        before = indent
        if note := _ADMONITION.match(bare):
            yield from ("", bare[note.end() :])
        elif bare.startswith("..") or (
            bare.startswith(":") and not _FIELD.match(bare) and not bare.startswith((":class", ":func", ":meth"))
        ):
            skipped = indent
            yield ""
        elif _RULE.fullmatch(bare) or _RULE.fullmatch(after.strip()) or _TABLE.fullmatch(bare) or _TYPED.match(bare):
            yield ""
        elif bare.endswith("::"):
            skipped = indent
            yield from (bare[:-1], "")
        else:
            yield bare
            if _indent(after) > indent and not (_ITEM.match(bare) or _FIELD.match(bare) or _NAMED.match(bare)):
                yield ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else 0


def _paragraph(text: str) -> list[str]:
    """The paragraph without markup, or nothing where it is no prose."""
    for start in (_ITEM, _FIELD, _NAMED):
        text = text[found.end() :] if (found := start.match(text)) else text
    if len(text.split()) < LEAST_IN_PARAGRAPH or text.endswith(":"):
        return []
    for pattern, replacement in _MARKUP if set(text) & set("`*[_") else ():
        text = pattern.sub(replacement, text)
    words = text.split()
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    return [" ".join(words)] if len(words) >= LEAST_IN_PARAGRAPH and plain >= PROSE * len(words) and not _SIGNS.search(text) else []
