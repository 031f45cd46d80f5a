"""Hash layers: the three tables against plain loops, and that nothing ever moves them."""

import random

import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.hash import Hash

V, E = 40, 4


def inputs(ids, d_model=8):
    return RouterInputs(torch.randn(len(ids), d_model, generator=torch.Generator().manual_seed(0)), token_ids=torch.tensor(ids))


def balanced(counts, experts=E):
    module = Hash(8, experts, vocabulary=len(counts))
    module.before_training(torch.tensor(counts))
    return module


def test_the_balanced_table_is_that_of_a_greedy_walk():
    counts = torch.randint(0, 50, (V,), generator=torch.Generator().manual_seed(3)).tolist()
    load, table = [0] * E, [None] * V
    for piece in sorted(range(V), key=lambda piece: (-max(counts[piece], 1), piece)):
        table[piece] = min(range(E), key=lambda expert: (load[expert], expert))
        load[table[piece]] += max(counts[piece], 1)
    assert balanced(counts).table.tolist() == table
    assert max(load) - min(load) <= 2  # the rare pieces fill the gaps


def test_a_small_table_by_hand():
    # 10 → 0, 6 → 1, 5 → 2, then 4 → the lightest, 2; 3 → 1; 1 → 1 (9, 9: the lower index)
    assert balanced([1, 10, 3, 6, 5, 4], experts=3).table.tolist() == [1, 0, 1, 1, 2, 2]


def test_pieces_that_the_corpus_lacks_are_spread():
    module = balanced([5, 5, 5, 5] + [0] * 400)
    assert torch.bincount(module.table).tolist() == [101] * 4


def test_a_corpus_of_natural_skew_is_balanced():
    counts = (1e6 / torch.arange(1, 5001)).long()
    module = balanced(counts.tolist(), experts=8)
    load = torch.zeros(8, dtype=torch.long).index_add(0, module.table, counts)
    assert load.max() / load.float().mean() < 1.001


def test_the_random_table_is_parlais():
    random.seed(42)
    assert Hash(8, 7, vocabulary=V, table="random").table.tolist() == [random.randrange(0, 7) for _ in range(V)]


def test_the_modulo_table():
    module = Hash(8, 3, vocabulary=7, table="modulo")
    assert module.table.tolist() == [0, 1, 2, 0, 1, 2, 0]
    module.before_training(torch.ones(7))  # only the balanced table learns from a corpus
    assert module.table.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("training", [True, False])
def test_a_token_goes_where_its_id_is_listed_with_weight_1(training):
    module = balanced(list(range(V))).train(training)
    ids = [3, 39, 3, 0, 17]
    routing = module(inputs(ids))
    assert routing.expert.tolist() == module.table[ids].tolist()
    assert routing.weight.tolist() == [1] * 5
    assert routing.probs.sum(-1).tolist() == [1] * 5
    assert torch.equal(routing.scores.argmax(-1), routing.expert)
    assert routing.losses == {}
    assert not list(module.parameters())
    assert len(module(RouterInputs(torch.zeros(0, 8), token_ids=torch.zeros(0, dtype=torch.long))).expert) == 0


def test_an_empty_balanced_table_is_refused_until_a_corpus_or_a_checkpoint_fills_it():
    module = Hash(8, E, vocabulary=V)
    with pytest.raises(RuntimeError, match="before_training"):
        module(inputs([1]))
    module.load_state_dict(balanced(list(range(V))).state_dict())
    assert module(inputs([1])).expert.tolist() == [module.table[1]]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="vocabulary 0"):
        Hash(8, E, vocabulary=0)
    with pytest.raises(ValueError, match="39 pieces"):
        Hash(8, E, vocabulary=V).before_training(torch.ones(39))
    with pytest.raises(ValueError, match="token_ids"):
        balanced([1] * V)(RouterInputs(torch.zeros(2, 8)))
