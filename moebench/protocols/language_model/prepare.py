"""Which texts there are, and how they become packed rows, a tokenizer and zero-shot tasks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config import benchmark_folder
from moebench.data import corpus, lm_tokenizer, packing
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import atomic_write, read_object, write_json
from moebench.protocol import Plan
from moebench.protocols.language_model.config import XNLI, Benchmarks, Data, Docstrings, Files, Made, Streamed, Text, language_of
from moebench.protocols.language_model.harness import write_tasks
from moebench.protocols.language_model.runs import EXAMINATION

MODULE = {
    "docstrings": "moebench.data.docstrings",
    "constructed": "moebench.data.choices",
    "files": "moebench.data.text_files",
    "benchmarks": "moebench.data.files",
    "stream": "moebench.data.text_stream",
}
"""Source → the module that reads or makes it, imported when asked for."""


def plan(experiment: Experiment) -> Plan:
    """What the prepared data depend on."""
    data: Data = experiment.data
    used = {text.source for text in data.texts.values()}
    what = data.model_dump(mode="json")
    for name, text in data.texts.items():
        if isinstance(text, Files):
            from moebench.data.text_files import TextFiles

            what.setdefault("files", {})[name] = TextFiles(benchmark_folder(experiment.root) / text.path, text.unit).files()
        if isinstance(text, Streamed):
            from moebench.data.text_stream import TextStream

            what.setdefault("streams", {})[name] = TextStream(experiment.root / "data" / "downloads", text).revision
    if data.benchmarks is not None:
        from moebench.data.files import FilesSource

        what["benchmark_files"] = FilesSource(benchmark_folder(experiment.root), data.benchmarks).files()
    if data.xnli:
        what["lm_eval"] = version("lm_eval")  # whose prompts are written into the tasks
    return Plan(what, [__name__, *(MODULE[name] for name in sorted(used))], [module for name, module in MODULE.items() if name not in used])


def parts(experiment: Experiment) -> dict[str, list[str]]:
    """Part of the data → what runs of it read."""
    data: Data = experiment.data
    tasks = ["tasks"] if data.prepared_tasks else []
    classes = ["classes"] if data.classified else []
    return {"train": ["train", "tokenizer"], EXAMINATION: ["validation", "tokenizer", *classes, *tasks]}


def prepare(experiment: Experiment, folder: Path, say: Callable[[str], object]) -> None:
    """Write tokenizer, packed rows, tasks and ``manifest.json`` into an empty folder; ``say`` is told what is being made.

    ``train/<text>.npy`` and ``validation/<text>.npy`` hold rows of S ids; what does not fill a last row is left out. ``classes/<text>.npy``
    holds, of every id of the held-out rows of a text in a constructed language, the class of the word that it is part of.

    Raises:
        MoebenchError: a source is not there, or gives too little text for a row; or XNLI has no labelled file of a language asked.
    """
    data: Data = experiment.data
    shared: dict[str, Any] = {}
    sources = {name: _Source(experiment, text, say, shared) for name, text in data.texts.items()}

    say("tokenizer")
    if data.tokens.source == "checkpoint":
        assert data.tokens.checkpoint is not None
        pieces = lm_tokenizer.from_checkpoint(experiment.root / "data" / "downloads" / data.tokens.checkpoint, folder / "tokenizer")
    else:
        assert data.tokens.vocabulary is not None
        texts = chain.from_iterable(source.documents("train") for source in sources.values())
        pieces = lm_tokenizer.train(texts, data.tokens.vocabulary, folder / "tokenizer")

    counts: dict[str, Any] = {}
    for name, source in sources.items():
        for split, limit in (("train", None), ("validation", data.validation_rows)):
            say(f"{split} rows of {name}")
            found = source.rows(split, pieces, data.sequence_length, folder / split / f"{name}.npy", limit)
            counts.setdefault(name, {})[split] = found

    for name in data.classified:
        sources[name].classes(pieces, folder / "validation" / f"{name}.npy", folder / "classes" / f"{name}.npy")

    say("tasks")
    for text in data.made:
        write_tasks(folder / "tasks", {name: sources[text].items(language_of(name)[0]) for name in data.asked_of(text)})
    if data.xnli:
        tests = shared["source"].test(XNLI)
        for name in data.xnli:
            if language_of(name)[1] not in tests:
                raise MoebenchError(
                    f"{experiment.data_file}: key 'tasks' names {name!r}, and {benchmark_folder(experiment.root)} has no labelled XNLI file"
                    f" of that language; there are: {', '.join(tests)}"
                )
        write_tasks(folder / "tasks", {name: [xnli_row(row) for row in tests[language_of(name)[1]]] for name in data.xnli})
    write_json(
        folder / "manifest.json",
        {
            "profile": experiment.profile,
            "source": "+".join(sources),
            "revision": "+".join(dict.fromkeys(source.revision for source in sources.values())),
            "tokenizer": {"kind": pieces.kind, "size": pieces.size, "sha256": pieces.sha256},
            "texts": counts,
        },
    )


def xnli_row(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as the hub's ``facebook/xnli`` has it, which the harness reads: ``label`` is a number."""
    number = ("entailment", "neutral", "contradiction").index(row["label"])
    return {"id": row["id"], "premise": row["text_a"], "hypothesis": row["text_b"], "label": number}


class _Source:
    """One text of the setting, whatever it comes from; ``shared`` is what those from benchmark files have in common, which is read once."""

    def __init__(self, experiment: Experiment, text: Text, say: Callable[[str], object], shared: dict[str, Any]):
        self.text, self.experiment, self.say, self.shared = text, experiment, say, shared
        data: Data = experiment.data
        if isinstance(text, Docstrings):
            from moebench.data import docstrings

            self.made: Any = list(docstrings.texts(text.packages))  # megabytes; reading them takes longer than all else
            found = docstrings.REVISION[:12] + docstrings.revision().removeprefix(docstrings.REVISION)
            self.revision = "-".join(["docstrings", *text.packages, found])
        elif isinstance(text, Made):
            from moebench.data.choices import ChoiceSource

            assert data.constructed is not None
            self.made = ChoiceSource(data.constructed, text.language)
            self.revision = self.made.revision
        elif isinstance(text, Files):
            from moebench.data.text_files import TextFiles

            self.made = TextFiles(benchmark_folder(experiment.root) / text.path, text.unit)
            self.revision = self.made.revision[:12]
        elif isinstance(text, Benchmarks):
            from moebench.data.files import FilesSource

            assert data.benchmarks is not None
            self.made = shared.setdefault("source", FilesSource(benchmark_folder(experiment.root), data.benchmarks, say))
            self.revision = self.made.revision[:12]
        else:
            from moebench.data.text_stream import TextStream

            self.made = TextStream(experiment.root / "data" / "downloads", text)
            self.revision = f"{text.dataset.replace('/', '-')}-{self.made.revision[:12]}"

    def documents(self, split: str) -> Iterator[str]:
        """Yield the documents of a split."""
        if isinstance(self.text, Docstrings):
            from moebench.data import docstrings

            yield from (text.text for text in self.made if docstrings.split_of(text.package) == split)
        elif isinstance(self.text, Benchmarks):
            if split not in self.shared:
                self.shared[split] = list(self.made.documents(split))
            yield from (document for language, document in self.shared[split] if language == self.text.language)
        elif isinstance(self.text, Files):
            wanted = self.text.language
            yield from (document for language, document in self.made.documents(split) if wanted in (None, language))
        else:
            yield from self.made.documents(split)

    def items(self, task: str) -> list[dict[str, Any]]:
        """The items of a constructed task."""
        items: list[dict[str, Any]] = self.made.items(task)
        return items

    def classes(self, pieces: lm_tokenizer.Pieces, rows: Path, path: Path) -> None:
        """Write the class of the word of every id of held-out ``rows``, (N, S) uint8; the source is a constructed language.

        Trained pieces hold a space at most at their beginning, so a document's are those of its words, each with the space before it.
        """
        code, sizes = self.made.word_classes(), cache(lambda word: len(pieces.encode(word)))

        def stream() -> Iterator[int]:
            for document in self.documents("validation"):
                yield 0  # bos
                for place, word in enumerate(document.split(" ")):
                    yield from repeat(code[word], sizes(f" {word}" if place else word))
                yield 0  # eos

        shape = packing.TextRows(rows).ids_NS.shape
        with atomic_write(path, binary=True) as file:
            np.save(file, np.fromiter(stream(), np.uint8, shape[0] * shape[1]).reshape(shape))

    def rows(self, split: str, pieces: lm_tokenizer.Pieces, length: int, path: Path, limit: int | None) -> dict[str, int]:
        """Write packed rows, at most ``limit``; those of a stream are shards in a folder of the path's name, without ending."""
        if isinstance(self.text, Streamed):
            return self._stream(self.text, split, pieces, length, path.with_suffix(""), limit)
        ids = (one for batch in corpus.batches(self.documents(split)) for one in pieces.encode_batch(batch))
        most = limit and limit * length + 2  # a document takes 3 at least, so what is cut off may be 2 short
        return packing.write_rows(_cut(ids, most), length, pieces.bos, pieces.eos, path, size=pieces.size)

    def _stream(
        self, text: Streamed, split: Any, pieces: lm_tokenizer.Pieces, length: int, folder: Path, limit: int | None
    ) -> dict[str, int]:
        """Pack what is wanted of a stream below ``data/downloads``, where a killed run goes on, and link its shards here."""
        from moebench.data import text_stream

        downloads = self.experiment.root / "data" / "downloads"
        settings = text if limit is None else text.model_copy(update={"tokens": limit * length})
        packed = text_stream.pack(
            text_stream.TextStream(downloads, settings),
            pieces,
            length,
            downloads / "packed",
            split,
            lambda tokens: self.say(f"{split} rows, {tokens:,} tokens"),
        )
        folder.mkdir(parents=True)
        for shard in packed.iterdir():
            if shard.name != text_stream.STATE:
                try:
                    os.link(shard, folder / shard.name)
                except OSError:  # another file system
                    shutil.copyfile(shard, folder / shard.name)
        counts: dict[str, int] = read_object(packed / text_stream.DONE, rows=int)
        return counts


def _cut(documents: Iterable[list[int]], tokens: int | None) -> Iterator[list[int]]:
    """End after so many tokens, with those that begin and end a document; none: after all documents."""
    for document in documents:
        if tokens is not None:
            if tokens < 3:
                return
            document = document[: tokens - 2]
            tokens -= len(document) + 2
        yield document
