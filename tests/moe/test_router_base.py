"""BASE layers: the assignment against an exact solver, exact balance, and greedy evaluation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from moebench.moe import RouterInputs
from moebench.moe.routers.base import Base, balanced_assignment


def scores(kind, tokens, experts, seed=0):
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(tokens, experts, generator=draw, dtype=torch.float64)
    return {
        "random": normal,
        "skewed": normal + torch.linspace(0, 5, experts),
        "collapsed": 0.01 * normal - 9.0 * torch.arange(experts),
        "heavy": normal.exp() ** 2,
        "tiny": 1e-7 * normal,
        "ties": normal.round(),
        "alike": torch.zeros(tokens, experts, dtype=torch.float64),
        "one row": normal[:1].expand(tokens, -1),
    }[kind]


KINDS = ("random", "skewed", "collapsed", "heavy", "tiny", "ties", "alike", "one row")


def optimum(scores_TE):
    """The best sum: columns are places on experts; experts whose last place stays free take a row that stands for no token."""
    tokens, experts = scores_TE.shape
    least, more = divmod(tokens, experts)
    places = np.concatenate([np.repeat(scores_TE, least, 1), scores_TE if more else scores_TE[:, :0]], 1)
    if more:
        nobody = np.full((experts - more, places.shape[1]), -1e6)
        nobody[:, least * experts :] = 0
        places = np.concatenate([places, nobody])
    rows, columns = linear_sum_assignment(places, maximize=True)
    return places[rows, columns].sum()


def check(scores_TE):
    tokens, experts = scores_TE.shape
    expert_T = balanced_assignment(scores_TE)
    load = torch.bincount(expert_T, minlength=experts)
    assert load.min() == tokens // experts
    assert load.max() == -(-tokens // experts)
    total = scores_TE.gather(1, expert_T[:, None]).sum().item()
    assert total == pytest.approx(optimum(scores_TE.numpy()), abs=1e-7 * tokens * (scores_TE.max() - scores_TE.min()).item() + 1e-12)
    assert torch.equal(balanced_assignment(scores_TE.clone()), expert_T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "experts"), [(256, 8), (250, 8), (96, 32), (64, 64), (7, 3), (3, 7), (1, 4), (5, 1)])
def test_the_assignment_is_balanced_and_the_best_there_is(kind, tokens, experts):
    check(scores(kind, tokens, experts))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 7), st.sampled_from(KINDS), st.integers(0, 99))
def test_any_shape(tokens, experts, kind, seed):
    check(scores(kind, tokens, experts, seed))


def test_a_thousand_tokens():
    check(scores("random", 1024, 8))


def router(tokens=50, experts=4):
    torch.manual_seed(0)
    return Base(8, experts).double(), torch.randn(tokens, 8, dtype=torch.float64)


def test_training_balances_and_evaluation_takes_the_best():
    module, x = router()
    s = (x @ module.embedding.T).detach()
    training, evaluation = module(RouterInputs(x)), module.eval()(RouterInputs(x))
    assert sorted(training.load.tolist()) == [12, 12, 13, 13]
    assert torch.equal(training.expert, balanced_assignment(s))
    assert torch.equal(evaluation.expert, s.argmax(-1))
    assert not torch.equal(training.expert, evaluation.expert)
    for routing in (training, evaluation):
        assert torch.equal(routing.token, torch.arange(50))
        torch.testing.assert_close(routing.weight.detach(), 1 / (1 + (-s[torch.arange(50), routing.expert]).exp()))
        torch.testing.assert_close(routing.scores, s)
        assert set(routing.losses) == {"z"}
        assert routing.dropped == 0


def test_only_the_assigned_score_gets_a_gradient():
    module, x = router()
    routing = module(RouterInputs(x))
    routing.weight.sum().backward()
    expected = torch.zeros_like(module.embedding)
    for t, e, weight in zip(routing.token, routing.expert, routing.weight.detach(), strict=True):
        expected[e] += weight * (1 - weight) * x[t]
    torch.testing.assert_close(module.embedding.grad, expected)


def test_the_numbering_of_experts_and_the_order_of_tokens_do_not_matter():
    s = scores("skewed", 101, 6)
    expert_T = balanced_assignment(s)
    columns, rows = torch.tensor([3, 5, 0, 1, 4, 2]), torch.randperm(101, generator=torch.Generator().manual_seed(1))
    assert torch.equal(columns[balanced_assignment(s[:, columns])], expert_T)
    assert torch.equal(balanced_assignment(s[rows]), expert_T[rows])


def test_scores_that_are_not_finite_do_no_harm_here():
    s = scores("random", 20, 4)
    s[3, 2], s[4], s[5, 0] = torch.nan, torch.inf, -torch.inf
    assert torch.bincount(balanced_assignment(s)).tolist() == [5] * 4


@pytest.mark.parametrize("training", [True, False])
def test_no_tokens(training):
    module, _ = router()
    assert len(module.train(training)(RouterInputs(torch.zeros(0, 8, dtype=torch.float64))).expert) == 0


def test_embeddings_start_orthogonal():
    module, _ = router()
    torch.testing.assert_close(module.embedding @ module.embedding.T, 0.01 * torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-8)
