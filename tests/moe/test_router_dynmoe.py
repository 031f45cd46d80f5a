"""DynMoE against the outputs of its public code, analytic losses, and its adaptive process step by step."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers import dynmoe
from moebench.moe.routers.dynmoe import DynMoE

GOLDEN = Path(__file__).parents[1] / "golden" / "dynmoe_gate.npz"
CASES = ("case00", "case01", "case02", "case03")


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def public(data):
    router = DynMoE(int(data["d"]), int(data["max_E"])).train(bool(data["train"]))
    with torch.no_grad():
        router.embedding.copy_(torch.from_numpy(data["sim_matrix"]).T)
        router.threshold.copy_(torch.from_numpy(data["threshold_param"]))
        router.on.copy_(torch.from_numpy(data["experts_mask"]) > 0)
    return router


def dense(routing):
    return torch.zeros_like(routing.scores).index_put((routing.token, routing.expert), routing.weight)


@pytest.mark.parametrize("case", CASES)
def test_public_code(case):
    data = golden(case)
    router, x = public(data), torch.from_numpy(data["x"]).requires_grad_()
    routing = router(RouterInputs(x))
    weights = dense(routing)
    np.testing.assert_array_equal(weights.detach() > 0, data["active"] > 0)
    np.testing.assert_array_equal(torch.bincount(routing.token, minlength=len(x)).clamp(min=0 if data["train"] else 1), data["k"])
    np.testing.assert_array_equal(routing.load, data["expert_counts"])
    np.testing.assert_allclose(weights.detach(), data["weights"], rtol=0, atol=1e-6)
    losses = routing.losses
    assert (losses["diverse"] + losses["simple"]).item() == pytest.approx(data["aux_diverse_simple"].item(), abs=1e-5)
    total = sum(losses.values())
    assert total.item() == pytest.approx(data["aux_total"].item(), abs=1e-5)
    if data["train"]:
        ((weights * torch.from_numpy(data["upstream"])).sum() + total).backward()
        for ours, theirs in [(x.grad, "x"), (router.embedding.grad.T, "sim_matrix"), (router.threshold.grad, "threshold_param")]:
            np.testing.assert_allclose(ours, data[f"grad_{theirs}"], rtol=1e-4, atol=1e-5)


def of_signs(experts, **options):
    """A router that takes expert e where coordinate e of a token is positive."""
    router = DynMoE(experts, experts, **options).double()
    with torch.no_grad():
        router.embedding.copy_(torch.eye(experts))
    return router


def test_tokens_that_no_expert_accepts():
    router, x = of_signs(3), torch.tensor([[1.0, 2, -1], [-3, -1, -2]], dtype=torch.float64)
    routing = router(RouterInputs(x))
    assert list(zip(routing.token.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True)) == [(0, 0, 0.5), (0, 1, 0.5)]
    routing = router.eval()(RouterInputs(x))
    assert list(zip(routing.token.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True))[2:] == [(1, 1, 1.0)]
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(2, dtype=torch.float64))


def test_only_pairs_that_are_on_pass_a_gradient():
    router, x = of_signs(3), torch.tensor([[1.0, 2, -1], [-3, -1, -2]], dtype=torch.float64, requires_grad=True)
    weights = router(RouterInputs(x)).weight
    threshold, tokens = torch.autograd.grad(weights.sum(), (router.threshold, x))
    assert threshold.tolist() == [-0.125, -0.125, 0]  # −σ'(0) / k
    assert tokens[0].abs().min() > 0
    assert not tokens[1].any()


def test_slots_that_are_off_take_nothing():
    router = of_signs(4, initial=2)
    x = torch.tensor([[1.0, 1, 1, 1], [-1, -2, 1, 1]], dtype=torch.float64)
    assert router(RouterInputs(x)).load.tolist() == [1, 1, 0, 0]
    routing = router.eval()(RouterInputs(x))
    assert routing.load.tolist() == [2, 1, 0, 0]
    assert not routing.probs[:, 2:].any()


def test_analytic_losses():
    router, all_on = of_signs(4), torch.ones(5, 4, dtype=torch.float64)
    losses = router(RouterInputs(all_on)).losses
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx({"diverse": 0, "simple": 1, "balance": 4, "efficiency": 1})
    one_each = 2 * torch.eye(4, dtype=torch.float64) - 1
    losses = router(RouterInputs(one_each)).losses
    assert losses["balance"].item() == pytest.approx(1)  # one expert a token, evenly
    assert losses["efficiency"].item() == pytest.approx(0.25)
    collapsed = one_each[:1].expand(6, 4)
    assert router(RouterInputs(collapsed)).losses["balance"].item() == pytest.approx(4)
    none = router(RouterInputs(-all_on)).losses
    assert none["balance"].item() == none["efficiency"].item() == 0
    with torch.no_grad():
        router.embedding[1] = router.embedding[0] * 3
    losses = router(RouterInputs(all_on)).losses
    assert losses["diverse"].item() == pytest.approx(2**0.5)  # the pair counts both ways
    assert losses["simple"].item() == pytest.approx(1.5)
    router.on[1] = False
    assert router(RouterInputs(all_on)).losses["diverse"].item() == 0


def test_orthogonal_rows_the_start_have_no_diversity_gradient():
    torch.manual_seed(0)
    router = DynMoE(8, 1)
    (gradient,) = torch.autograd.grad(router(RouterInputs(torch.randn(3, 8))).losses["diverse"], router.embedding)
    assert not gradient.any()
    rows = DynMoE(8, 5).embedding
    torch.testing.assert_close(rows @ rows.T, torch.eye(5))


def train(router, x, steps):
    for _ in range(steps):
        router(RouterInputs(x))
        router.after_optimizer_step()


ONLY_FIRST = torch.tensor([[1.0, -1, -1, -1], [-1, -1, 3, -1], [-1, -1, 1, -1]], dtype=torch.float64)
"""With slots 0 and 1 on: one token for expert 0, none for 1, two tokens without experts."""


def test_experts_come_and_go_after_the_second_third():
    router = of_signs(4, initial=2, interval=3)
    with torch.no_grad():
        router.threshold.fill_(0.01)
    train(router, ONLY_FIRST, 5)
    assert router.on.tolist() == [True, True, False, False]
    train(router, ONLY_FIRST, 1)
    assert router.on.tolist() == [True, True, False, False]  # slot 1 was the first that was free, and is anew
    missed = ONLY_FIRST[1:].sum(0)
    torch.testing.assert_close(router.embedding[1], missed / missed.norm())
    assert router.threshold.tolist() == pytest.approx([0.01, 0, 0.01, 0.01])
    torch.testing.assert_close(router.embedding[[0, 2, 3]], torch.eye(4, dtype=torch.float64)[[0, 2, 3]])
    assert router(RouterInputs(ONLY_FIRST)).load.tolist() == [1, 2, 0, 0]
    # the last third and the first of the next round record nothing
    before = router.on.clone()
    train(router, -ONLY_FIRST, 6)
    assert torch.equal(router.on, before)
    assert not router.window_hits.any()
    train(router, ONLY_FIRST[:1], 3)  # only expert 0 is hit, no token is missed
    assert router.on.tolist() == [True, False, False, False]


def test_records_are_of_the_window_alone_and_of_all_its_forwards():
    router = of_signs(2, interval=2)
    train(router, torch.tensor([[-1.0, -1]], dtype=torch.float64), 2)
    router(RouterInputs(torch.tensor([[1.0, -1]], dtype=torch.float64)))  # two forwards of one step
    router(RouterInputs(torch.tensor([[-1.0, -2]], dtype=torch.float64)))
    router.eval()(RouterInputs(torch.tensor([[-1.0, 9]], dtype=torch.float64)))  # no training
    router.train().after_optimizer_step()
    assert router.window_hits.tolist() == [1, 0]
    assert router.window_missed.tolist() == [-1, -2]
    assert not router.hits.any()


def test_ranks_are_summed_step_by_step(monkeypatch):
    router = of_signs(2, interval=2)
    monkeypatch.setattr(dynmoe, "summed_over_ranks", lambda counts: 2 * counts)  # another rank, with the same tokens
    train(router, torch.tensor([[1.0, -1], [-1, -3]], dtype=torch.float64), 3)
    assert router.window_hits.tolist() == [2, 0]
    assert router.window_missed.tolist() == [-2, -6]


def test_all_slots_used_none_is_free():
    router = of_signs(2, interval=1)
    embedding = router.embedding.detach().clone()
    train(router, torch.tensor([[1.0, 1], [-1, -1]], dtype=torch.float64), 2)
    assert router.on.tolist() == [True, True]
    assert torch.equal(router.embedding, embedding)


@pytest.mark.parametrize("tokens", [0, 3])
def test_some_expert_is_always_on(tokens):
    router = of_signs(3, interval=1)
    train(router, -torch.ones(tokens, 3, dtype=torch.float64), 2)  # no hits at all
    assert router.on.tolist() == ([True, False, False] if tokens else [True, True, True])


def test_frozen_it_does_not_adapt():
    router = of_signs(4, initial=2, interval=1).requires_grad_(False)
    before = {key: value.clone() for key, value in router.state_dict().items()}
    train(router, ONLY_FIRST, 4)
    assert all(torch.equal(value, before[key]) for key, value in router.state_dict().items())


def test_saved_in_the_window_it_goes_on_the_same():
    torch.manual_seed(0)
    router, other = (DynMoE(6, 4, initial=3, interval=4) for _ in range(2))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) - 0.7
    train(router, x, 6)
    router(RouterInputs(x))
    buffer = io.BytesIO()
    torch.save(router.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for module in (router, other):
        module.after_optimizer_step()
        train(module, x, 1)
    assert router.on.tolist() == [True] * 4
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in router.state_dict().items())


def test_no_tokens():
    router = DynMoE(4, 3)
    for module in (router, router.eval()):
        routing = module(RouterInputs(torch.zeros(0, 4)))
        assert len(routing.expert) == 0
        assert all(loss.isfinite() for loss in routing.losses.values())


@pytest.mark.parametrize(("options", "word"), [({"initial": 0}, "initial"), ({"initial": 5}, "initial"), ({"interval": 0}, "interval")])
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        DynMoE(8, 4, **options)
