"""Batches of packed text: every row once an epoch, parts that make the whole, and what is predicted of packed documents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.data.packing import TextRows
from moebench.protocols.language_model.batches import TextBatches, batch_of, permuted

BOS = 1
PIECES = SimpleNamespace(bos=BOS, pad=0)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_an_order_is_a_permutation(size: int, seed: int):
    assert sorted(permuted(np.arange(size), size, seed).tolist()) == list(range(size))


def test_orders_of_different_seeds_differ_and_neighbours_are_far_apart():
    orders = [permuted(np.arange(5000), 5000, seed) for seed in range(4)]
    for order in orders:
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    assert len({tuple(order[:10]) for order in orders}) == 4


def test_some_places_go_where_they_go_among_all():
    whole = permuted(np.arange(1000), 1000, 7)
    some = np.array([3, 999, 512])
    assert permuted(some, 1000, 7).tolist() == whole[some].tolist()


@pytest.fixture
def files(tmp_path: Path) -> list[TextRows]:
    """Two texts of 5 and 8 rows of 6 ids; a row begins with its own number over both."""
    found = []
    for name, rows in (("one", range(5)), ("two", range(5, 13))):
        ids_NS = np.array([[number + 10, 5, BOS, 6, 7, 8] for number in rows], dtype=np.uint16)
        np.save(tmp_path / f"{name}.npy", ids_NS)
        found.append(TextRows(tmp_path / f"{name}.npy"))
    return found


def test_every_row_of_every_text_occurs_once_an_epoch_in_another_order(files):
    batches = TextBatches(files, PIECES, batch=4, seed=3)
    seen = np.concatenate([batches(step)["ids"][:, 0].numpy() - 10 for step in range(13)])  # 52 rows: four epochs
    epochs = seen.reshape(4, 13)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(13))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_the_step_and_its_parts_make_it_up(files):
    whole = TextBatches(files, PIECES, batch=4, seed=0)(5)
    parts = [TextBatches(files, PIECES, 4, 0, part, 3)(5) for part in range(3)]
    for name in ("ids", "positions", "targets"):
        assert all((part[name] == whole[name][place::3]).all() for place, part in enumerate(parts))
    assert sum(float(part["weight"]) for part in parts) == pytest.approx(3)
    assert float(whole["weight"]) == 1


def test_positions_begin_anew_at_a_document_and_nothing_is_predicted_across_its_border():
    batch = batch_of(np.array([[BOS, 5, 6, BOS, 7, 8]], dtype=np.uint16), PIECES)
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch["targets"].tolist() == [[5, 6, -100, 7, 8, -100]]
    assert batch["mask"].all()
