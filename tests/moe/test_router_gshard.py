"""The GShard router against TorchScale's arrays, the paper's algorithm as a loop over tokens, and frequencies."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moebench.moe import RouterInputs
from moebench.moe.routers.gshard import GShard

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01", "case02", "case03", "case04", "case05")
T, D, E = 29, 10, 4


def golden(case):
    with np.load(GOLDEN / "gshard_top2_torchscale.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def router(**options):
    """A router and tokens with scores far apart, crowded on one expert."""
    torch.manual_seed(0)
    module = GShard(D, E, **options).double()
    torch.nn.init.normal_(module.embedding, std=0.7)
    return module, torch.randn(T, D, dtype=torch.float64) + module.embedding[1].detach()


@pytest.mark.parametrize("case", CASES)
def test_torchscale(case):
    """There padding counts among the tokens of the capacity and of the loss; here it is gone before the router.

    So the factor is set to give the same capacity, and where a case has padding, the loss and its gradient are rebuilt from all rows.
    The X-MoE case is this router on the projected tokens with normalised rows.
    """
    data = golden(case)
    real, tokens, experts = ~data["pad_mask"], int(data["T"]), int(data["E"])
    factor = (data["capacity"].item() + 0.5) / math.ceil(int(real.sum()) / experts)
    module = GShard(
        data["wg"].shape[1],
        experts,
        second="all",
        normalise="before" if data["normalize_before_dropping"] else "after",
        batch_priority=bool(data["batch_prioritized"]),
        capacity_factor=factor,
        eval_capacity_factor=factor,
    ).train(bool(data["train"]))
    x, given = data["x"].requires_grad_(), {"x": data["grad_x"], "wg": data["grad_wg"]}
    leaves, tokens_TD = {"x": x, "wg": data["wg"].requires_grad_()}, x
    embedding = leaves["wg"]
    if data["use_xmoe"]:
        leaves["wg"] = F.normalize(data["wg"].detach(), dim=1).mul(1.5).requires_grad_()
        leaves["wg_reduction"], given["wg_reduction"] = data["wg_reduction"].requires_grad_(), data["grad_wg_reduction"]
        tokens_TD, embedding = x @ leaves["wg_reduction"].T, F.normalize(leaves["wg"], dim=1)
    routing = torch.func.functional_call(module, {"embedding": embedding}, (RouterInputs(tokens_TD[real]),))

    kept = data["kept"][real]
    assert torch.equal(torch.stack([routing.token, routing.expert]), torch.stack([kept.nonzero()[:, 0], data["top2_index"][real][kept]]))
    assert routing.dropped == (~kept).sum()
    torch.testing.assert_close(routing.scores, data["logits"][real], rtol=0, atol=1e-5)
    combine = data["combine"].sum(-1)[real]
    torch.testing.assert_close(routing.weight.detach(), combine[routing.token, routing.expert], rtol=0, atol=1e-5)

    chosen = torch.bincount(data["top2_index"][real, 0], minlength=experts) / tokens
    balance = experts * (chosen * (tokens_TD @ embedding.T).softmax(-1).mean(0)).sum() if (~real).any() else routing.losses["balance"]
    assert balance.item() == pytest.approx(data["l_aux"].item(), abs=1e-5)
    (balance + (routing.weight * data["upstream"][real][routing.token, routing.expert]).sum()).backward()
    for key, gradient in given.items():
        torch.testing.assert_close(leaves[key].grad, gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["case00", "case01", "case04"])
def test_the_default_factor_gives_torchscales_capacity(case):
    data = golden(case)
    module = GShard(data["wg"].shape[1], int(data["E"]), second="all", batch_priority=bool(data["batch_prioritized"]))
    with torch.no_grad():
        module.embedding.copy_(data["wg"])
    assert torch.equal(module(RouterInputs(data["x"])).token, data["kept"].nonzero()[:, 0])


def one_by_one(probs, wanted, limit, normalise, order):
    """Algorithm 1 with counters: (T, E) weights, nothing dropped has one; and the number of the dropped."""
    taken, weights, dropped = [0] * E, torch.zeros_like(probs), 0
    ranked = [row.argsort(descending=True)[:2].tolist() for row in probs]
    for choice in (0, 1):
        for token in order:
            expert = ranked[token][choice]
            if not wanted[token][choice]:
                continue
            if taken[expert] < limit:
                taken[expert] += 1
                weights[token, expert] = probs[token, expert]
                if normalise == "before":
                    weights[token, expert] /= probs[token, ranked[token]].sum()
            else:
                dropped += 1
    if normalise == "after":
        weights /= weights.sum(1, keepdim=True).where(weights.sum(1, keepdim=True) > 0, 1)
    return weights, dropped


@pytest.mark.parametrize("batch_priority", [False, True])
@pytest.mark.parametrize("normalise", ["before", "after"])
@pytest.mark.parametrize("second", ["all", "random"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_equals_a_loop_over_tokens(factor, second, normalise, batch_priority):
    module, x = router(second=second, normalise=normalise, batch_priority=batch_priority, capacity_factor=factor)
    torch.manual_seed(5)
    routing = module(RouterInputs(x))
    torch.manual_seed(5)
    chance = torch.rand(T, 1, dtype=x.dtype)[:, 0]
    probs = routing.scores.softmax(-1)
    g1, g2 = probs.topk(2).values.T
    keep = 2 * (g2 / (g1 + g2) if normalise == "before" else g2) > chance if second == "random" else torch.ones(T, dtype=torch.bool)
    order = probs.max(1).values.argsort(descending=True).tolist() if batch_priority else range(T)
    limit = math.floor(factor * math.ceil(T / E))
    weights, dropped = one_by_one(probs, [(True, bool(kept)) for kept in keep], limit, normalise, order)
    ours = torch.zeros_like(probs).index_put((routing.token, routing.expert), routing.weight.detach())
    torch.testing.assert_close(ours, weights, rtol=0, atol=1e-12)
    assert routing.dropped == dropped > 0
    assert len(routing.token) == (weights > 0).sum()


def test_a_token_that_lost_a_choice():
    """Before: the weights of the others stay as they were; after: a lone one has all."""
    before, x = router(second="all", normalise="before", capacity_factor=0.5)
    after, _ = router(second="all", normalise="after", capacity_factor=0.5)
    first, second = before(RouterInputs(x)), after(RouterInputs(x))
    assert torch.equal(first.token, second.token)
    lone = torch.bincount(first.token, minlength=T)[first.token] == 1
    assert 0 < lone.sum() < len(lone)
    assert (first.weight[lone] < 1).all()
    torch.testing.assert_close(second.weight[lone], torch.ones_like(second.weight[lone]))
    torch.testing.assert_close(first.weight[~lone], second.weight[~lone])


@pytest.mark.parametrize("normalise", ["before", "after"])
def test_random_keeps_the_second_choice_with_twice_its_gate(normalise):
    module, _ = router(normalise=normalise, capacity_factor=None)
    logits = torch.log(torch.tensor([0.1, 0.6, 0.25, 0.05], dtype=torch.float64))
    with torch.no_grad():
        module.embedding.copy_(logits[:, None].expand(E, D) / D)
    routing = module(RouterInputs(torch.ones(20000, D, dtype=torch.float64)))
    gate = 0.25 / 0.85 if normalise == "before" else 0.25
    assert routing.load.tolist()[::3] == [0, 0]
    assert routing.load[1] == 20000
    assert routing.load[2] / 20000 == pytest.approx(2 * gate, abs=0.015)
    assert routing.dropped == 0  # chance drops nothing


def test_sampling_draws_the_second_choice_from_the_softmax_over_the_others():
    module, _ = router(second="sampling", capacity_factor=None)
    probs = torch.tensor([0.1, 0.6, 0.25, 0.05], dtype=torch.float64)
    with torch.no_grad():
        module.embedding.copy_(probs.log()[:, None].expand(E, D) / D)
    routing = module(RouterInputs(torch.ones(20000, D, dtype=torch.float64)))
    np.testing.assert_allclose(routing.load / 20000, [0.25, 1, 0.625, 0.125], atol=0.015)
    chosen = routing.expert.view(-1, 2)[:, 1]
    torch.testing.assert_close(routing.weight.view(-1, 2)[:, 1].detach(), probs[chosen] / (probs[chosen] + 0.6))


@pytest.mark.parametrize("second", ["random", "sampling"])
def test_evaluation_takes_the_two_best_of_every_token(second):
    module, x = router(second=second)
    best, _ = router(second="all", capacity_factor=None)
    ours, all_ = module.eval()(RouterInputs(x)), best(RouterInputs(x))
    assert torch.equal(ours.expert, all_.scores.topk(2).indices.flatten())
    assert torch.equal(ours.weight, all_.weight)
    asked, _ = router(second=second, eval_capacity_factor=0.5)
    assert asked.eval()(RouterInputs(x)).dropped > 0


def test_losses_see_the_first_choices_before_the_drops():
    module, x = router(capacity_factor=0.5)
    routing = module(RouterInputs(x))
    assert routing.dropped > 0
    chosen = torch.bincount(routing.scores.argmax(1), minlength=E).double() / T
    assert routing.losses["balance"].item() == pytest.approx((E * chosen * routing.scores.softmax(-1).mean(0)).sum().item(), abs=1e-12)
    assert routing.losses["z"].item() == pytest.approx(routing.scores.exp().sum(1).log().square().mean().item(), abs=1e-12)


def test_balance_is_1_when_uniform_and_E_when_collapsed():
    module, x = router()
    with torch.no_grad():
        module.embedding.zero_()
    assert module(RouterInputs(x)).losses["balance"].item() == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        module.embedding[2] = 1e3 * x[0]
    assert module(RouterInputs(x[:1].expand(T, D))).losses["balance"].item() == pytest.approx(E, abs=1e-9)


@pytest.mark.parametrize("normalise", ["before", "after"])
@pytest.mark.parametrize("second", ["random", "sampling", "all"])
def test_one_expert_and_no_tokens(second, normalise):
    one = GShard(D, 1, second=second, normalise=normalise)
    routing = one(RouterInputs(torch.randn(3, D)))
    assert (routing.token.tolist(), routing.expert.tolist()) == ([0, 1, 2], [0, 0, 0])
    assert torch.equal(routing.weight, torch.ones(3))
    none = GShard(D, E, second=second, normalise=normalise)(RouterInputs(torch.zeros(0, D)))
    assert len(none.token) == none.losses["balance"] == none.losses["z"] == none.dropped == 0


def test_defaults_are_the_papers():
    module = GShard(D, E)
    assert (module.second, module.normalise, module.batch_priority) == ("random", "before", False)
    assert (module.capacity_factor, module.eval_capacity_factor) == (2.0, None)


@pytest.mark.parametrize("options", [{"second": "best"}, {"normalise": "never"}, {"capacity_factor": 0.0}, {"eval_capacity_factor": -1.0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GShard(D, E, **options)
