"""The batches of an epoch."""

import numpy as np
import pytest

from moebench.training.batches import order


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_holds_every_example_once(epoch):
    lengths = np.random.default_rng(0).integers(1, 60, 1003).tolist()
    batches = order(lengths, 16, seed=5, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert [part.tolist() for part in batches] == [part.tolist() for part in order(lengths, 16, seed=5, epoch=epoch)]
    assert [part.tolist() for part in batches] != [part.tolist() for part in order(lengths, 16, seed=6, epoch=epoch)]
    spread = np.mean([np.ptp(np.array(lengths)[part]) for part in batches])
    assert spread < 10  # against about 52 in batches of random length
