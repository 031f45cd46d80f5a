"""The data source that reads original benchmark files from a folder: as XTREME's download script leaves them, or as they are published."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moebench.data import formats
from moebench.data.catalogue import TASKS, Task
from moebench.data.formats import LabelsStripped, Row
from moebench.data.sampling import sampled
from moebench.data.text_settings import TextData, tasks
from moebench.errors import MoebenchError, nearest
from moebench.files import sha256

HELD_OUT = 10
"""Every 10th group of a training set is its validation set where the English development set serves as a test set."""
TESTED = (1, 2)
"""Where a task's test set is a part of its training file: groups 1, 2, 11, 12, 21, ... of it."""
HELD_OUT_DOCUMENTS = 100
"""Documents 1, 101, 201, ... of a language's corpus are its validation documents."""


@dataclass(frozen=True)
class Part:
    """Where a set's rows are.

    Attributes:
        files: read one after the other.
        language: only the rows of this language count; empty: all.
    """

    files: tuple[Path, ...]
    language: str = ""

    def __str__(self) -> str:
        return " + ".join(map(str, self.files))


@dataclass(frozen=True)
class Layout:
    """Where a task's files lie, below the folder or below its ``xtreme/``, and under which names.

    In a pattern ``{}`` is the language (pair) and ``*`` anything; files of one language that match it are one set. A name without ``{}`` is
    a file of several languages. The first pattern of each kind is the name that XTREME's script gives, the others are the originals' own.

    Attributes:
        folder: the task's folder.
        train: files of the English training set, below the parent folder; the first that are there count.
        test: patterns of the test files.
        development: patterns of the development files, which stand in for a test file without labels.
        validates: whether the English development set may serve as validation set; otherwise the training set is split.
        original: which download has the labels, and under which name it is read; ``{}`` or ``{0}`` is the folder, ``{1}`` the language.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    development: tuple[str, ...] = ()
    validates: bool = True
    original: str = ""


_TYDIQA = "tydiqa-goldp-v1.1-{0}/tydiqa.goldp.{1}.{0}.json"
_UD = "UD_*/{}_*-ud-%s.conllu"
_COLUMNS = ("conll", "bio", "iob2")
LAYOUTS: dict[str, Layout] = {
    "xnli": Layout(
        "xnli",
        ("xnli/train-en.tsv", "xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv"),
        ("test-{}.tsv", "labelled/test-{}.tsv", "XNLI-1.0/xnli.test.tsv"),
        ("dev-{}.tsv", "XNLI-1.0/xnli.dev.tsv"),
        original="unpack https://dl.fbaipublicfiles.com/XNLI/XNLI-1.0.zip into {}",
    ),
    "pawsx": Layout(
        "pawsx",
        ("pawsx/train-en.tsv", "pawsx/x-final/en/train.tsv"),
        ("test-{}.tsv", "labelled/test-{}.tsv", "x-final/{}/test_2k.tsv"),
        ("dev-{}.tsv", "x-final/{}/dev_2k.tsv"),
        original="unpack https://storage.googleapis.com/paws/pawsx/x-final.tar.gz into {}",
    ),
    "udpos": Layout(
        "udpos",
        ("udpos/train-en.tsv", "udpos/train-en.conllu", "udpos/UD_*/en_*-ud-train.conllu"),
        ("test-{}.tsv", "labelled/test-{}.tsv", "test-{}.conllu", _UD % "test"),
        ("dev-{}.tsv", "dev-{}.conllu", _UD % "dev"),
        original="put the treebanks' folders (UD_German-GSD, ...) of a release of https://universaldependencies.org into {}",
    ),
    "panx": Layout(
        "panx",
        ("panx/train-en.tsv", "panx/en/train", *(f"panx/train-en.{suffix}" for suffix in _COLUMNS)),
        ("test-{}.tsv", "labelled/test-{}.tsv", "{}/test", *(f"test-{{}}.{suffix}" for suffix in _COLUMNS)),
        ("dev-{}.tsv", "{}/dev", *(f"dev-{{}}.{suffix}" for suffix in _COLUMNS)),
        original="unpack the archive {1}.tar.gz of WikiANN, Rahimi's splits, into {0}/{1}",
    ),
    # SQuAD's development set is no validation set for XQuAD: XQuAD is a part of it, translated.
    "xquad": Layout(
        "xquad",
        ("squad/train-v1.1.json",),
        ("xquad.{}.json", "labelled/xquad.{}.json"),
        validates=False,
        original="put the language's file of https://github.com/google-deepmind/xquad into {}/labelled",
    ),
    "mlqa": Layout(
        "mlqa/MLQA_V1",
        ("squad/train-v1.1.json",),
        ("test/test-context-{}.json", "labelled/test-context-{}.json"),
        ("dev/dev-context-{}.json",),
        validates=False,
        original="put the test files of https://dl.fbaipublicfiles.com/MLQA/MLQA_V1.zip into {}/labelled",
    ),
    "tydiqa": Layout(
        "tydiqa",
        (
            "tydiqa/" + _TYDIQA.format("train", "en"),
            "tydiqa/tydiqa-goldp-v1.1-train/tydiqa-goldp-v1.1-train.json",
            "tydiqa/tydiqa-goldp-v1.1-train.json",
        ),
        (
            _TYDIQA.format("dev", "{}"),
            "labelled/tydiqa.goldp.{}.dev.json",
            "tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-{}.json",
            "labelled/tydiqa-goldp-dev-{}.json",
            "tydiqa-goldp-v1.1-dev.json",
        ),
        validates=False,
        original="put tydiqa-goldp-v1.1-dev.json of https://github.com/google-research-datasets/tydiqa into {}",
    ),
}


class FilesSource:
    """Rows of the real tasks, read from original files. Raises `MoebenchError` where a folder or file is not as it should be.

    The languages are those whose files are there. A language's test set is the first of its ``test`` files that carries labels, and where
    none does its ``dev`` file (XTREME's script strips the labels of the test files). The validation set is the English ``dev`` file, or
    every 10th group of the training set where that file is a test set or does not exist; a group is all rows with the same premise,
    sentence or context. ``max_train`` and ``max_test`` draw rows (`moebench.data.sampling`); ``max_test`` holds for validation too.

    Task files are held in memory, those of one training set at a time; corpus files are streamed.
    """

    name = "files"
    pivot = "en"

    def __init__(self, folder: Path, data: TextData, step: Callable[[str], object] = lambda what: None):
        """Check that every file that must be there is there; nothing is parsed yet.

        Args:
            folder: holds ``xnli/``, ``pawsx/``, ... or ``xtreme/`` with these.
            data: the profile's data section, of source ``files``.
            step: called with each file's relative name before it is read, to show progress.

        Raises:
            MoebenchError: the folder, a training file or every test file of a task is missing, or a name is not as it should be.
        """
        if not folder.is_dir():
            raise MoebenchError(
                f"{folder}: not a folder; name the folder of the original benchmark files in params.yaml (key 'folder') or MOEBENCH_FOLDER"
            )
        self.folder = folder
        self.data = data
        self._step = step
        self._held = ""
        self._read_parts: dict[Part, list[Row]] = {}
        self._choices: dict[str, dict[str, Part]] = {}
        self._reports: set[str] = set()
        self._tasks = tasks(data)
        for each in self._tasks:
            if each.name not in LAYOUTS:
                raise MoebenchError(
                    f"task {each.name!r} is not read from files{nearest(each.name, LAYOUTS)}; tasks are: {', '.join(LAYOUTS)}"
                )
        self._training = {each.train: self._training_file(each) for each in self._tasks}
        self._candidates = {each.name: self._test_files(each) for each in self._tasks}
        self._development = {
            each.name: next(iter(self._found(each, LAYOUTS[each.name].development).get(self.pivot, [])), None)
            for each in self._tasks
            if LAYOUTS[each.name].validates
        }
        if data.languages is not None:
            self._keep_languages(data.languages)
        self._corpus = {language: self._corpus_files(language, name) for language, name in sorted(data.corpus_files.items())}

    # ------------------------------------------------------------------------------------------------------------ paths

    def _home(self, name: str) -> Path:
        below = self.folder / "xtreme"
        return (below if below.is_dir() else self.folder) / name

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _named(self, key: str, name: str, value: str) -> Path:
        path = self.folder / value
        if not path.exists():
            raise MoebenchError(f"{key}.{name}: no file {path}; give a file's path below {self.folder}")
        return path

    def _corpus_files(self, language: str, value: str) -> list[Path]:
        """The file of that name, or all files ``*.txt`` of the folder of that name, sorted."""
        path = self._named("corpus_files", language, value)
        if path.is_file():
            return [path]
        found = sorted(file for file in path.rglob("*.txt") if file.is_file() and not file.name.startswith("."))
        if not found:
            raise MoebenchError(f"corpus_files.{language}: the folder {path} holds no file *.txt")
        return found

    def _training_file(self, each: Task) -> Part:
        if each.train in self.data.train_files:
            path = self._named("train_files", each.train, self.data.train_files[each.train])
            if not path.is_file():
                raise MoebenchError(f"train_files.{each.train}: {path} is a folder; name a file")
            return self._english((path,))
        names = next(layout for name, layout in LAYOUTS.items() if TASKS[name].train == each.train).train
        home = self._home("")
        for name in names:
            if found := tuple(sorted(path for path in home.glob(name) if path.is_file())):
                return self._english(found)
        also = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        raise MoebenchError(
            f"{home / names[0]}: no such file{also}, the training set {each.train!r} of task {each.name!r}; or name another in train_files"
        )

    def _english(self, files: tuple[Path, ...]) -> Part:
        """These files, or the English rows of one that holds several languages."""
        several = files[0].suffix in (".json", ".tsv") and len(formats.languages(files[0])) > 1
        return Part(files, self.pivot if several else "")

    def _test_files(self, each: Task) -> dict[str, list[Part]]:
        """Language (pair) → its test sets, the preferred one first; a labelled original that is trained on is none."""
        if each.name in self.data.test_from_train:
            return {self.data.train_languages.get(each.train, self.pivot): [self._training[each.train]]}
        layout = LAYOUTS[each.name]
        found = self._found(each, (*layout.test, *layout.development))
        if not found:
            home = self._home(layout.folder)
            example = "de-question-de" if each.name == "mlqa" else "de"
            names = [pattern.format(example) for pattern in (layout.test[0], *layout.development[:1])]
            expected = " or ".join(str(home / name) for name in names)
            raise MoebenchError(f"{home}: no test file of task {each.name!r}; expected for German, say, {expected}")
        return dict(sorted(found.items()))

    def _found(self, each: Task, patterns: Iterable[str]) -> dict[str, list[Part]]:
        """Language (pair) → the parts that the patterns find, in their order."""
        home = self._home(LAYOUTS[each.name].folder)
        training = set(self._training[each.train].files)
        found: dict[str, list[Part]] = {}
        for pattern in patterns:
            for language, part in self._matches(home, pattern, pairs=each.name == "mlqa"):
                if not (pattern.startswith("labelled/") and training & set(part.files)):
                    found.setdefault(language, []).append(part)
        return found

    def _matches(self, home: Path, pattern: str, pairs: bool) -> Iterator[tuple[str, Part]]:
        if "{}" not in pattern:
            path = home / pattern
            yield from ((language, Part((path,), language)) for language in (formats.languages(path) if path.is_file() else []))
            return
        shape = re.escape(pattern).replace(r"\{\}", "([^/]+?)").replace(r"\*", "[^/]*")
        files: dict[str, list[Path]] = {}
        for path in sorted(home.glob(pattern.format("*"))):
            match = re.fullmatch(shape, path.relative_to(home).as_posix())
            if match and path.is_file():
                name = formats.LANGUAGE_NAMES.get(match[1], match[1]) if "goldp-dev" in pattern else match[1]
                files.setdefault(_language(path, name, pairs), []).append(path)
        yield from ((language, Part(tuple(paths))) for language, paths in files.items())

    def _keep_languages(self, wanted: tuple[str, ...]) -> None:
        """Leave out the test files of other languages, and MLQA's pairs with them."""
        there = self.languages
        for name in wanted:
            if name not in there:
                raise MoebenchError(f"languages: no test file of {name!r}{nearest(name, there)}; {self.folder} has: {', '.join(there)}")
        for name, found in self._candidates.items():
            self._candidates[name] = {key: parts for key, parts in found.items() if set(key.split("-")) <= set(wanted)}
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
        parts = [*self._training.values(), *(part for part in self._development.values() if part)]
        parts += [part for found in self._candidates.values() for several in found.values() for part in several]
        paths = {path for part in parts for path in part.files} | {path for files in self._corpus.values() for path in files}
        return dict(sorted((self._relative(path), sha256(path)) for path in paths))

    def files(self) -> dict[str, str]:
        """Every file that is read, test files whose labels may prove stripped included: relative path → SHA-256, sorted."""
        return dict(self._hashes)

    @cached_property
    def revision(self) -> str:
        """SHA-256 over the names and contents of `files`."""
        return hashlib.sha256("".join(f"{name}\0{content}\n" for name, content in self._hashes.items()).encode()).hexdigest()

    def choices(self) -> dict[str, str]:
        """``<task>.<language>``, ``<set>.train`` and ``<set>.validation`` → the relative files that serve; parses the test files.

        Raises:
            MoebenchError: as `test` and `validation`.
        """
        chosen = {}
        for each in self._tasks:
            for language, part in self._chosen(each).items():
                chosen[f"{each.name}.{language}"] = self._shown(part)
            if each.name in self.data.test_from_train:
                for language in self._chosen(each):
                    chosen[f"{each.name}.{language}"] += f", groups {TESTED[0]} and {TESTED[1]} of every {HELD_OUT}"
            chosen[f"{each.train}.train"] = self._shown(self._training[each.train])
            development = self._validation_part(each.train)
            chosen[f"{each.train}.validation"] = (
                self._shown(development) if development else f"{chosen[f'{each.train}.train']}, every {HELD_OUT}th group"
            )
        return dict(sorted(chosen.items()))

    def _shown(self, part: Part) -> str:
        names = " + ".join(self._relative(path) for path in part.files)
        return f"{names}, rows of {part.language}" if part.language else names

    def reports(self) -> list[str]:
        """What was odd in the files read so far, and kept or repaired: sentences that begin with the relative file, sorted."""
        return sorted(self._reports)

    # --------------------------------------------------------------------------------------------------------------- rows

    def _read(self, each: Task, part: Part) -> list[Row]:
        if each.train != self._held:
            self._held = each.train
            self._read_parts.clear()
        if part not in self._read_parts:
            rows: list[Row] = []
            for path in part.files:
                self._step(self._relative(path))
                found, reports = self._parse(each, path, part.language)
                rows += found
                self._reports.update(f"{self._relative(path)}: {report}" for report in reports)
            if not rows:
                raise MoebenchError(
                    f"{part}: no sentence has its text; the treebank's README says where to get it, or leave the language out"
                )
            self._read_parts[part] = rows
        return self._read_parts[part]

    def _parse(self, each: Task, path: Path, language: str) -> tuple[list[Row], list[str]]:
        if each.kind == "pair":
            return formats.pairs(path, each.labels, language)
        if each.kind == "qa":
            return formats.squad(path, language)
        if path.suffix == ".conllu":
            return formats.conllu(path, each.labels, re.sub("^(train|dev|test)-", "", path.stem).partition("_")[0])
        if path.suffix.removeprefix(".") in _COLUMNS:
            return formats.columns(path, each.labels)
        return formats.sentences(path, each.labels)

    def _chosen(self, each: Task) -> dict[str, Part]:
        """Language (pair) → the first of its test sets that carries labels, none of them the training set.

        Raises:
            MoebenchError: labels are stripped and no other file can stand in, or the test file is the training file.
        """
        if each.name in self.data.test_from_train:
            return {language: parts[0] for language, parts in self._candidates[each.name].items()}
        if each.name not in self._choices:
            self._choices[each.name] = {
                language: self._first_labelled(each, language, parts) for language, parts in self._candidates[each.name].items()
            }
        return self._choices[each.name]

    def _first_labelled(self, each: Task, language: str, parts: list[Part]) -> Part:
        stripped: list[Part] = []
        for part in parts:
            try:
                self._read(each, part)
            except LabelsStripped as error:
                stripped.append(part)
                if part == parts[-1]:
                    home, name = self._home(LAYOUTS[each.name].folder), part.files[0].name
                    beside = f"; or put the development file {name.replace('test-', 'dev-')} there" if name.startswith("test-") else ""
                    raise MoebenchError(f"{error}: {LAYOUTS[each.name].original.format(home, language)}{beside}") from error
            else:
                self._reports.update(f"{self._shown(other)}: labels stripped; {self._shown(part)} stands in" for other in stripped)
                self._refuse_leak(each, part)
                return part
        raise AssertionError("a language has at least one test file")

    def _refuse_leak(self, each: Task, part: Part) -> None:
        training = self._training[each.train]
        ours, theirs = ({self._hashes[self._relative(path)] for path in some.files} for some in (training, part))
        if ours & theirs and (training.language == part.language or not (training.language and part.language)):
            raise MoebenchError(
                f"{training}: the training set {each.train!r} has the content of {part}, which is scored; train on another file"
            )

    def _validation_part(self, training_set: str) -> Part | None:
        """English development set that is the validation set; none: a part of the training set is held out for it."""
        each = self._task_of(training_set)
        part = self._development.get(each.name)
        if part is None or part in self._chosen(each).values():
            return None
        self._refuse_leak(each, part)
        return part

    def _task_of(self, training_set: str) -> Task:
        for each in self._tasks:
            if each.train == training_set:
                return each
        names = sorted(self._training)
        raise MoebenchError(f"unknown training set {training_set!r}{nearest(training_set, names)}; training sets are: {', '.join(names)}")

    def _split(self, training_set: str) -> dict[str, list[Row]]:
        """The training file's rows: ``validation``, every 10th group, beginning with the first; ``test`` where a task needs it; ``train``.

        Raises:
            MoebenchError: a part is empty.
        """
        training = self._training[training_set]
        tested = any(each.train == training_set and each.name in self.data.test_from_train for each in self._tasks)
        groups: dict[object, int] = {}
        parts: dict[str, list[Row]] = {name: [] for name in ("validation", "test", "train") if tested or name != "test"}
        for row in self._read(self._task_of(training_set), training):
            key = row.get("group") or row.get("context") or tuple(row["words"])
            place = groups.setdefault(key, len(groups)) % HELD_OUT
            parts["validation" if place == 0 else "test" if tested and place in TESTED else "train"].append(row)
        for name, rows in parts.items():
            if not rows:
                raise MoebenchError(f"{training}: {len(groups)} groups of examples are too few to hold some out; the {name} set is empty")
        return parts

    def train(self, training_set: str) -> list[Row]:
        """Rows of a training set (xnli, pawsx, udpos, panx, squad or tydiqa), English, without those held out.

        Raises:
            MoebenchError: not a training set of the configured tasks, or a bad file.
        """
        each = self._task_of(training_set)
        whole = self._validation_part(training_set) is not None
        rows = self._read(each, self._training[training_set]) if whole else self._split(training_set)["train"]
        return list(sampled(rows, self.data.most_train(training_set), training_set))

    def validation(self, training_set: str) -> list[Row]:
        """English validation rows of a training set; never test rows.

        Raises:
            MoebenchError: not a training set of the configured tasks, or a bad file.
        """
        part = self._validation_part(training_set)
        rows = self._read(self._task_of(training_set), part) if part else self._split(training_set)["validation"]
        return list(sampled(rows, self.data.most_validation(training_set), training_set))

    def test(self, task: str) -> dict[str, list[Row]]:
        """Language → test rows; for MLQA ``<context language>-<question language>``, or the one language where they agree.

        Raises:
            MoebenchError: not a configured task, a bad file, or labels that are stripped without a file to stand in.
        """
        for each in self._tasks:
            if each.name == task:
                if task in self.data.test_from_train:
                    sets = {language: self._split(each.train)["test"] for language in self._candidates[task]}
                else:
                    sets = {language: self._read(each, part) for language, part in self._chosen(each).items()}
                return {language: list(sampled(rows, self.data.most_test(task), task)) for language, rows in sets.items()}
        raise MoebenchError(f"task {task!r} is not configured{nearest(task, self.data.tasks)}; tasks are: {', '.join(self.data.tasks)}")

    # ------------------------------------------------------------------------------------------------------------- corpus

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Stream (language, document) of the corpus files, languages sorted, then the texts of ``corpus_sets``.

        The texts of a set are those of its training rows, each once; every 100th is for validation. `reports` count blank lines.

        Raises:
            MoebenchError: a corpus file is empty or not UTF-8.
        """
        for language, paths in self._corpus.items():
            number = 0
            for path in paths:
                self._step(self._relative(path))
                blank = first = 0
                for line, text in formats.documents(path):
                    if not text:
                        blank += 1
                        first = first or line
                        continue
                    if (number % HELD_OUT_DOCUMENTS == 0) == (split == "validation"):
                        yield language, text
                    number += 1
                if blank:
                    self._reports.add(
                        f"{self._relative(path)}: line {first}: {blank} blank lines in the file, the first here; no documents"
                    )

        for name in self.data.corpus_sets:
            language = self.data.train_languages.get(name, self.pivot)
            texts = dict.fromkeys(text for row in self.train(name) for text in _texts(row))
            for number, text in enumerate(texts):
                if (number % HELD_OUT_DOCUMENTS == 0) == (split == "validation"):
                    yield language, text

    def parallel(self, split: str) -> Iterator[tuple[str, str, str, str]]:
        """Nothing: there are no translated documents among these files."""
        return iter(())


def _texts(row: Row) -> list[str]:
    """What a row says, without its label; the words of a tagged sentence with spaces between them."""
    if "words" in row:
        return [" ".join(row["words"])]
    return [row["context"]] if "context" in row else [row["text_a"], row["text_b"]]


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
