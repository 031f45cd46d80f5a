"""The batches of an epoch."""

import numpy as np
import pytest

from moebench.training.batches import order, weight


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_holds_every_example_once(epoch):
    lengths = np.random.default_rng(0).integers(1, 60, 1003).tolist()
    batches = order(lengths, 16, seed=5, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert [part.tolist() for part in batches] == [part.tolist() for part in order(lengths, 16, seed=5, epoch=epoch)]
    assert [part.tolist() for part in batches] != [part.tolist() for part in order(lengths, 16, seed=6, epoch=epoch)]
    spread = np.mean([np.ptp(np.array(lengths)[part]) for part in batches])
    assert spread < 10  # against about 52 in batches of random length


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_weighted_means_of_parts_are_the_mean_over_all_targets(parts):
    """Also where a part has no row, or rows without targets."""
    generator = np.random.default_rng(0)
    targets = np.array([3, 30, 0, 1, 7])
    losses = [generator.random(count) for count in targets]
    total = 0.0
    for part in range(parts):
        own = np.concatenate([[], *losses[part::parts]])
        total += weight(targets, part, parts).item() * (own.mean() if len(own) else 0.0) / parts
    assert total == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)


def test_one_part_has_the_weight_1_and_without_targets_0():
    for count in (1, 3, 7, 1000003):
        assert weight(np.array([count, 0, 2]), 0, 1).tolist() == [1]
    assert weight(np.zeros(4), 0, 1).tolist() == weight(np.zeros(0), 1, 2).tolist() == [0]
