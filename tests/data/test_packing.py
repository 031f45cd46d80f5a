"""Packing: rows are the stream of documents, positions and targets those of a token-by-token loop, memory is that of a document."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data.packing import IGNORED, TextRows, positions, targets, write_rows
from moebench.errors import MoebenchError

BOS, EOS, PAD = 0, 1, 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 99), max_size=12), min_size=3, max_size=20)


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, length=st.integers(2, 6))
def test_rows_are_the_stream_and_targets_stay_in_their_document(tmp_path_factory, documents, length):
    path = tmp_path_factory.mktemp("rows") / "train.npy"
    stream = [(number, token) for number, document in enumerate(documents) for token in (BOS, *document, EOS)]
    counts = write_rows(documents, length, BOS, EOS, path)
    rows = TextRows(path)
    assert counts == {
        "rows": len(stream) // length,
        "documents": len(documents),
        "tokens": len(stream),
        "dropped": len(stream) % length,
    }
    assert len(rows) == counts["rows"]
    ids_BS = rows[:]
    assert ids_BS.dtype == np.int64
    assert ids_BS.ravel().tolist() == [token for _, token in stream[: len(rows) * length]]

    positions_BS = positions(ids_BS, BOS)
    targets_BS = targets(ids_BS, positions_BS, PAD)
    for row in range(len(rows)):
        place = -1
        for column in range(length):
            document, token = stream[row * length + column]
            place = 0 if column == 0 or token == BOS else place + 1
            assert positions_BS[row, column] == place
            following = stream[row * length + column + 1] if column + 1 < length else (None, None)
            assert targets_BS[row, column] == (following[1] if following[0] == document else IGNORED)


def test_padding_has_no_target_and_is_none():
    ids_BS = np.array([[BOS, 5, 6, PAD, PAD], [7, EOS, BOS, 8, EOS]])
    places_BS = positions(ids_BS, BOS)
    assert places_BS.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]
    assert targets(ids_BS, places_BS, PAD).tolist() == [[5, 6, IGNORED, IGNORED, IGNORED], [EOS, IGNORED, 8, EOS, IGNORED]]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_take_the_smaller_type_that_holds_them(tmp_path, size, dtype):
    write_rows([[size - 1] * 6], 4, BOS, EOS, tmp_path / "rows.npy", size=size)
    rows = TextRows(tmp_path / "rows.npy")
    assert rows.ids_NS.dtype == dtype
    assert rows[:].tolist() == [[BOS, size - 1, size - 1, size - 1], [size - 1, size - 1, size - 1, EOS]]
    assert isinstance(rows.ids_NS, np.memmap)
    assert np.load(tmp_path / "rows.npy").tolist() == rows[:].tolist()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(documents: int) -> int:
        tracemalloc.start()
        write_rows(([3, 4, 5] * 100 for _ in range(documents)), 64, BOS, EOS, tmp_path / "rows.npy")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(2000) < peak(200) + 50_000 < 1_000_000


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        ([[5, 6]], 1, "should be 2 at least"),
        ([], 4, "0 documents of 0 tokens in all do not fill a row of 4"),
        ([[5]], 4, "1 documents of 3 tokens in all do not fill a row of 4"),
        ([[5, BOS]], 4, "holds the id 0; should be 0 to 65535, and neither 0"),
        ([[5, 6, 70_000]], 4, "holds the id 70000"),
    ],
)
def test_what_cannot_be_packed_is_an_error_and_leaves_no_file(tmp_path, documents, length, message):
    with pytest.raises(MoebenchError, match=message):
        write_rows(documents, length, BOS, EOS, tmp_path / "rows.npy")
    assert not list(tmp_path.iterdir())


def test_a_failing_source_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "rows.npy"
    write_rows([[5, 6]], 4, BOS, EOS, path)
    before = path.read_bytes()

    def failing():
        yield [7, 8, 9]
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        write_rows(failing(), 4, BOS, EOS, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.int64), np.zeros(3, np.uint16), np.zeros((0, 3), np.uint16)])
def test_other_arrays_are_no_rows(tmp_path, array):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(MoebenchError, match="are no rows of ids"):
        TextRows(tmp_path / "rows.npy")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(MoebenchError, match=r"cut\.npy: not a readable array"):
        TextRows(tmp_path / "cut.npy")
