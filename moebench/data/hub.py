"""The data source that reads the benchmark sets from the Hugging Face hub, at the commits that ``data/sources.yaml`` pins.

Parquet files are read a row group at a time, so memory does not grow with a set. Where the files of a set are looked for, in this order:

1. ``data/downloads/<owner>/<name>/``: put there by hand, in the dataset's own layout; identified by their content.
2. ``data/downloads/datasets--<owner>--<name>/snapshots/<revision>/`` and the same in the user's own cache of the hub.
3. The hub, which fills ``data/downloads``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from moebench.config import Config, load
from moebench.data import formats
from moebench.data.catalogue import TASKS, Task
from moebench.data.files import HELD_OUT, HELD_OUT_DOCUMENTS
from moebench.data.formats import Groups, Row
from moebench.data.sampling import sampled
from moebench.data.text_settings import TextData, tasks
from moebench.errors import MoebenchError, nearest
from moebench.files import sha256

OPTIONAL = ("deps",)
"""Columns, by our name, that a dataset may lack."""
TIMEOUT = 10
"""Seconds after which the hub counts as out of reach."""


class Dataset(Config):
    """A dataset of the hub."""

    revision: str = ""
    """Commit, 40 hexadecimal digits; empty: not pinned."""
    licence: str
    columns: dict[str, str]
    """Our name → the dataset's column."""
    labels: tuple[str, ...] = ()
    """Names of the labels that the numbers 0, 1, 2, ... stand for; empty: labels are text."""

    @model_validator(mode="after")
    def _revision_is_a_commit(self) -> Dataset:
        if self.revision and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(f"revision {self.revision!r} is no commit of 40 hexadecimal digits; a branch or tag may move")
        return self


class Training(Config):
    """An English training set."""

    dataset: str
    config: str
    split: str
    validation: str = ""
    """Split that serves as validation set; empty: every 10th group of the training split is held out."""
    prefix: str = ""
    """How the ids of its rows begin; empty: all rows count."""


class Tests(Config):
    """The test sets of a task, or the corpus."""

    dataset: str
    split: str
    configs: dict[str, str]
    """Language (pair) → configuration."""
    prefixes: dict[str, str] = Field(default={})
    """Language → how the ids of its rows begin, where a configuration holds several languages."""


class Sources(Config):
    """``data/sources.yaml``."""

    datasets: dict[str, Dataset]
    training: dict[str, Training]
    tests: dict[str, Tests]
    corpus: Tests

    @model_validator(mode="after")
    def _names_are_known(self) -> Sources:
        real = {name: one for name, one in TASKS.items() if not one.constructed}
        for kind, found, known in (("training", self.training, {one.train for one in real.values()}), ("tests", self.tests, set(real))):
            for name in found:
                if name not in known:
                    raise ValueError(f"{kind}: unknown set {name!r}{nearest(name, known)}; sets are: {', '.join(sorted(known))}")
        used = [one.dataset for one in self.training.values()] + [one.dataset for one in (*self.tests.values(), self.corpus)]
        for name in used:
            if name not in self.datasets:
                raise ValueError(f"no dataset {name!r}{nearest(name, self.datasets)} in the section 'datasets'")
        return self


@dataclass(frozen=True)
class Split:
    """One split of one configuration of a dataset; of its rows those whose id begins with ``prefix``."""

    dataset: str
    config: str
    name: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.dataset} {self.config} {self.name}" + (f", ids {self.prefix}*" if self.prefix else "")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Names under which the hub keeps a split's parquet files."""
        names = (f"{self.name}-*.parquet", f"{self.name}.parquet", f"{self.name}/*.parquet")
        return tuple(f"{above}{self.config}/{name}" for above in ("", "*/") for name in names)


@dataclass(frozen=True)
class Rows:
    """Rows that can be gone through again and again, read anew each time."""

    make: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.make()


class HubSource:
    """Rows of the real tasks from the hub; what the class raises is `MoebenchError`.

    Its interface is that of `moebench.data.files.FilesSource`, except that rows come as iterables. Before the first row all files of all
    configured sets are made to be there, so that a missing network or file shows before anything is written.
    """

    name = "hub"
    pivot = "en"

    def __init__(self, root: Path, data: TextData, step: Callable[[str], object] = lambda what: None):
        """Check the configuration; nothing is fetched or read yet.

        Args:
            root: the project's root.
            data: the profile's data section.
            step: called with the name of each split before it is fetched or read, to show progress.

        Raises:
            MoebenchError: ``data/sources.yaml`` is wrong, a task or language is not in it, or a dataset is neither pinned nor put in place.
        """
        self.sources = load(root / "data" / "sources.yaml", Sources)
        self.data = data
        self._path = root / "data" / "sources.yaml"
        self._downloads = root / "data" / "downloads"
        self._step = step
        self._reports: set[str] = set()
        self._reached: set[str] = set()
        self._tasks = tasks(data)
        for each in self._tasks:
            for kind, name, known in (("task", each.name, self.sources.tests), ("training set", each.train, self.sources.training)):
                if name not in known:
                    raise MoebenchError(f"{self._path}: no {kind} {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        wanted = {*(data.languages or ())}
        self._tests = {each.name: self._splits(self.sources.tests[each.name], wanted) for each in self._tasks}
        there = sorted({name for each in self._tasks for pair in self.sources.tests[each.name].configs for name in pair.split("-")})
        for language in data.languages or ():
            if language not in there:
                raise MoebenchError(f"languages: no test set of {language!r}{nearest(language, there)}; there are: {', '.join(there)}")
        for name, splits in self._tests.items():
            if not splits:
                raise MoebenchError(
                    f"languages: task {name!r} has test sets of {', '.join(self.sources.tests[name].configs)}, none of these"
                )
        self._corpus = self._splits(self.sources.corpus, {*self.languages}) if data.corpus else {}
        for dataset in sorted({split.dataset for split in self._all}):
            if not self.sources.datasets[dataset].revision and not self._by_hand(dataset).is_dir():
                raise MoebenchError(
                    f"{self._path}: datasets.{dataset} has no revision; pin the commit (40 hexadecimal digits) that"
                    f" https://huggingface.co/datasets/{dataset}/commits/main shows, or put its files into {self._by_hand(dataset)}"
                )

    @staticmethod
    def _splits(entry: Tests, wanted: set[str]) -> dict[str, Split]:
        return {
            language: Split(entry.dataset, config, entry.split, entry.prefixes.get(language, ""))
            for language, config in sorted(entry.configs.items())
            if not wanted or set(language.split("-")) <= wanted
        }

    def _training(self, training_set: str) -> tuple[Task, Split, Split | None]:
        """Task of a training set, its split, and the split that validates."""
        for each in self._tasks:
            if each.train == training_set:
                entry = self.sources.training[training_set]
                validation = Split(entry.dataset, entry.config, entry.validation, entry.prefix) if entry.validation else None
                return each, Split(entry.dataset, entry.config, entry.split, entry.prefix), validation
        names = sorted({each.train for each in self._tasks})
        raise MoebenchError(f"unknown training set {training_set!r}{nearest(training_set, names)}; training sets are: {', '.join(names)}")

    @cached_property
    def _all(self) -> list[Split]:
        splits = [split for found in (*self._tests.values(), self._corpus) for split in found.values()]
        for each in self._tasks:
            splits += [split for split in self._training(each.train)[1:] if split]
        return sorted(set(splits), key=str)

    # -------------------------------------------------------------------------------------------------------- description

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that take part, the pivot first, the rest sorted; a pair of MLQA counts as its two."""
        found = {part for splits in self._tests.values() for pair in splits for part in pair.split("-")}
        return (self.pivot, *sorted(found - {self.pivot}))

    def files(self) -> dict[str, str]:
        """What is read, without asking the hub: ``<dataset>/<file>`` → SHA-256 of files put there by hand, ``<split>`` → pinned commit."""
        found: dict[str, str] = {}
        for split in self._all:
            by_hand = self._by_hand(split.dataset)
            if by_hand.is_dir():
                files = _files(by_hand, split)
                if not files:
                    raise MoebenchError(f"{by_hand}: no parquet file of {split}; expected for instance {by_hand / split.patterns[0]}")
                found |= {f"{split.dataset}/{path.relative_to(by_hand).as_posix()}": sha256(path) for path in files}
            else:
                found[str(split)] = self.sources.datasets[split.dataset].revision
        return dict(sorted(found.items()))

    def reading(self) -> dict[str, dict[str, Any]]:
        """How the datasets that take part are read: dataset → its columns and labels."""
        names = sorted({split.dataset for split in self._all})
        return {name: self.sources.datasets[name].model_dump(mode="json", include={"columns", "labels"}) for name in names}

    @cached_property
    def revision(self) -> str:
        """SHA-256 over `files`."""
        return hashlib.sha256("".join(f"{name}\0{content}\n" for name, content in self.files().items()).encode()).hexdigest()

    def choices(self) -> dict[str, str]:
        """``<task>.<language>``, ``<set>.train`` and ``<set>.validation`` → the split that serves."""
        chosen: dict[str, str] = {}
        for each in self._tasks:
            chosen |= {f"{each.name}.{language}": self._shown(split) for language, split in self._tests[each.name].items()}
            _, train, validation = self._training(each.train)
            chosen[f"{each.train}.train"] = self._shown(train)
            chosen[f"{each.train}.validation"] = (
                self._shown(validation) if validation else f"{self._shown(train)}, every {HELD_OUT}th group"
            )
        return dict(sorted(chosen.items()))

    def _shown(self, split: Split) -> str:
        by_hand = self._by_hand(split.dataset).is_dir()
        return f"{split} ({'put in place by hand' if by_hand else self.sources.datasets[split.dataset].revision})"

    def reports(self) -> list[str]:
        """What was odd in the splits read to their end so far, and kept, repaired or left out; sorted."""
        return sorted(self._reports)

    # -------------------------------------------------------------------------------------------------------------- files

    def _by_hand(self, dataset: str) -> Path:
        return self._downloads / dataset

    def _places(self, dataset: str) -> list[Path]:
        """Folders that may hold the pinned files: ours, then the user's cache."""
        from huggingface_hub import constants

        below = Path(f"datasets--{dataset.replace('/', '--')}", "snapshots", self.sources.datasets[dataset].revision)
        return [self._downloads / below, Path(constants.HF_HUB_CACHE) / below]

    @cached_property
    def _found(self) -> dict[Split, list[Path]]:
        """The files of every split, fetched where they are not here."""
        found: dict[Split, list[Path]] = {}
        for split in self._all:
            by_hand = self._by_hand(split.dataset)
            places = [by_hand] if by_hand.is_dir() else self._places(split.dataset)
            found[split] = next(filter(None, (_files(place, split) for place in places)), [])
        lacking = [split for split, files in found.items() if not files]
        for split in lacking:
            if self._by_hand(split.dataset).is_dir():
                self.files()  # says what is missing there
            self._step(f"fetch {split}")
            if problem := self._fetch(split):
                raise MoebenchError(self._unreachable(problem, [other for other in lacking if not found[other]]))
            found[split] = _files(self._places(split.dataset)[0], split)
            if not found[split]:
                raise MoebenchError(
                    f"{split} at {self.sources.datasets[split.dataset].revision}: the hub has no file {' or '.join(split.patterns[:3])}"
                    f" there; correct it in {self._path}"
                )
        return found

    def _fetch(self, split: Split) -> str:
        """Download a split; returns why that failed, or an empty text."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        revision = self.sources.datasets[split.dataset].revision
        disable_progress_bars()  # they would garble the line that shows progress
        try:
            if split.dataset not in self._reached:  # fails at once, where a download would try again and again
                HfApi().dataset_info(split.dataset, revision=revision, timeout=TIMEOUT)
                self._reached.add(split.dataset)
            snapshot_download(
                split.dataset,
                repo_type="dataset",
                revision=revision,
                cache_dir=self._downloads,
                allow_patterns=["README.md", *split.patterns],
                etag_timeout=TIMEOUT,
            )
        except Exception as error:  # its own classes, httpx's and the system's: all mean that nothing came
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return ""

    def _unreachable(self, problem: str, lacking: list[Split]) -> str:
        lines = [
            f"{len(lacking)} sets are not here and cannot be fetched from the hub ({problem}).",
            f"On a machine with network run in {self._downloads.parent.parent}, or copy data/downloads from there:",
        ]
        for dataset in sorted({split.dataset for split in lacking}):
            include = " ".join(f'"*{split.config}/{split.name}*"' for split in lacking if split.dataset == dataset)
            revision = f"--revision {self.sources.datasets[dataset].revision}"
            lines.append(f"  hf download {dataset} --repo-type dataset {revision} --cache-dir data/downloads --include README.md {include}")
        return "\n".join([*lines, f"Or put a dataset's files into {self._downloads}/<owner>/<name>, named as on the hub."])

    # --------------------------------------------------------------------------------------------------------------- rows

    def train(self, training_set: str) -> Iterable[Row]:
        """Rows of a training set, English, without those held out.

        Raises:
            MoebenchError: not a training set of the configured tasks, or a file that cannot be had.
        """
        each, split, validation = self._training(training_set)
        whole = Rows(lambda: self._rows(each, split, self.pivot))
        kept = whole if validation else Rows(lambda: _part(whole, held=False))
        return Rows(lambda: sampled(kept, self.data.most_train(training_set), training_set))

    def validation(self, training_set: str) -> Iterable[Row]:
        """English validation rows of a training set; never test rows.

        Raises:
            MoebenchError: as `train`.
        """
        each, split, validation = self._training(training_set)
        rows = Rows(lambda: self._rows(each, validation or split, self.pivot))
        kept = rows if validation else Rows(lambda: _part(rows, held=True))
        return Rows(lambda: sampled(kept, self.data.most_validation(training_set), training_set))

    def test(self, task: str) -> dict[str, Iterable[Row]]:
        """Language → test rows; for MLQA ``<context language>-<question language>``, or the one language where they agree.

        Raises:
            MoebenchError: not a configured task, or a file that cannot be had.
        """
        for each in self._tasks:
            if each.name == task:
                return {language: self._tested(each, split, language) for language, split in self._tests[task].items()}
        raise MoebenchError(f"task {task!r} is not configured{nearest(task, self.data.tasks)}; tasks are: {', '.join(self.data.tasks)}")

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Stream (language, document) of the corpus, languages sorted; documents 1, 101, 201, ... are for validation."""
        for language, where in self._corpus.items():
            for number, row in enumerate(self._records(where)):
                if (number % HELD_OUT_DOCUMENTS == 0) == (split == "validation") and row["text"].strip():
                    yield language, row["text"]

    def parallel(self, split: str) -> Iterator[tuple[str, str, str, str]]:
        """Nothing: there are no translated documents among these sets."""
        return iter(())

    def _tested(self, each: Task, split: Split, language: str) -> Rows:
        rows = Rows(lambda: self._rows(each, split, language))
        return Rows(lambda: sampled(rows, self.data.most_test(each.name), each.name))

    def _records(self, split: Split) -> Iterator[dict[str, Any]]:
        """Records of a split under our names for the columns, label numbers as names."""
        files = self._found[split]
        self._step(str(split))
        try:
            import datasets
        except ImportError as error:
            raise MoebenchError(f"the data source 'hub' needs the package 'datasets': {error}; pip install datasets") from error
        entry = self.sources.datasets[split.dataset]
        stream = datasets.load_dataset("parquet", data_files={split.name: [str(path) for path in files]}, split=split.name, streaming=True)
        columns, labels = stream.features or {}, {}
        read = {ours: theirs for ours, theirs in entry.columns.items() if theirs in columns or ours not in OPTIONAL}
        for ours, theirs in read.items():
            if theirs not in columns:
                raise MoebenchError(f"{split}: no column {theirs!r}{nearest(theirs, columns)}; columns are: {', '.join(columns)}")
            inner = getattr(columns[theirs], "feature", columns[theirs])
            names = getattr(inner, "names", None)  # of a ClassLabel
            if names and entry.labels and tuple(names) != entry.labels:
                raise MoebenchError(f"{split}: column {theirs!r} numbers {', '.join(names)}; {self._path} says {', '.join(entry.labels)}")
            labels[ours] = tuple(names or entry.labels) if ours in ("label", "tags") else ()
        # Resharded, it reads one row group after the other; otherwise it comes to hold the whole file.
        for record in stream.reshard().select_columns(list(read.values())):
            if split.prefix and not record[entry.columns["id"]].startswith(split.prefix):
                continue
            yield {ours: _named(record[theirs], labels[ours]) for ours, theirs in read.items()}

    def _rows(self, each: Task, split: Split, language: str) -> Iterator[Row]:
        make = {"pair": _pairs, "tagging": _sentences, "qa": _questions}[each.kind]
        counts: Counter[str] = Counter()
        try:
            yield from make(split, self._records(split), language, counts)
        finally:
            self._reports.update(f"{split}: {count} {what}" for what, count in counts.items() if count)


WITHHELD = "sentences have '_' for words, their text is withheld; left out"
FUSED = "multiword tokens; each is one word with its head's tag"
UNREAD = "words with DEPS in a form that is not read; their HEAD alone counts"
MOVED = "answers moved to where their text stands"


def _pairs(split: Split, records: Iterable[dict[str, Any]], language: str, counts: Counter[str]) -> Iterator[Row]:
    groups = Groups()
    for number, record in enumerate(records):
        if record["label"] in (None, "", -1):
            raise MoebenchError(f"{split}: row {number} has no label; this split is published without labels, name another")
        yield {"id": f"{language}-{split.name}:{number}", "group": groups.of(record["text_a"])} | record


def _sentences(split: Split, records: Iterable[dict[str, Any]], language: str, counts: Counter[str]) -> Iterator[Row]:
    for number, record in enumerate(records):
        words, tags = record["words"], record["tags"]
        if any(tag in (None, "", "_", -1) for tag in tags):
            raise MoebenchError(f"{split}: row {number} has no tags; this split is published without labels, name another")
        if "spans" in record:
            enhanced = [_enhanced(deps) for deps in record.get("deps") or ["_"] * len(words)]
            counts[UNREAD] += enhanced.count(None)
            heads = [
                (int(head) if str(head).isdecimal() else 0, *(more or ())) for head, more in zip(record["heads"], enhanced, strict=True)
            ]
            ranges = [(*map(int, span["id"].split("-")), span["form"]) for span in record["spans"]]
            sentence = formats.Sentence(words, tags, heads, [(first, last, form) for first, last, form in ranges])
            if sentence.withheld():
                counts[WITHHELD] += 1
                continue
            words, tags = sentence.surface(language)
            counts[FUSED] += len(ranges)
        yield {"id": f"{language}-{split.name}:{number}", "words": words, "tags": tags}


def _enhanced(deps: str | None) -> tuple[int, ...] | None:
    """The heads in DEPS, as the format has it or as the package ``conllu`` shows it: ``[('nsubj', 4), ('nsubj', 8)]``."""
    if deps and deps.startswith("["):
        deps = "|".join(f"{head}:" for head in re.findall(r"\('[^']*', ([0-9]+)\)", deps)) or None
    return formats.enhanced("_" if deps in (None, "", "None") else deps)


def _questions(split: Split, records: Iterable[dict[str, Any]], language: str, counts: Counter[str]) -> Iterator[Row]:
    for record in records:
        context, answers = record["context"], []
        for text, start in zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True):
            if not text.strip():
                continue  # an answer without a text is none
            if start < 0 or context[start : start + len(text)] != text:
                moved = formats.realign(context, text, start, len(context))
                if moved is None:
                    raise MoebenchError(f"{split}: question {record['id']!r}: the answer {text!r} does not stand in its context")
                counts[MOVED] += 1
                start = moved
            answers.append({"text": text, "start": start})
        if not answers:
            raise MoebenchError(f"{split}: question {record['id']!r} has no answer; this split is published without labels, name another")
        yield {"id": record["id"], "context": context, "question": record["question"], "answers": answers}


def _files(folder: Path, split: Split) -> list[Path]:
    """Parquet files of a split below a folder, sorted; none if parts of it are missing."""
    for pattern in split.patterns:
        found = sorted(folder.glob(pattern))
        if found:
            total = re.search(r"-of-(\d+)\.parquet$", found[0].name)
            return found if not total or len(found) == int(total[1]) else []
    return []


def _named(value: Any, labels: tuple[str, ...]) -> Any:
    """A label's name for its number, a list of them for a list; anything else as it is, and -1, which means none."""
    if isinstance(value, list):
        return [_named(item, labels) for item in value]
    return labels[value] if labels and type(value) is int and 0 <= value < len(labels) else value


def _part(rows: Iterable[Row], held: bool) -> Iterator[Row]:
    """The rows held out for validation, every 10th group beginning with the first, or the others."""
    groups: dict[bytes, int] = {}
    for row in rows:
        key = hashlib.blake2b((row.get("group") or row.get("context") or "\0".join(row["words"])).encode(), digest_size=16).digest()
        if (groups.setdefault(key, len(groups)) % HELD_OUT == 0) == held:
            yield row
