"""Which data there are, and how they are made: task files, tokenizer and pre-training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from moebench.config import benchmark_folder
from moebench.data import bundled, checkpoint_files, corpus, hub_tokenizer, tokenizer
from moebench.data.catalogue import Task
from moebench.data.schema import check, content
from moebench.data.text_settings import TextData, tasks
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import read_jsonl, write_json, write_jsonl
from moebench.protocol import Plan
from moebench.protocols.transfer.runs import facts

OTHER_SOURCE = {
    "constructed": ["moebench.data.files", "moebench.data.hub"],
    "files": ["moebench.data.constructed", "moebench.data.hub"],
    "hub": ["moebench.data.constructed"],
}
"""Source → the modules of the others, which are imported only when asked for."""
TEXTS = {"pair": ("text_a", "text_b"), "qa": ("question", "context")}
"""Kind of task → the texts of its rows."""


def plan(experiment: Experiment) -> Plan:
    """What the prepared data depend on."""
    data: TextData = experiment.data
    what = data.model_dump(mode="json") | {"catalogue": facts(data.tasks)}
    if data.source == "files":
        from moebench.data.files import FilesSource

        what["files"] = FilesSource(benchmark_folder(experiment.root), data).files()
    if data.source == "hub":
        from moebench.data.hub import HubSource

        hub = HubSource(experiment.root, data)
        what["hub"] = {"files": hub.files(), "choices": hub.choices(), "reading": hub.reading()}
    return Plan(what, [__name__], OTHER_SOURCE[data.source])


def parts(experiment: Experiment) -> dict[str, list[str]]:
    """Part of the data → what runs of it read: the packed corpus, or a training set and its tests."""
    sets = {one.train: [f"tasks/{one.train}", "tokenizer"] for one in tasks(experiment.data)}
    return {"corpus": ["corpus", "tokenizer"]} | sets if experiment.data.corpus else {"corpus": ["tokenizer"]} | sets


def prepare(experiment: Experiment, folder: Path, say: Callable[[str], object]) -> None:
    """Write task files, tokenizer, pre-training rows and ``manifest.json`` into an empty folder; ``say`` is told what is being made.

    Raises:
        MoebenchError: the source is not there, a row does not have its task's shape, or a constructed training set shares an example with
            a test set.
    """
    root, data = experiment.root, experiment.data
    chosen = tasks(data)
    say("source")
    source = build_source(root, data, say)
    manifest: dict[str, Any] = {"profile": experiment.profile, "source": source.name, "revision": source.revision}
    manifest |= {"pivot": source.pivot, "languages": list(source.languages)}
    manifest["train_languages"] = {name: data.train_languages.get(name, source.pivot) for name in sorted({one.train for one in chosen})}

    say("tasks")
    manifest["rows"], manifest["overlap"] = _write_tasks(source, chosen, folder / "tasks")

    say("tokenizer")
    downloads = root / "data" / "downloads"
    if data.tokens.source == "bundled":
        texts = chain(_task_texts(chosen, folder / "tasks"), _texts(source, "train", "validation") if data.corpus else ())
        pieces = tokenizer.from_bundle(bundled.Bundle(bundled.fetch(downloads)), texts, folder / "tokenizer")
    elif data.tokens.source == "hub":
        assert data.tokens.checkpoint is not None
        pieces = hub_tokenizer.from_checkpoint(checkpoint_files.resolve(data.tokens.checkpoint, downloads), folder / "tokenizer")
    else:
        assert data.tokens.vocabulary is not None
        pieces = tokenizer.train(_texts(source, "train"), data.tokens.vocabulary, folder / "tokenizer")
    manifest["tokenizer"] = {"kind": pieces.kind, "size": pieces.size, "sha256": pieces.sha256}

    if data.corpus is not None:
        batches = 0

        def step() -> None:
            nonlocal batches
            batches += 1
            say(f"pre-training rows, {batches * corpus.BATCH:,} documents")

        shape = data.corpus
        manifest["corpus"] = corpus.pack(source, pieces, shape.sequence_length, shape.validation_rows, folder / "corpus", step)
    if data.source != "constructed":
        manifest |= {"choices": source.choices(), "reports": source.reports()}
    write_json(folder / "manifest.json", manifest)


def build_source(root: Path, data: TextData, step: Callable[[str], object] = lambda what: None) -> Any:
    """Return the profile's data source; it calls ``step`` with the name of what it reads."""
    if data.constructed is not None:
        from moebench.data.constructed import ConstructedSource

        return ConstructedSource(data.constructed)
    if data.source == "hub":
        from moebench.data.hub import HubSource

        return HubSource(root, data, step)
    from moebench.data.files import FilesSource

    return FilesSource(benchmark_folder(root), data, step)


def _texts(source: Any, *splits: str) -> Iterator[str]:
    """Every text of the corpus."""
    for split in splits:
        yield from (text for _, text in source.documents(split))
        for _, a, _, b in source.parallel(split):
            yield a
            yield b


def _task_texts(tasks: Iterable[Task], folder: Path) -> Iterator[str]:
    """What will be cut into pieces of the tasks' prepared rows."""
    for one in tasks:
        for path in sorted((folder / one.train).rglob("*.jsonl")):
            for row in read_jsonl(path):
                yield from row["words"] if one.kind == "tagging" else (row[key] for key in TEXTS[one.kind])


def _write_tasks(source: Any, tasks: tuple[Task, ...], folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write all task files; returns file → rows, and test file → rows whose content is in its training file too (where there are any)."""
    rows: dict[str, int] = {}
    overlap: dict[str, int] = {}
    for training_set in sorted({one.train for one in tasks}):
        ours = [one for one in tasks if one.train == training_set]
        name = f"{training_set}/train.jsonl"
        rows[name], trained = _write_rows(folder, name, source.train(training_set), ours[0])
        name = f"{training_set}/validation.jsonl"
        rows[name], _ = _write_rows(folder, name, source.validation(training_set), ours[0])
        seen = set(trained)
        for one in ours:
            for language, examples in sorted(source.test(one.name).items()):
                name = f"{training_set}/test/{one.name}/{language}.jsonl"
                rows[name], tested = _write_rows(folder, name, examples, one)
                shared = [example for example in tested if example in seen]
                if shared and one.constructed:
                    raise MoebenchError(f"{name}: {len(shared)} examples are also in the training set, the first is {shared[0]!r}")
                if shared:
                    overlap[name] = len(shared)
    return rows, overlap


def _write_rows(folder: Path, name: str, examples: Iterable[dict[str, Any]], one: Task) -> tuple[int, list[tuple[str, ...]]]:
    """Check and write one file; returns the number of rows and their contents."""
    contents: list[tuple[str, ...]] = []
    ids: set[str] = set()

    def checked() -> Iterator[dict[str, Any]]:
        for row in examples:
            try:
                check(one.kind, row, one.labels)
            except MoebenchError as error:
                raise MoebenchError(f"{name}: {error}") from error
            if row["id"] in ids:
                raise MoebenchError(f"{name}: the id {row['id']!r} occurs twice")
            ids.add(row["id"])
            contents.append(content(one.kind, row))
            yield row

    count = write_jsonl(folder / name, checked())
    if not count:
        raise MoebenchError(f"{name}: the source gives no examples")
    return count, contents
