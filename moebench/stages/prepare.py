"""Stage ``prepare``: task files, tokenizer and pre-training rows of a profile, in ``data/prepared/<profile>``."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from moebench import config
from moebench.catalogue import Task
from moebench.data import bundled, checkpoint_files, corpus, hub_tokenizer, tokenizer
from moebench.data.schema import check, content
from moebench.errors import MoebenchError
from moebench.files import read_jsonl, write_json, write_jsonl

TEXTS = {"pair": ("text_a", "text_b"), "qa": ("question", "context")}
"""Kind of task → the texts of its rows."""


def prepare(root: Path, profile: str) -> None:
    """Prepare the data of ``profile`` below the project's ``root``; a previous result is replaced only by a complete new one.

    Raises:
        MoebenchError: the profile's configuration is wrong, its source is not there, a row does not have its task's shape, or a constructed
            training set shares an example with a test set.
    """
    data = config.data(root, profile)
    tasks = config.tasks(data)
    with _replacing(root / "data" / "prepared" / profile) as folder, Console(stderr=True).status(f"prepare {profile}") as status:
        status.update(f"prepare {profile}: source")
        source = build_source(root, data, lambda what: status.update(f"prepare {profile}: {what}"))
        manifest: dict[str, Any] = {"profile": profile, "source": source.name, "revision": source.revision}
        manifest |= {"pivot": source.pivot, "languages": list(source.languages)}
        manifest["train_languages"] = {name: data.train_languages.get(name, source.pivot) for name in sorted({one.train for one in tasks})}

        status.update(f"prepare {profile}: tasks")
        manifest["rows"], manifest["overlap"] = _write_tasks(source, tasks, folder / "tasks")

        status.update(f"prepare {profile}: tokenizer")
        downloads = root / "data" / "downloads"
        if data.tokens.source == "bundled":
            texts = chain(_task_texts(tasks, folder / "tasks"), _texts(source, "train", "validation") if data.corpus else ())
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
                status.update(f"prepare {profile}: pre-training rows, {batches * corpus.BATCH:,} documents")

            shape = data.corpus
            manifest["corpus"] = corpus.pack(source, pieces, shape.sequence_length, shape.validation_rows, folder / "corpus", step)
        if data.source != "constructed":
            manifest |= {"choices": source.choices(), "reports": source.reports()}
        write_json(folder / "manifest.json", manifest)


def build_source(root: Path, data: config.Data, step: Callable[[str], object] = lambda what: None) -> Any:
    """Return the profile's data source; it calls ``step`` with the name of what it reads."""
    if data.constructed is not None:
        from moebench.data.constructed import ConstructedSource

        return ConstructedSource(data.constructed)
    if data.source == "hub":
        from moebench.data.hub import HubSource

        return HubSource(root, data, step)
    from moebench.data.files import FilesSource

    return FilesSource(config.benchmark_folder(root), data, step)


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


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder``; on success it takes that name, on failure it is deleted and ``folder`` is as it was."""
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    try:
        with _naming(folder):
            _tidy(folder, new, old)  # what a killed run left
            new.mkdir(parents=True)
        yield new
        with _naming(folder):
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
    finally:
        _tidy(folder, new, old)


def _tidy(folder: Path, new: Path, old: Path) -> None:
    if old.exists() and not folder.exists():  # stopped between the two renames
        old.replace(folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MoebenchError(f"{folder}: cannot be written: {error.strerror or error}") from error
