"""A folder of plain text (``*.txt``, UTF-8) as the corpus of a language model, split into training, validation and test documents."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from moebench.data import formats
from moebench.errors import MoebenchError, nearest
from moebench.files import sha256

Unit = Literal["file", "block", "line"]
"""What a document is: a file, lines between blank ones, or a line."""
Split = Literal["train", "validation", "test"]
HELD_OUT = 20
"""One document in so many is for validation, and one for the test."""


class TextFiles:
    """The documents of a folder, or of one file; streamed, so that memory holds one document and a hash of each.

    A file is read if its name ends in ``.txt`` and no part of its path begins with a dot. Where it lies in a folder with the name of a
    language (``de/…``: a code of two or three lower-case letters directly below the folder) it is of that language, otherwise of the one
    that is given.

    The split of a document hangs on its text alone (letters of either case and all white space being the same), so a document stays where
    it is when others come or go, and copies are never in two splits. Of copies the first is kept.
    """

    def __init__(self, path: Path, unit: Unit = "block", language: str = "en") -> None:
        """Look for the files; none is read yet.

        Args:
            path: a folder, or a file whatever its name.
            unit: what a document is.
            language: of the files that lie in no language's folder.

        Raises:
            MoebenchError: there is no such folder or file, nothing in it, or an unknown unit.
        """
        if unit not in get_args(Unit):
            raise MoebenchError(f"unit {unit!r} is not known{nearest(unit, get_args(Unit))}; should be one of {', '.join(get_args(Unit))}")
        if not path.exists():
            raise MoebenchError(f"{path}: no such folder or file of text")
        self.unit = unit
        self._folder = path if path.is_dir() else path.parent
        files = sorted(path.rglob("*.txt"), key=self._name) if path.is_dir() else [path]
        self._files = [file for file in files if file.is_file() and not re.search(r"(^|/)\.", self._name(file))]
        if not self._files:
            raise MoebenchError(f"{path}: the folder holds no file *.txt")
        self._languages = {file: self._language(file) or language for file in self._files}
        self._reports: set[str] = set()

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the files, sorted."""
        return tuple(sorted(set(self._languages.values())))

    def files(self) -> dict[str, str]:
        """What is read: path below the folder → SHA-256."""
        return {self._name(file): sha256(file) for file in self._files}

    @cached_property
    def revision(self) -> str:
        """SHA-256 over `files`, the languages and the unit."""
        content = "".join(f"{name}\0{found}\n" for name, found in self.files().items())
        return hashlib.sha256(f"{self.unit}\0{','.join(self._languages.values())}\0{content}".encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[tuple[str, str]]:
        """Stream (language, text), files in the order of their paths.

        Lines lose the spaces and tabs at their ends; blank lines separate blocks, and in a file are kept.

        Raises:
            MoebenchError: a file cannot be read, is empty, is not UTF-8 or holds NUL; the message names the line.
        """
        seen: set[bytes] = set()
        counts: Counter[str] = Counter()
        for file in self._files:
            for text in self._documents(file):
                key = hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
                place = int.from_bytes(key[:8], "big") % HELD_OUT
                if split != ("validation" if place == 0 else "test" if place == 1 else "train"):
                    continue
                if key in seen:
                    counts[self._name(file)] += 1
                else:
                    seen.add(key)
                    yield self._languages[file], text
        self._reports.update(f"{name}: {count} documents of split {split!r} are copies; left out" for name, count in counts.items())

    def reports(self) -> list[str]:
        """What was left out of the splits read to their end so far, sorted."""
        return sorted(self._reports)

    def _documents(self, file: Path) -> Iterator[str]:
        lines: list[str] = []
        for _, line in formats.documents(file):
            if lines and (self.unit == "line" or (self.unit == "block" and not line)):
                yield "\n".join(lines)
                lines = []
            if line or (lines and self.unit == "file"):
                lines.append(line)
        if text := "\n".join(lines).rstrip("\n"):
            yield text

    def _name(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()

    def _language(self, file: Path) -> str | None:
        top, *below = self._name(file).split("/")
        return top if below and re.fullmatch("[a-z]{2,3}", top) else None
