"""What a profile's texts may be: ``experiments/<paper>/data/<profile>.yaml`` of papers on texts. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moebench.config import BaseData, Config, Count, Positive, Real, Seed, Share, Text
from moebench.data.catalogue import TASKS, Task, task
from moebench.errors import nearest

Made = Annotated[Positive, Field(le=10**7)]


class Constructed(Config):
    """How the constructed languages are made (``docs/CONSTRUCTED_LANGUAGES.md``)."""

    languages: Annotated[Positive, Field(ge=2, le=8)] = 5
    """How many, the pivot included; the first ones are the nearest to it."""
    seed: Seed = 0
    cognates: Share = 0.12
    """Share of the lexicon that a language shares with the pivot, by form."""
    romanised: bool = False
    """Whether all languages are written in the pivot's letters, so that what they share by form has the same pieces."""
    lexicon: Annotated[Made, Field(ge=60)] = 90
    """Number of lemmas of open word classes."""
    names: Annotated[Made, Field(ge=40)] = 90
    documents: Made = 8000
    """Pre-training documents per language."""
    parallel: Annotated[Count, Field(le=10**7)] = 4000
    """Translated phrases and sentences, of the pivot with each other language."""
    train: Made = 6000
    """Training examples per task, pivot only."""
    validation: Made = 300
    test: Made = 300
    """Test examples per task and language."""


class Corpus(Config):
    """The pre-training rows."""

    sequence_length: Annotated[Positive, Field(ge=5)] = 64
    """A translated pair takes five pieces at least: three special ones and two texts."""
    validation_rows: Positive = 200
    """Held-out rows per language."""


def check_source(source: str, **options: tuple[Any, str]) -> None:
    """Check that each option (its value, the source that it belongs to) is given for that source, and for no other.

    Raises:
        ValueError: one is not.
    """
    for key, (value, owner) in options.items():
        if (value is None) == (source == owner):
            raise ValueError(f"{key} is {'required' if source == owner else 'not an option'} for source {source!r}")


class Tokens(Config):
    """Which tokenizer: SentencePiece trained on the training corpus, the bundled XLM-R pieces, or a checkpoint's."""

    source: Literal["trained", "bundled", "hub"] = "trained"
    vocabulary: Positive | None = None
    """Number of pieces; only for ``trained``, where it is required."""
    checkpoint: str | None = None
    """A folder below ``data/downloads``, or owner/name@revision; only for ``hub``, where it is required."""

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> Tokens:
        check_source(self.source, vocabulary=(self.vocabulary, "trained"), checkpoint=(self.checkpoint, "hub"))
        return self


class Stream(Config):
    """Which corpus of the hub is read as a stream (`moebench.data.text_stream`), and how its parts are mixed."""

    dataset: Annotated[str, Field(pattern=r"^\w[\w.\-]*/\w[\w.\-]*$")]
    """On the hub: owner/name."""
    revision: str = ""
    """Commit, 40 hexadecimal digits; empty only where the files were put in place by hand."""
    sources: Annotated[dict[Text, Annotated[Real, Field(gt=0, le=1e6)]], Field(min_length=1)]
    """Pattern of file names (``*`` stands for ``/`` too) → weight. Its files are read one after the other, in the order of their names; the
    next document is that of the pattern which has given the fewest bytes for its weight, and one without files left drops out. Files are
    parquet, or text that may be compressed: JSON lines, or ``.txt`` with a document a line."""
    column: Text = "text"
    """Of a parquet file or JSON object: the one that holds the text."""
    tokens: Annotated[int, Field(strict=True, ge=1, le=10**13)]
    """At most so many are packed."""
    shard_rows: Positive = 65_536
    """Rows of a shard, which memory holds at a time."""

    @model_validator(mode="after")
    def _revision_is_a_commit(self) -> Stream:
        if self.revision and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(f"revision {self.revision!r} is no commit of 40 hexadecimal digits; a branch or tag may move")
        return self


class TextData(BaseData):
    """The texts of a profile."""

    source: Literal["constructed", "files", "hub"]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    constructed: Constructed | None = None
    """Options of the generator; only for source ``constructed``."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Languages of the test sets, not for source ``constructed``; none: all whose files are there, or that ``data/sources.yaml`` lists."""
    train_files: dict[str, str] = Field(default_factory=dict)
    """Training set → file below the folder that holds it; where the benchmark's own training file is not at hand."""
    train_languages: dict[str, str] = Field(default_factory=dict)
    """Training set → the language of its file in ``train_files``, where it is not English."""
    train_as: dict[str, str] = Field(default_factory=dict)
    """Training set → the one that stands in for it: their tasks share fine-tuned models."""
    test_from_train: tuple[str, ...] = ()
    """Tasks whose test files carry no labels: a part of the training file, held out from training, is their test set."""
    corpus_files: dict[str, str] = Field(default_factory=dict)
    """Language → plain-text file (a document a line) or folder of such files ``*.txt``, below the folder, for pre-training."""
    corpus_sets: tuple[str, ...] = ()
    """Training sets whose texts, without their labels, join the pre-training corpus."""
    corpus: Corpus | None = None
    """Shape of the pre-training rows; none: no pre-training corpus is prepared."""
    tokens: Tokens
    max_train: Positive | dict[str, Positive] | None = None
    """At most so many training examples, drawn from the whole file: of every training set, or by its name; none, or not named: all."""
    max_test: Positive | dict[str, Positive] | None = None
    """The same of validation and test examples in each language, by task; of validation sets the largest of their tasks."""

    @property
    def outside(self) -> bool:
        """Whether files outside the project are read."""
        return self.source != "constructed"

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> TextData:
        if (self.constructed is not None) != (self.source == "constructed"):
            raise ValueError("the section 'constructed' belongs to, and is required by, source 'constructed' alone")
        if self.source == "constructed" and self.languages:
            raise ValueError("languages belongs to the sources 'files' and 'hub' (constructed.languages is the number made)")
        for name in ("train_files", "train_languages", "train_as", "test_from_train", "corpus_files", "corpus_sets"):
            if self.source != "files" and getattr(self, name):
                raise ValueError(f"{name} belongs to source 'files'; the sets of source 'hub' stand in data/sources.yaml")
        if self.tokens.source == "trained" and self.corpus is None:
            raise ValueError("a trained tokenizer needs the section 'corpus'")
        self._check_names()
        return self

    def _check_names(self) -> None:
        sets = sorted({one.train for one in TASKS.values()})
        original = sorted({one.train for one in TASKS.values() if not one.constructed})
        limits = {key: value if isinstance(value := getattr(self, key), dict) else () for key in ("max_train", "max_test")}
        for key, names, allowed in (
            ("tasks", self.tasks, sorted(TASKS)),
            ("max_train", limits["max_train"], sets),
            ("max_test", limits["max_test"], sorted(TASKS)),
            ("train_files", self.train_files, original),
            ("train_languages", self.train_languages, original),
            ("train_as", (*self.train_as, *self.train_as.values()), original),
            ("test_from_train", self.test_from_train, self.tasks),
            ("corpus_sets", self.corpus_sets, sorted({one.train for one in tasks(self)}) if set(self.tasks) <= set(TASKS) else sets),
        ):
            for name in names:
                if name not in allowed:
                    raise ValueError(f"{key} names {name!r}{nearest(name, allowed)}; should be one of {', '.join(allowed)}")
        for key, languages in (("train_languages", self.train_languages.values()), ("corpus_files", self.corpus_files)):
            for name in languages:
                if not re.fullmatch("[a-z]{2,3}", name):
                    raise ValueError(f"{key}: the language {name!r} should be a code of 2 or 3 lower-case letters, such as 'de'")
        for key in ("tasks", "languages"):
            if (names := getattr(self, key)) and len(set(names)) < len(names):
                raise ValueError(f"{key} names one twice: {', '.join(names)}")
        for key in ("train_files", "corpus_files"):
            for name, value in getattr(self, key).items():
                if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
                    raise ValueError(f"{key}.{name}: {value!r} leaves the folder; give a path below it")

    def most_train(self, training_set: str) -> int | None:
        """At most so many examples of a training set; none: all."""
        return self.max_train.get(training_set) if isinstance(self.max_train, dict) else self.max_train

    def most_test(self, task: str) -> int | None:
        """At most so many test examples of a task; none: all."""
        return self.max_test.get(task) if isinstance(self.max_test, dict) else self.max_test

    def most_validation(self, training_set: str) -> int | None:
        """At most so many validation examples of a training set, the largest of its tasks; none: all."""
        limits = [self.most_test(one.name) for one in tasks(self) if one.train == training_set]
        return None if None in limits else max(limit for limit in limits if limit)


def tasks(data: TextData) -> tuple[Task, ...]:
    """The profile's tasks, each with the training set that it has there (``train_as``)."""
    return tuple(replace(one, train=data.train_as.get(one.train, one.train)) for one in map(task, data.tasks))
