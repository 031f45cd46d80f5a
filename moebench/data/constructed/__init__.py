"""Constructed languages: a data source that makes its own text and its own exact labels. See ``docs/CONSTRUCTED_LANGUAGES.md``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from moebench.data.constructed import corpus, tasks
from moebench.data.constructed.language import languages
from moebench.data.constructed.realise import Realiser
from moebench.data.constructed.world import Sampler, World
from moebench.data.text_settings import Constructed
from moebench.errors import MoebenchError, nearest

Row = dict[str, Any]
Item = tasks.Tagged | tasks.Pair | tasks.Question

MAKERS: dict[str, Callable[[World, Sampler, random.Random], Iterator[Any]]] = {
    "constructed_pos": tasks.tagged,
    "constructed_ner": tasks.tagged,
    "constructed_qa": tasks.questions,
    "constructed_qa_native": tasks.questions,
    "constructed_nli": tasks.nli,
    "constructed_paraphrase": tasks.paraphrase,
}
"""Training set → maker of its examples."""
TRAINED_ON = {"constructed_qa_parallel": "constructed_qa", "constructed_qa_cross": "constructed_qa"}
"""Task → training set, where the names differ."""
PATIENCE = 2000
"""Repeated examples in a row after which there are taken to be no more new ones."""


class ConstructedSource:
    """Makes unlabelled text, parallel text, training sets in the pivot and tests in every language.

    The same options give the same bytes, in any process.

    Attributes:
        pivot: the language of the labelled training sets.
        languages: names of all languages, the pivot first.
        speakers: language → what puts meanings into it.
    """

    name = "constructed"
    revision = "constructed-2"
    """Raised by hand whenever the same options give other text."""

    def __init__(self, options: Constructed) -> None:
        self.options = options
        self.world = World(options)
        self.speakers = {name: Realiser(language) for name, language in languages(self.world, options).items()}
        self.languages = tuple(self.speakers)
        self.pivot = self.languages[0]

    def train(self, training_set: str) -> list[Row]:
        """Return the labelled training rows of a set, in the pivot."""
        return self._rows(training_set, self.items(training_set, "train"), self.pivot)

    def validation(self, training_set: str) -> list[Row]:
        """Return the labelled validation rows of a set, in the pivot."""
        return self._rows(training_set, self.items(training_set, "validation"), self.pivot)

    def test(self, task: str) -> dict[str, list[Row]]:
        """Return the test rows of a task: language → rows.

        Rows with the same id say the same in all languages, except for ``constructed_qa_native``. For
        ``constructed_qa_cross`` the keys are ``<context>-<question>``, and the pivot alone.

        Raises:
            MoebenchError: no such task.
        """
        if task == "constructed_qa_native":
            return {name: self._rows(task, self.items(task, "test", name), name) for name in self.languages}
        items = self.items(task, "test")
        if task != "constructed_qa_cross":
            return {name: self._rows(task, items, name) for name in self.languages}
        others = self.languages[1:]
        pairs = [(self.pivot, self.pivot), *((name, self.pivot) for name in others), *((self.pivot, name) for name in others)]
        return {one if one == other else f"{one}-{other}": self._rows(task, items, one, other) for one, other in pairs}

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        """Yield (language, text), a document at a time, the languages taking turns; they do not translate each other.

        ``train`` has ``options.documents`` per language, ``validation`` a tenth of that.
        """
        streams = {name: self._stream(corpus.documents, f"documents/{name}", split, self.options.documents) for name in self.languages}
        for lines in zip(*streams.values(), strict=True):
            for name, document in zip(streams, lines, strict=True):
                yield name, corpus.written(document, self.speakers[name])

    def parallel(self, split: str) -> Iterator[tuple[str, str, str, str]]:
        """Yield (pivot, text, other language, its translation), the other languages taking turns.

        ``train`` has ``options.parallel`` pairs per language, ``validation`` a tenth of that: phrases and single sentences.
        """
        others = self.languages[1:]
        streams = [self._stream(corpus.phrase_book, f"parallel/{name}", split, self.options.parallel) for name in others]
        for lines in zip(*streams, strict=True):
            for name, line in zip(others, lines, strict=True):
                yield self.pivot, corpus.written([line], self.speakers[self.pivot]), name, corpus.written([line], self.speakers[name])

    def _stream(self, make: Callable[[World, str, str, int], Iterator[Any]], name: str, split: str, count: int) -> Iterator[Any]:
        return make(self.world, f"{self.options.seed}/{name}/{split}", split, count if split == "train" else (count + 9) // 10)

    def items(self, task: str, split: str, language: str = "") -> list[Item]:
        """Return the meanings behind the rows of a training set or task; no two are the same.

        Raises:
            MoebenchError: no such task, or the lexicon and the names are too small for that many different examples.
        """
        training_set = TRAINED_ON.get(task, task)
        if training_set not in MAKERS:
            names = [*MAKERS, *TRAINED_ON]
            raise MoebenchError(f"unknown constructed task {task!r}{nearest(task, names)}; tasks are: {', '.join(names)}")
        rng = random.Random(f"{self.options.seed}/{task}/{split}/{language}")
        sampler = Sampler(self.world, rng, split, "held out" if split == "test" else "seen")
        wanted: int = getattr(self.options, split)
        made: dict[Item, None] = {}
        repeats = 0
        for item in MAKERS[training_set](self.world, sampler, rng):
            repeats = repeats + 1 if item in made else 0
            made[item] = None
            if len(made) == wanted:
                break
            if repeats > PATIENCE:
                raise MoebenchError(
                    f"constructed data: no more than {len(made)} different examples of {task} ({split}), {wanted} wanted:"
                    " raise 'lexicon' or 'names', or ask for fewer"
                )
        return list(made)

    def _rows(self, task: str, items: list[Item], language: str, question: str = "") -> list[Row]:
        speaker = self.speakers[language]
        rows = []
        for index, item in enumerate(items):
            if isinstance(item, tasks.Tagged):
                row = tasks.tagging_row(item, speaker, entities=task == "constructed_ner")
            elif isinstance(item, tasks.Pair):
                row = tasks.pair_row(item, speaker)
            else:
                row = tasks.question_row(item, speaker, self.speakers[question or language])
            rows.append({"id": str(index), **row})
        return rows
