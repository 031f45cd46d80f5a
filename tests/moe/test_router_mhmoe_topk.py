"""The gate of MH-MoE's public code: whole layers of it stand in test_multi_head.py; here what it is beside other gates, and its losses."""

import math

import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.mhmoe_topk import MHMoETopK
from moebench.moe.routers.switch import Switch
from moebench.moe.routers.topk import TopK
from moebench.moe.routers.xmoe_torchscale import XMoETorchscale

T, D, E = 23, 10, 6


def router(**options):
    torch.manual_seed(0)
    module = MHMoETopK(D, E, **options).double()
    module.after_optimizer_step()  # norm 1.5 to the last bit of fp64
    return module, torch.randn(T, D, dtype=torch.float64)


def same(ours, theirs):
    for field in ("token", "expert", "weight", "scores", "load"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    assert ours.dropped == theirs.dropped


@pytest.mark.parametrize("training", [True, False])
def test_one_choice_is_the_gate_of_torchscale(training):
    module, x = router(dim=16, eval_capacity_factor=0.5)
    theirs = XMoETorchscale(D, E, eval_capacity_factor=0.5).double()
    theirs.load_state_dict(module.state_dict())
    found, expected = (each.train(training)(RouterInputs(x)) for each in (module, theirs))
    same(found, expected)
    assert found.dropped > 0
    assert found.losses == expected.losses


def test_one_choice_without_a_projection_is_switch_without_jitter():
    module, x = router()
    theirs = Switch(D, E, jitter=0.0, capacity_factor=1.0).double()
    theirs.load_state_dict(module.state_dict())
    found, expected = (each(RouterInputs(x)) for each in (module, theirs))
    same(found, expected)
    assert found.losses == expected.losses


def test_without_a_limit_it_is_topk_that_does_not_normalise_but_for_the_balance_loss():
    module, x = router(k=3, capacity_factor=None)
    theirs = TopK(D, E, k=3, normalise=False).double()
    theirs.load_state_dict(module.state_dict())
    found, expected = (each(RouterInputs(x)) for each in (module, theirs))
    same(found, expected)
    probs = found.scores.softmax(-1)
    torch.testing.assert_close(found.weight.view(T, 3), probs.topk(3).values, rtol=0, atol=1e-15)
    assert (found.weight.view(T, 3).sum(1) < 0.99).all()
    first = torch.bincount(probs.argmax(1), minlength=E).double() / T
    assert found.losses["balance"].item() == pytest.approx((E * first * probs.mean(0)).sum().item(), abs=1e-12)
    assert found.losses["balance"].item() != pytest.approx(expected.losses["balance"].item(), abs=1e-6)


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.25])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_queues(k, factor):
    module, x = router(k=k, capacity_factor=factor)
    routing = module(RouterInputs(x))
    ranked, taken, kept = routing.scores.topk(k).indices.tolist(), [0] * E, set()
    for choice in range(k):
        for token in range(T):
            expert = ranked[token][choice]
            taken[expert] += 1
            if taken[expert] <= max(math.floor(factor * k * math.ceil(T / E)), 1):
                kept.add((token, expert))
    assert set(zip(routing.token.tolist(), routing.expert.tolist(), strict=True)) == kept
    assert routing.dropped == T * k - len(kept)
    assert module.eval()(RouterInputs(x)).dropped == 0


def test_losses_at_their_ends():
    module, x = router(k=2)
    torch.nn.init.zeros_(module.embedding)
    losses = module(RouterInputs(x)).losses
    assert losses["balance"].item() == pytest.approx(1, abs=1e-12)
    assert losses["z"].item() == pytest.approx(math.log(E) ** 2, abs=1e-12)
    with torch.no_grad():
        module.embedding[0] = 100
    assert module(RouterInputs(x.abs())).losses["balance"].item() == pytest.approx(E, abs=1e-9)


def test_defaults_and_start():
    module = MHMoETopK(64, 200)
    assert (module.k, module.projection, module.capacity_factor, module.eval_capacity_factor) == (1, None, 1.0, None)
    assert 0.12 < module.embedding.abs().max() <= 0.125  # 1 / √64
    assert module.embedding.std().item() == pytest.approx(0.125 / math.sqrt(3), rel=0.02)
    low = MHMoETopK(64, 4, dim=8)
    torch.testing.assert_close(low.embedding @ low.embedding.T, 2.25 * torch.eye(4))
    assert low.flops_per_token == 2 * (64 * 8 + 4 * 8)
    assert module.causal
    assert not MHMoETopK(D, E, eval_capacity_factor=1.0).causal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k 0: should be at least 1 and at most the number of experts, 6"),
        ({"k": E + 1}, "k 7"),
        ({"dim": 0}, "dim 0: should be at least 1"),
        ({"capacity_factor": 0.0}, "capacity_factor 0"),
        ({"eval_capacity_factor": -1.0}, "eval_capacity_factor -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MHMoETopK(D, E, **options)
