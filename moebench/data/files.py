"""The data source that reads original benchmark files from a folder laid out as XTREME's download script leaves it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from moebench.catalogue import TASKS, Task, task
from moebench.config import Data
from moebench.data import formats
from moebench.data.formats import LabelsStripped, Row
from moebench.errors import MoebenchError, nearest
from moebench.files import sha256

HELD_OUT = 10
"""Every 10th group of a training set is its validation set where the English development set serves as a test set."""
HELD_OUT_DOCUMENTS = 100
"""Documents 1, 101, 201, ... of a corpus file are its validation documents."""


@dataclass(frozen=True)
class Layout:
    """Where a task's files lie, below the folder or below its ``xtreme/``.

    Attributes:
        folder: the task's folder.
        train: file of the training set, English.
        test: patterns of the test files, the preferred one first; ``{}`` is the language (pair).
        validation: file of the English development set, if it may serve as validation set; empty: the training set is split.
    """

    folder: str
    train: str
    test: tuple[str, ...]
    validation: str = ""


_TSV = ("test-{}.tsv", "dev-{}.tsv")
_TYDIQA = "tydiqa-goldp-v1.1-{0}/tydiqa.goldp.{1}.{0}.json"
LAYOUTS: dict[str, Layout] = {
    **{name: Layout(name, f"{name}/train-en.tsv", _TSV, "dev-en.tsv") for name in ("xnli", "pawsx", "udpos", "panx")},
    # SQuAD's development set is no validation set for XQuAD: XQuAD is a part of it, translated.
    "xquad": Layout("xquad", "squad/train-v1.1.json", ("xquad.{}.json",)),
    "mlqa": Layout("mlqa/MLQA_V1", "squad/train-v1.1.json", tuple(f"{split}/{split}-context-{{}}.json" for split in ("test", "dev"))),
    "tydiqa": Layout("tydiqa", "tydiqa/" + _TYDIQA.format("train", "en"), (_TYDIQA.format("dev", "{}"),)),
}


class FilesSource:
    """Rows of the real tasks, read from original files. Raises `MoebenchError` where a folder or file is not as it should be.

    The languages are those whose files are there. A language's test set is its ``test`` file if that carries labels, its ``dev`` file
    otherwise (XTREME's script strips the labels of the test files). The validation set is the English ``dev`` file, or every 10th group of
    the training set where that file is a test set or does not exist; a group is all rows with the same premise, sentence or context.
    ``max_train`` and ``max_test`` keep the first rows; ``max_test`` holds for the validation set as well.
    """

    name = "files"
    pivot = "en"

    def __init__(self, folder: Path, data: Data):
        """Check that every file that must be there is there; nothing is parsed yet.

        Args:
            folder: holds ``xnli/``, ``pawsx/``, ... or ``xtreme/`` with these.
            data: the profile's data section, of source ``files``.

        Raises:
            MoebenchError: the folder, a training file or every test file of a task is missing, or a name is not as it should be.
        """
        if not folder.is_dir():
            raise MoebenchError(
                f"{folder}: not a folder; name the folder of the original benchmark files in params.yaml (key 'folder') or MOEBENCH_FOLDER"
            )
        self.folder = folder
        self.data = data
        self._read_files: dict[Path, list[Row]] = {}
        self._choices: dict[str, dict[str, Path]] = {}
        self._reports: set[str] = set()
        self._tasks = [task(name) for name in data.tasks]
        for each in self._tasks:
            if each.name not in LAYOUTS:
                raise MoebenchError(
                    f"task {each.name!r} is not read from files{nearest(each.name, LAYOUTS)}; tasks are: {', '.join(LAYOUTS)}"
                )
        sets = sorted({TASKS[name].train for name in LAYOUTS})
        for name in data.train_files:
            if name not in sets:
                raise MoebenchError(
                    f"train_files: unknown training set {name!r}{nearest(name, sets)}; training sets are: {', '.join(sets)}"
                )
        self._training = {each.train: self._training_file(each) for each in self._tasks}
        self._candidates = {each.name: self._test_files(each) for each in self._tasks}
        if data.languages is not None:
            self._keep_languages(data.languages)
        for language in data.corpus_files:
            _check_language(language, f"corpus_files: key {language!r}")
        self._corpus = {language: self._named("corpus_files", language, name) for language, name in sorted(data.corpus_files.items())}

    # ------------------------------------------------------------------------------------------------------------ paths

    def _home(self, name: str) -> Path:
        below = self.folder / "xtreme"
        return (below if below.is_dir() else self.folder) / name

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _named(self, key: str, name: str, value: str) -> Path:
        pure = PurePosixPath(value)
        if pure.is_absolute() or ".." in pure.parts:
            raise MoebenchError(f"{key}.{name}: {value!r} leaves the folder; give a path below {self.folder}")
        path = self.folder / value
        if not path.is_file():
            raise MoebenchError(f"{key}.{name}: no file {path}; give a file's path below {self.folder}")
        return path

    def _training_file(self, each: Task) -> Path:
        if each.train in self.data.train_files:
            return self._named("train_files", each.train, self.data.train_files[each.train])
        path = self._home(LAYOUTS[each.name].train)
        if not path.is_file():
            raise MoebenchError(
                f"{path}: no such file, the training set {each.train!r} of task {each.name!r}; or name another in train_files"
            )
        return path

    def _test_files(self, each: Task) -> dict[str, list[Path]]:
        """Language (pair) → its test files, the preferred one first."""
        layout = LAYOUTS[each.name]
        home = self._home(layout.folder)
        found: dict[str, list[Path]] = {}
        for pattern in layout.test:
            before, after = pattern.split("{}")
            for path in sorted(home.glob(pattern.format("*"))):
                name = path.relative_to(home).as_posix().removeprefix(before).removesuffix(after)
                found.setdefault(_language(path, name, pairs=each.name == "mlqa"), []).append(path)
        if not found:
            example = "de-question-de" if each.name == "mlqa" else "de"
            expected = " or ".join(str(home / pattern.format(example)) for pattern in layout.test)
            raise MoebenchError(f"{home}: no test file of task {each.name!r}; expected for German, say, {expected}")
        return dict(sorted(found.items()))

    def _keep_languages(self, wanted: tuple[str, ...]) -> None:
        """Leave out the test files of other languages, and MLQA's pairs with them."""
        there = self.languages
        for name in wanted:
            if name not in there:
                raise MoebenchError(f"languages: no test file of {name!r}{nearest(name, there)}; {self.folder} has: {', '.join(there)}")
        for name, found in self._candidates.items():
            self._candidates[name] = {key: paths for key, paths in found.items() if set(key.split("-")) <= set(wanted)}
            if not self._candidates[name]:
                raise MoebenchError(f"languages: task {name!r} has test files of {', '.join(found)}, none of {', '.join(wanted)}")

    # ------------------------------------------------------------------------------------------------------- description

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages of the tasks' files that take part, the pivot first, the rest sorted; a pair of MLQA counts as its two."""
        found = {part for files in self._candidates.values() for name in files for part in name.split("-")}
        return (self.pivot, *sorted(found - {self.pivot}))

    @cached_property
    def _hashes(self) -> dict[str, str]:
        paths = {*self._training.values(), *self._corpus.values()}
        for each in self._tasks:
            paths.update(path for files in self._candidates[each.name].values() for path in files)
            paths.update(path for path in [self._development_file(each)] if path)
        return dict(sorted((self._relative(path), sha256(path)) for path in paths))

    def files(self) -> dict[str, str]:
        """Every file that is read, test files whose labels may prove stripped included: relative path → SHA-256, sorted."""
        return dict(self._hashes)

    @cached_property
    def revision(self) -> str:
        """SHA-256 over the names and contents of `files`."""
        return hashlib.sha256("".join(f"{name}\0{content}\n" for name, content in self._hashes.items()).encode()).hexdigest()

    def choices(self) -> dict[str, str]:
        """``<task>.<language>``, ``<set>.train`` and ``<set>.validation`` → the relative file that serves; parses the test files.

        Raises:
            MoebenchError: as `test` and `validation`.
        """
        chosen = {}
        for each in self._tasks:
            for language, path in self._chosen(each).items():
                chosen[f"{each.name}.{language}"] = self._relative(path)
            chosen[f"{each.train}.train"] = self._relative(self._training[each.train])
            development = self._validation_file(each.train)
            chosen[f"{each.train}.validation"] = (
                self._relative(development) if development else f"{chosen[f'{each.train}.train']}, every {HELD_OUT}th group"
            )
        return dict(sorted(chosen.items()))

    def reports(self) -> list[str]:
        """What was odd in the files read so far, and kept or repaired: sentences that begin with the relative file, sorted."""
        return sorted(self._reports)

    # --------------------------------------------------------------------------------------------------------------- rows

    def _read(self, each: Task, path: Path) -> list[Row]:
        if path not in self._read_files:
            parsers: dict[str, Callable[[], tuple[list[Row], list[str]]]] = {
                "pair": lambda: formats.pairs(path, each.labels),
                "tagging": lambda: formats.sentences(path, each.labels),
                "qa": lambda: formats.squad(path),
            }
            self._read_files[path], reports = parsers[each.kind]()
            self._reports.update(f"{self._relative(path)}: {report}" for report in reports)
        return self._read_files[path]

    def _chosen(self, each: Task) -> dict[str, Path]:
        """Language (pair) → the first of its test files that carries labels, none of them the training file.

        Raises:
            MoebenchError: labels are stripped and no other file can stand in, or the test file is the training file.
        """
        if each.name not in self._choices:
            self._choices[each.name] = {
                language: self._first_labelled(each, paths) for language, paths in self._candidates[each.name].items()
            }
        return self._choices[each.name]

    def _first_labelled(self, each: Task, paths: list[Path]) -> Path:
        for path in paths:
            try:
                self._read(each, path)
            except LabelsStripped as error:
                if path == paths[-1]:
                    beside = (
                        f"; or put the development file {path.name.replace('test-', 'dev-')} there" if path.name.startswith("test-") else ""
                    )
                    raise MoebenchError(f"{error}{beside}") from error
                self._reports.add(f"{self._relative(path)}: labels stripped; {self._relative(paths[-1])} stands in")
            else:
                self._refuse_leak(each, path)
                return path
        raise AssertionError("a language has at least one test file")

    def _refuse_leak(self, each: Task, path: Path) -> None:
        training = self._training[each.train]
        if self._hashes[self._relative(path)] == self._hashes[self._relative(training)]:
            raise MoebenchError(
                f"{training}: the training set {each.train!r} has the content of {path}, which is scored; train on another file"
            )

    def _development_file(self, each: Task) -> Path | None:
        layout = LAYOUTS[each.name]
        path = self._home(layout.folder) / layout.validation
        return path if layout.validation and path.is_file() else None

    def _validation_file(self, training_set: str) -> Path | None:
        """English development file that is the validation set; none: a part of the training set is held out for it."""
        each = self._task_of(training_set)
        path = self._development_file(each)
        if path is None or path in self._chosen(each).values():
            return None
        self._refuse_leak(each, path)
        return path

    def _task_of(self, training_set: str) -> Task:
        for each in self._tasks:
            if each.train == training_set:
                return each
        names = sorted(self._training)
        raise MoebenchError(f"unknown training set {training_set!r}{nearest(training_set, names)}; training sets are: {', '.join(names)}")

    def _split(self, training_set: str) -> tuple[list[Row], list[Row]]:
        """The training file's rows: those to train on and those held out, every 10th group, beginning with the first."""
        path = self._training[training_set]
        groups: dict[object, int] = {}
        parts: tuple[list[Row], list[Row]] = ([], [])
        for row in self._read(self._task_of(training_set), path):
            key = row.get("group") or row.get("context") or tuple(row["words"])
            parts[groups.setdefault(key, len(groups)) % HELD_OUT == 0].append(row)
        if not parts[0]:
            raise MoebenchError(f"{path}: has one group of examples; holding every {HELD_OUT}th out for validation needs two or more")
        return parts

    def train(self, training_set: str) -> list[Row]:
        """Rows of a training set (xnli, pawsx, udpos, panx, squad or tydiqa), English, without those held out.

        Raises:
            MoebenchError: not a training set of the configured tasks, or a bad file.
        """
        each = self._task_of(training_set)
        whole = self._validation_file(training_set) is not None
        rows = self._read(each, self._training[training_set]) if whole else self._split(training_set)[0]
        return rows[: self.data.max_train]

    def validation(self, training_set: str) -> list[Row]:
        """English validation rows of a training set; never test rows.

        Raises:
            MoebenchError: not a training set of the configured tasks, or a bad file.
        """
        path = self._validation_file(training_set)
        rows = self._read(self._task_of(training_set), path) if path else self._split(training_set)[1]
        return rows[: self.data.max_test]

    def test(self, task: str) -> dict[str, list[Row]]:
        """Language → test rows; for MLQA ``<context language>-<question language>``, or the one language where they agree.

        Raises:
            MoebenchError: not a configured task, a bad file, or labels that are stripped without a file to stand in.
        """
        for each in self._tasks:
            if each.name == task:
                return {language: self._read(each, path)[: self.data.max_test] for language, path in self._chosen(each).items()}
        raise MoebenchError(f"task {task!r} is not configured{nearest(task, self.data.tasks)}; tasks are: {', '.join(self.data.tasks)}")

    # ------------------------------------------------------------------------------------------------------------- corpus

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Stream (language, document) of the corpus files, languages sorted; blank lines are counted in `reports`.

        Raises:
            MoebenchError: a corpus file is empty or not UTF-8.
        """
        for language, path in self._corpus.items():
            number = blank = first = 0
            for line, text in formats.documents(path):
                if not text:
                    blank += 1
                    first = first or line
                    continue
                if (number % HELD_OUT_DOCUMENTS == 0) == (split == "validation"):
                    yield language, text
                number += 1
            if blank:
                self._reports.add(f"{self._relative(path)}: line {first}: {blank} blank lines in the file, the first here; no documents")

    def parallel(self, split: str) -> Iterator[tuple[str, str, str, str]]:
        """Nothing: there are no translated documents among these files."""
        return iter(())


def _check_language(name: str, where: str) -> None:
    if not re.fullmatch("[a-z]{2,3}", name):
        raise MoebenchError(f"{where}: the language {name!r} should be a code of 2 or 3 lower-case letters, such as 'de'")


def _language(path: Path, name: str, pairs: bool) -> str:
    parts = name.split("-question-") if pairs else [name]
    if len(parts) != (2 if pairs else 1):
        raise MoebenchError(f"{path}: the file's name should end in context-<language>-question-<language>.json")
    for part in parts:
        _check_language(part, str(path))
    return parts[0] if len(set(parts)) == 1 else "-".join(parts)
