"""Streams of documents: what is packed, how sources are mixed, and that a run that is killed goes on to the same bytes. No network."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from moebench.data import lm_tokenizer, packing, text_stream
from moebench.data.packing import TextRows
from moebench.data.text_settings import Stream
from moebench.data.text_stream import Place, StreamRows, TextStream, pack, split_of
from moebench.errors import MoebenchError

ROOT = Path(__file__).parents[2]
COMMIT = "1f" * 20
WORDS = ["lamp", "river", "under", "stone", "the", "a", "sees", "green", "\n", "é", "😀"]


def texts(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 60))) for _ in range(count)]


PARTS = {"web": texts(0, 300), "books": texts(1, 90), "code": texts(2, 120)}


def write(folder: Path) -> None:
    """The parts in the formats of the hub: parquet in two files, JSON lines, compressed JSON lines."""
    for name in ("web", "books", "code"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, part in enumerate((PARTS["web"][:170], PARTS["web"][170:])):
        table = pyarrow.table({"id": list(range(len(part))), "text": part})
        pyarrow.parquet.write_table(table, folder / f"web/{number:05d}-of-00002.parquet", row_group_size=50)
    lines = [json.dumps({"text": text, "meta": {"id": i} if i % 2 else str(i)}) for i, text in enumerate(PARTS["books"])]
    (folder / "books/all.jsonl").write_text("\n".join([*lines[:5], "", *lines[5:]]) + "\n")
    with gzip.open(folder / "code/all.jsonl.gz", "wt") as handle:
        handle.writelines(json.dumps({"text": text}) + "\n" for text in PARTS["code"])


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    write(folder / "owner/corpus")
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return lm_tokenizer.train((text for part in PARTS.values() for text in part), 320, tmp_path_factory.mktemp("pieces"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    from huggingface_hub import HfApi, constants

    def unreachable(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)


MIXED = {"web/*": 2.0, "books/*": 1.0, "code/*": 0.5}


def settings(**options) -> Stream:
    return Stream(**{"dataset": "owner/corpus", "sources": MIXED, "tokens": 10**6, "shard_rows": 64} | options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(stream: TextStream) -> list[Place]:
    return [Place() for _ in stream.settings.sources]


def test_every_document_comes_once_in_the_order_of_its_source_and_bytes_follow_the_weights(downloads):
    stream = TextStream(downloads, settings())
    given: dict[int, list[str]] = {0: [], 1: [], 2: []}
    size, largest = Counter(), max(len(text.encode()) for part in PARTS.values() for text in part)
    for text, source, place in stream.documents(start(stream)):
        given[source].append(text)
        size[source] += len(text.encode())
        assert place.bytes == size[source]
        if all(len([one for one in given[n] if one]) < len(part) for n, part in enumerate(PARTS.values())):
            shares = [size[n] / weight for n, weight in enumerate(MIXED.values())]
            assert max(shares) - min(shares) <= largest / min(MIXED.values())
    assert [[text for text in given[n] if text] for n in given] == list(PARTS.values())


def test_documents_go_on_at_any_place(downloads):
    stream = TextStream(downloads, settings())
    whole = list(stream.documents(start(stream)))
    for cut in (1, 170, 400, len(whole) - 1, len(whole)):
        places = start(stream)
        for _, source, place in whole[:cut]:
            places[source] = place
        assert list(stream.documents(places)) == whole[cut:]


def test_rows_are_those_of_the_documents_of_the_split_packed_at_once(downloads, pieces, tmp_path):
    stream = TextStream(downloads, settings())
    for split in ("train", "validation"):
        wanted = [text for text, _, _ in stream.documents(start(stream)) if text and split_of(text) == split]
        counts = packing.write_rows(pieces.encode_batch(wanted), 16, pieces.bos, pieces.eos, tmp_path / "rows.npy")
        folder = pack(stream, pieces, 16, tmp_path / "packed", split)
        rows = StreamRows(folder)
        expected = TextRows(tmp_path / "rows.npy")
        assert len(rows) == len(expected) == counts["rows"]
        assert (rows[:] == expected[:]).all()
        chosen = np.random.default_rng(0).permutation(len(rows))[:40]
        assert (rows[chosen] == expected[chosen]).all()
        assert {len(TextRows(path)) for path in sorted(folder.glob("*.npy"))[:-1]} <= {64}
        assert json.loads((folder / "rows.json").read_text()) == {
            "shards": -(-len(rows) // 64),
            "rows": len(rows),
            "documents": len(wanted),
        }
    assert len(list((tmp_path / "packed").glob("[!.]*"))) == 2


def test_the_bound_stops_the_stream_and_a_finished_folder_is_not_read_again(downloads, pieces, tmp_path, monkeypatch):
    whole = StreamRows(pack(TextStream(downloads, settings()), pieces, 16, tmp_path))[:]
    stream = TextStream(downloads, settings(tokens=16 * 150 + 3))
    progress: list[int] = []
    folder = pack(stream, pieces, 16, tmp_path, step=progress.append)
    assert progress == [64 * 16, 128 * 16, 150 * 16]
    assert (StreamRows(folder)[:] == whole[:150]).all()
    monkeypatch.setattr(stream, "documents", None)
    assert pack(stream, pieces, 16, tmp_path) == folder


def test_a_long_document_fills_several_shards(pieces, tmp_path):
    (tmp_path / "owner/corpus").mkdir(parents=True)
    (tmp_path / "owner/corpus/a.txt").write_text("lamp river " * 500 + "\n" + "stone\n" * 3)
    stream = TextStream(tmp_path, settings(sources={"*.txt": 1}, shard_rows=4))
    documents = [text for text, _, _ in stream.documents(start(stream)) if split_of(text) == "train"]
    packing.write_rows(pieces.encode_batch(documents), 8, pieces.bos, pieces.eos, tmp_path / "rows.npy")
    folder = pack(stream, pieces, 8, tmp_path / "packed")
    assert (StreamRows(folder)[:] == TextRows(tmp_path / "rows.npy")[:]).all()


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("options", "shards"), [({"tokens": 16 * 300}, 5), ({"tokens": 16 * 50, "shard_rows": 4}, 13), ({}, 18)])
def test_a_run_stopped_before_or_after_any_file_is_written_goes_on_to_the_same_bytes(
    downloads, pieces, tmp_path, monkeypatch, options, shards
):
    stream = TextStream(downloads, settings(**options))
    folder = pack(stream, pieces, 16, tmp_path / "whole")
    assert len(content(folder)) == shards + 2
    generator, replace, finished, stops = random.Random(0), Path.replace, False, 0
    while not finished:
        last, done = generator.randint(1, 6), generator.random() < 0.5
        writes = 0

        def stopping(path, target, last=last, done=done):
            nonlocal writes
            writes += 1
            if done or writes < last:
                replace(path, target)
            if writes == last:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", stopping)
            try:
                pack(stream, pieces, 16, tmp_path / "stopped")
                finished = True
            except Killed:
                stops += 1
        if not stops % 3 and not finished and (tmp_path / "stopped" / folder.name).exists():
            (tmp_path / "stopped" / folder.name / ".00000.npy.1.tmp").write_bytes(b"what a killed process leaves behind")
    assert stops > 2
    assert content(tmp_path / "stopped" / folder.name) == content(folder)


DRIVER = """
import os, signal, sys
from pathlib import Path
from moebench.data import lm_tokenizer, text_stream
from test_text_stream import settings
count, write = 0, text_stream._write
def killed(*given):
    global count
    count += 1
    if count == 2 and sys.argv[4] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    left = write(*given)
    if count == 2 and sys.argv[4] == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return left
text_stream._write = killed
if sys.argv[4] == "between":  # the shard is there, the state is not
    text_stream.write_json = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
stream = text_stream.TextStream(Path(sys.argv[1]), settings(tokens=16 * 300))
text_stream.pack(stream, lm_tokenizer.load(Path(sys.argv[2])), 16, Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bytes(downloads, pieces, tmp_path, tmp_path_factory):
    stream = TextStream(downloads, settings(tokens=16 * 300))
    folder = pack(stream, pieces, 16, tmp_path / "whole")
    place = tmp_path_factory.mktemp("again")
    again = lm_tokenizer.train((text for part in PARTS.values() for text in part), 320, place)
    assert again.sha256 == pieces.sha256
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/data")])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    codes = []
    for moment in ("between", "before", "after", "between", "never"):
        command = [sys.executable, "-c", DRIVER, downloads, place, tmp_path / "killed", moment]
        codes.append(subprocess.run(command, env=environment, cwd=ROOT).returncode)
    assert codes == [-9, -9, -9, -9, 0]
    assert content(tmp_path / "killed" / folder.name) == content(folder)


def test_two_processes_do_not_pack_the_same(downloads, pieces, tmp_path):
    stream = TextStream(downloads, settings())
    folder = pack(stream, pieces, 16, tmp_path)
    with text_stream.held(tmp_path / f".{folder.name}.lock", ""), pytest.raises(MoebenchError, match="is packing it"):
        pack(stream, pieces, 16, tmp_path)


def test_the_folder_is_named_after_all_that_decides_its_rows(downloads, pieces, tmp_path):
    variants = [settings(), settings(tokens=5000), settings(shard_rows=32), settings(sources={"web/*": 1})]
    variants += [settings(sources=dict(reversed(MIXED.items())))]
    folders = [pack(TextStream(downloads, one), pieces, 16, tmp_path) for one in variants]
    folders += [pack(TextStream(downloads, settings()), pieces, 8, tmp_path)]
    assert len(set(folders)) == 6


def test_a_pinned_snapshot_is_read_where_it_lies_and_named_by_its_commit(downloads, tmp_path):
    write(tmp_path / f"datasets--owner--corpus/snapshots/{COMMIT}")
    stream = TextStream(tmp_path, settings(revision=COMMIT))
    assert set(stream.files().values()) == {COMMIT}
    by_hand = TextStream(downloads, settings())
    assert stream.files().keys() == by_hand.files().keys()
    assert all(len(found) == 64 for found in by_hand.files().values())
    assert [text for text, _, _ in stream.documents(start(stream))] == [text for text, _, _ in by_hand.documents(start(by_hand))]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', r"a\.jsonl: row 2: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n\n{"txt": "b"}\n', r"a\.jsonl: row 3: no member 'text' \(did you mean 'txt'\?\)"),
        ("a.jsonl", '{"text": ["a"]}\n', r"a\.jsonl: row 1: 'text' holds list; should be a text"),
        ("a.txt", b"a\n\xff\n", r"a\.txt: cannot be read after row 0: .*run again"),
        ("a.parquet", b"junk", r"a\.parquet: cannot be read after row 0"),
        ("a.csv", "a", r"matches a\.csv, which is neither parquet, JSON lines nor \.txt"),
        ("b.txt", "a", r"no file of owner/corpus matches 'a\.\*' in .*; files there are: b\.txt"),
        ("a.txt", "\n \n", r"the 0 documents of split 'train' do not fill a row of 16 tokens"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, pieces, name, data, message):
    path = tmp_path / "owner/corpus" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(MoebenchError, match=message):
        pack(TextStream(tmp_path, settings(sources={"a.*": 1})), pieces, 16, tmp_path / "packed")


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "owner/corpus").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "owner/corpus/a.parquet")
    stream = TextStream(tmp_path, settings(sources={"a.*": 1}, column="contents"))
    with pytest.raises(MoebenchError, match=r"no column 'contents' \(did you mean 'content'\?\); columns are: content"):
        list(stream.documents(start(stream)))


def test_a_corpus_that_is_nowhere_says_how_to_get_it(tmp_path, downloads, pieces):
    with pytest.raises(MoebenchError, match="owner/corpus has no revision; pin the commit"):
        TextStream(tmp_path, settings())
    with pytest.raises(MoebenchError, match=rf"no network in tests(.|\n)*hf download owner/corpus --repo-type dataset --revision {COMMIT}"):
        TextStream(tmp_path, settings(revision=COMMIT))
    with pytest.raises(ValidationError, match="is no commit of 40 hexadecimal digits"):
        settings(revision="main")
    with pytest.raises(ValidationError, match="dataset"):
        settings(dataset="../x")
    with pytest.raises(MoebenchError, match="rows of 16 tokens, at most 10 in all"):
        pack(TextStream(downloads, settings(tokens=10)), pieces, 16, tmp_path)


def test_incomplete_folders_are_no_rows(downloads, pieces, tmp_path):
    folder = pack(TextStream(downloads, settings()), pieces, 16, tmp_path)
    (folder / "00001.npy").write_bytes((folder / "00000.npy").read_bytes()[:-32])
    with pytest.raises(MoebenchError, match=r"00001\.npy"):
        StreamRows(folder)
    (folder / "rows.json").write_text('{"shards": 1, "rows": 3}')
    with pytest.raises(MoebenchError, match=r"the shards hold 64 rows, rows\.json says 3"):
        StreamRows(folder)
    (folder / "rows.json").unlink()
    with pytest.raises(MoebenchError, match="cannot be read"):
        StreamRows(folder)
