"""A large corpus in a stream: documents of a dataset of the hub, tokenised and packed into shards, resumable at the exact token.

Files of the dataset are read where they lie, in this order:

1. ``data/downloads/<owner>/<name>/``: put there by hand, in the dataset's own layout; identified by their content.
2. ``data/downloads/datasets--<owner>--<name>/snapshots/<revision>/`` and the same in the user's own cache of the hub.
3. The hub, read over the network as it goes; nothing but the packed ids is kept.

The shards lie in ``data/downloads/packed/<key>/``, where the key names all that decides their content: the files, the sources and their
weights, the tokenizer, the length of the rows, the split and the bound. After each shard ``state.json`` says where the stream stands, so a
run that was killed goes on from there and gives, byte for byte, what one that was not would have given.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moebench.data.lm_tokenizer import Pieces
from moebench.data.packing import TextRows, header, id_type, stream_of
from moebench.data.text_settings import Stream
from moebench.errors import MoebenchError, nearest
from moebench.files import atomic_write, held, json_text, read_object, sha256, write_json

Split = Literal["train", "validation", "test"]
HELD_OUT = 200
"""One document in so many is for validation, and one for the test; of a large corpus that is more than a run reads."""
STATE, DONE = "state.json", "rows.json"
BATCH = 64
"""Documents tokenised at a time."""
TIMEOUT = 10
"""Seconds after which the hub counts as out of reach."""
_SUFFIX = re.compile(r"\.(parquet|(jsonl?|txt)(\.(gz|bz2|xz|zst))?)$")


@dataclass
class Place:
    """How far a source has been read: ``row`` rows of its file number ``file``, and ``bytes`` of text in all."""

    file: int = 0
    row: int = 0
    bytes: int = 0


@dataclass
class State:
    """What has been written, where the sources stand, and the ids that come before what they give next."""

    shards: int = 0
    rows: int = 0
    documents: int = 0
    places: list[Place] = field(default_factory=list)
    remainder: list[int] = field(default_factory=list)


class TextStream:
    """The documents of a dataset; what the class raises is `MoebenchError`."""

    def __init__(self, downloads: Path, settings: Stream) -> None:
        """Find the files; the hub is asked only where none lie here.

        Args:
            downloads: ``data/downloads``.
            settings: which corpus.

        Raises:
            MoebenchError: the dataset is neither pinned nor put in place, cannot be reached, or a pattern matches none of its files.
        """
        self.settings = settings
        self._downloads = downloads
        self._home, names = self._listed()
        self._sources = {pattern: sorted(fnmatch.filter(names, pattern)) for pattern in settings.sources}
        for pattern, found in self._sources.items():
            if not found:
                example = ", ".join(sorted(names)[:5]) or "none"
                raise MoebenchError(
                    f"sources: no file of {settings.dataset} matches {pattern!r} in {self._home}; files there are: {example}"
                )
            if unknown := next((name for name in found if not _SUFFIX.search(name)), None):
                raise MoebenchError(f"sources: {pattern!r} matches {unknown}, which is neither parquet, JSON lines nor .txt")

    def _listed(self) -> tuple[str, list[str]]:
        """Where the files lie, a folder or an address of the hub, and their names below it."""
        from huggingface_hub import HfApi, constants

        dataset, revision = self.settings.dataset, self.settings.revision
        by_hand = self._downloads / dataset
        below = Path(f"datasets--{dataset.replace('/', '--')}", "snapshots", revision)
        for folder in (by_hand, self._downloads / below, Path(constants.HF_HUB_CACHE) / below):
            if folder.is_dir() and (revision or folder == by_hand):
                return str(folder), [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        if not revision:
            raise MoebenchError(
                f"{dataset} has no revision; pin the commit (40 hexadecimal digits) that"
                f" https://huggingface.co/datasets/{dataset}/commits/main shows, or put its files into {by_hand}"
            )
        try:
            info = HfApi().dataset_info(dataset, revision=revision, timeout=TIMEOUT)
        except Exception as error:  # its own classes, httpx's and the system's: all mean that nothing came
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise MoebenchError(
                f"{dataset} is not here and the hub cannot be asked for it ({problem}). On a machine with network run\n"
                f"  hf download {dataset} --repo-type dataset --revision {revision} --cache-dir {self._downloads}\n"
                f"Or put its files into {by_hand}, named as on the hub."
            ) from error
        return f"hf://datasets/{dataset}@{revision}", [sibling.rfilename for sibling in info.siblings or []]

    def files(self) -> dict[str, str]:
        """What is read: file below the dataset → SHA-256 where it was put in place by hand, otherwise the pinned commit."""
        by_hand = self._home == str(self._downloads / self.settings.dataset)
        names = sorted({name for found in self._sources.values() for name in found})
        return {name: sha256(Path(self._home, name)) if by_hand else self.settings.revision for name in names}

    @cached_property
    def revision(self) -> str:
        """SHA-256 over the files and all settings."""
        settings = self.settings.model_dump(mode="json", exclude={"revision"})
        settings["sources"] = list(self.settings.sources.items())  # their order breaks ties
        return hashlib.sha256(json_text([self.files(), settings]).encode()).hexdigest()

    def documents(self, places: list[Place]) -> Iterator[tuple[str, int, Place]]:
        """Yield (text, number of its source, the source's place after it), beginning at ``places``, one a source."""
        weights = list(self.settings.sources.values())
        readers = {
            number: self._rows(files, place) for number, (files, place) in enumerate(zip(self._sources.values(), places, strict=True))
        }
        given = [place.bytes / weight for place, weight in zip(places, weights, strict=True)]
        while readers:
            source = min(readers, key=given.__getitem__)
            if (found := next(readers[source], None)) is None:
                del readers[source]
            else:
                text, place = found
                given[source] = place.bytes / weights[source]
                yield text, source, place

    def _rows(self, files: list[str], start: Place) -> Iterator[tuple[str, Place]]:
        size = start.bytes
        for number in range(start.file, len(files)):
            first = start.row if number == start.file else 0
            row = first
            try:
                for row, text in enumerate(self._texts(files[number], first), start=first + 1):
                    size += len(text.encode("utf-8", "surrogatepass"))
                    yield text, Place(number, row, size)
            except MoebenchError as error:
                raise MoebenchError(f"{self._home}/{files[number]}: row {row + 1}: {error}") from error
            except Exception as error:  # of the network, the file system, pyarrow
                raise MoebenchError(
                    f"{self._home}/{files[number]}: cannot be read after row {row}: {type(error).__name__}: {error}; run again: it"
                    " goes on after the last whole shard"
                ) from error

    def _texts(self, name: str, skipped: int) -> Iterator[str]:
        """Texts of a file after the first ``skipped`` rows."""
        import datasets

        column, path = self.settings.column, f"{self._home}/{name}"
        parquet = name.endswith(".parquet")
        stream = datasets.load_dataset("parquet" if parquet else "text", data_files={"all": [path]}, split="all", streaming=True)
        if parquet:
            if column not in (columns := stream.features or {}):
                raise MoebenchError(f"no column {column!r}{nearest(column, columns)}; columns are: {', '.join(columns)}")
            # Resharded, it reads one row group after the other; otherwise it comes to hold the whole file.
            stream = stream.reshard().select_columns([column])
        for record in stream.skip(skipped):
            value = record[column if parquet else "text"]
            yield _member(value, column) if not parquet and ".json" in name else _checked(value, column)


def _member(line: str, column: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MoebenchError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict) or column not in value:
        names = value if isinstance(value, dict) else {}
        raise MoebenchError(f"no member {column!r}{nearest(column, names)}; should be an object with a text under that name")
    return _checked(value[column], column)


def _checked(value: Any, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise MoebenchError(f"{column!r} holds {type(value).__name__}; should be a text")
    return value or ""


def split_of(text: str) -> Split:
    """Return the split of a document, which hangs on its text alone."""
    place = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") % HELD_OUT
    return "validation" if place == 0 else "test" if place == 1 else "train"


def pack(
    stream: TextStream,
    pieces: Pieces,
    length: int,
    packed: Path,
    split: Split = "train",
    step: Callable[[int], object] = lambda tokens: None,
) -> Path:
    """Write the rows of a split as shards, or go on where an earlier call was stopped, and return their folder.

    Rows are those of `packing.write_rows`; a document may go on in the next shard. Memory holds a shard. Blank documents are left out.
    Nothing is read once the folder is complete.

    Args:
        stream: the documents.
        pieces: gives the ids.
        length: S, ids of a row.
        packed: ``data/downloads/packed``.
        split: which documents.
        step: called with the tokens written so far after each shard, to show progress.

    Returns:
        A folder with ``00000.npy``, … and ``rows.json``: ``shards``, ``rows``, ``documents`` of which at least a part was written.

    Raises:
        MoebenchError: another process is writing them, the stream cannot be read, or it does not fill a row.
    """
    settings = stream.settings
    most = settings.tokens // length
    if length < 2 or not most:
        raise MoebenchError(f"rows of {length} tokens, at most {settings.tokens} in all: a row should have 2 at least, and one should fit")
    key = hashlib.sha256(json_text([stream.revision, pieces.sha256, pieces.kind, length, split]).encode()).hexdigest()[:16]
    folder = packed / key
    with held(packed / f".{key}.lock", f"{folder}: process {{}} is packing it"):
        for left in folder.glob(".*.tmp"):  # of a killed process
            left.unlink()
        if (folder / DONE).exists():
            return folder
        state = _state(folder, len(settings.sources))
        dtype = id_type(pieces.size)
        waiting = [np.array(state.remainder, dtype=dtype)]
        size = len(waiting[0])
        encoded, ended = _encoded(stream, pieces, split, state), False
        while state.rows < most and not ended:
            rows = min(settings.shard_rows, most - state.rows)
            if size < rows * length:
                if (ids := next(encoded, None)) is not None:
                    waiting.append(ids.astype(dtype))
                    size += len(ids)
                    continue
                rows, ended = size // length, True
            if rows:
                waiting = [_write(folder, state, np.concatenate(waiting), rows, length)]
                size = len(waiting[0])
                step(state.rows * length)
        if not state.rows:
            raise MoebenchError(
                f"{settings.dataset}: the {state.documents} documents of split {split!r} do not fill a row of {length} tokens"
            )
        write_json(folder / DONE, {"shards": state.shards, "rows": state.rows, "documents": state.documents})
    return folder


def _encoded(stream: TextStream, pieces: Pieces, split: Split, state: State) -> Iterator[np.ndarray]:
    """The parts of the stream of ids that documents are; ``state`` says where it stands after the one that was yielded last."""
    documents = stream.documents(state.places)
    while batch := list(islice(documents, BATCH)):
        wanted = [text if split_of(text) == split and text.strip() else "" for text, _, _ in batch]
        for text, ids, (_, source, place) in zip(wanted, pieces.encode_batch(wanted), batch, strict=True):
            state.places[source] = place
            if text:
                state.documents += 1
                yield stream_of(ids, pieces.bos, pieces.eos, pieces.size)


def _state(folder: Path, sources: int) -> State:
    if not (folder / STATE).exists():
        return State(places=[Place() for _ in range(sources)])
    found = read_object(folder / STATE, shards=int, rows=int, documents=int, places=list, remainder=list)
    return State(**found | {"places": [Place(**place) for place in found["places"]]})


def _write(folder: Path, state: State, ids: np.ndarray, rows: int, length: int) -> np.ndarray:
    """Write the next shard and then the state after it; returns the ids that are left."""
    with atomic_write(folder / f"{state.shards:05d}.npy", binary=True) as handle:
        handle.write(header(rows, length, ids.dtype))
        handle.write(ids[: rows * length].tobytes())
    left = ids[rows * length :]
    state.shards += 1
    state.rows += rows
    state.remainder = left.tolist()
    write_json(folder / STATE, asdict(state))
    return left


class StreamRows:
    """The rows of a folder of shards, mapped into memory; used as `TextRows` is.

    Raises:
        MoebenchError: the folder is not complete, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        found = read_object(folder / DONE, shards=int, rows=int)
        self._shards = [TextRows(folder / f"{number:05d}.npy") for number in range(found["shards"])]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        if self._ends[-1] != found["rows"]:
            raise MoebenchError(
                f"{folder}: the shards hold {self._ends[-1]} rows, {DONE} says {found['rows']}; delete the folder and run again"
            )

    def __len__(self) -> int:
        """Return N."""
        return int(self._ends[-1])

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> np.ndarray:
        """Return the ids of the chosen rows, (B, S) int64."""
        rows_B = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        shards_B = np.searchsorted(self._ends, rows_B, side="right")
        ids_BS = np.empty((len(rows_B), self._shards[0].ids_NS.shape[1]), dtype=np.int64)
        for shard in np.unique(shards_B):
            chosen_B = shards_B == shard
            ids_BS[chosen_B] = self._shards[shard][rows_B[chosen_B] - (self._ends[shard] - len(self._shards[shard]))]
        return ids_BS
