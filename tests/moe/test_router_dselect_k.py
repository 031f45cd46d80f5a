"""DSelect-k against the outputs of a public port, a loop over selectors and bits, and analytic values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.dselect_k import DSelectK

GOLDEN = Path(__file__).parents[1] / "golden" / "dselectk.npz"
CASES = ("case00", "case01", "case02")


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def port(data, **options):
    router = DSelectK(int(data["d"]), int(data["E"]), k=int(data["k"]), **options)
    with torch.no_grad():
        router.selectors.copy_(torch.from_numpy(data["z_logits"]).transpose(1, 2))
        router.mixture.copy_(torch.from_numpy(data["w_logits"]).T)
    return router


def dense(routing):
    return torch.zeros_like(routing.scores).index_put((routing.token, routing.expert), routing.weight)


def step(z, gamma=1.0):
    """The smooth step as the paper writes it."""
    return np.where(z <= -gamma / 2, 0, np.where(z >= gamma / 2, 1, -2 * z**3 / gamma**3 + 3 * z / (2 * gamma) + 0.5))


def by_hand(router, x):
    """Loops over tokens, selectors, experts and bits, in numpy: (T, E) weights and (T, K, E) selector outputs."""
    G, Z = router.mixture.detach().numpy(), router.selectors.detach().numpy()
    weights, outputs = np.zeros((len(x), router.experts)), np.ones((len(x), len(G), router.experts))
    for t, h in enumerate(x):
        share = np.exp(G @ h) / np.exp(G @ h).sum()
        for i in range(len(G)):
            for e in range(router.experts):
                for m, z in enumerate(Z[i] @ h):
                    bit = step(z, router.gamma)
                    outputs[t, i, e] *= bit if e >> (Z.shape[1] - 1 - m) & 1 else 1 - bit
            weights[t] += share[i] * outputs[t, i]
    return weights, outputs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalise", [True, False])
def test_public_port(case, normalise):
    data = golden(case)
    x = data["x" if normalise else "x_layernorm"]
    routing = port(data, normalise=normalise)(RouterInputs(torch.from_numpy(x)))
    np.testing.assert_allclose(dense(routing).detach(), data["weights"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(routing.scores, data["weights"], rtol=0, atol=1e-5)
    total = routing.losses["entropy"] + (0 if data["power_of_two"] else routing.losses["reachable"])
    assert total.item() == pytest.approx(data["reg_loss_train"].item(), rel=1e-5)
    if data["power_of_two"]:
        assert routing.losses["reachable"].item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_public_port_selector_by_selector(case):
    """With a mixture that is all one selector's, the weights are its outputs."""
    data = golden(case)
    router = port(data)
    for i in range(int(data["k"])):
        lone = DSelectK(router.d_model, router.experts, k=1)
        with torch.no_grad():
            lone.selectors.copy_(router.selectors[i : i + 1])
        routing = lone(RouterInputs(torch.from_numpy(data["x_layernorm"])))
        np.testing.assert_allclose(dense(routing).detach(), data["selector"][:, i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_equals_a_loop(experts, gamma):
    torch.manual_seed(experts)
    router, x = DSelectK(7, experts, k=3, gamma=gamma).double(), torch.randn(5, 7, dtype=torch.float64)
    torch.nn.init.normal_(router.mixture)
    with torch.no_grad():
        router.selectors.mul_(40)
    routing = router(RouterInputs(x))
    weights, outputs = by_hand(router, x.numpy())
    np.testing.assert_allclose(dense(routing).detach(), weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(routing.losses["entropy"].item(), -(outputs * np.log(outputs + 1e-6)).sum(-1).mean(), atol=1e-12)
    np.testing.assert_allclose(routing.losses["reachable"].item(), (1 / (outputs + 1e-6).sum(-1)).mean(), rtol=1e-10)
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(5, dtype=torch.float64))


def test_bits_on_the_slope_leave_all_on_and_decided_bits_at_most_k():
    torch.manual_seed(0)
    router, x = DSelectK(8, 16, k=3), torch.randn(20, 8)
    at_first = router(RouterInputs(x))
    assert at_first.load.tolist() == [20] * 16
    assert at_first.losses["entropy"].item() == pytest.approx(math.log(16), rel=0.02)
    with torch.no_grad():
        router.selectors.mul_(1e6)
    decided = router(RouterInputs(x))
    assert torch.bincount(decided.token, minlength=20).max() <= 3
    assert decided.losses["entropy"].item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(dense(decided).sum(1), torch.ones(20))


def test_what_is_not_assigned_has_no_gradient():
    """The list of w > 0 has the gradient of all E weights: at w = 0 the smooth step is flat."""
    torch.manual_seed(0)
    router, x = DSelectK(8, 8, k=2).double(), torch.randn(30, 8, dtype=torch.float64)
    with torch.no_grad():
        router.selectors.mul_(60)
    value = torch.randn(30, 8, dtype=torch.float64)
    routing = router(RouterInputs(x))
    assert 30 < len(routing.expert) < 200
    h_TK = (x @ router.mixture.T).softmax(-1)
    z = torch.einsum("td,kmd->tkm", x, router.selectors)
    bit = torch.where(z <= -0.5, 0.0, torch.where(z >= 0.5, 1.0, -2 * z**3 + 1.5 * z + 0.5))
    all_TE = sum(
        h_TK[:, i, None]
        * torch.stack([math.prod(bit[:, i, m] if e >> (2 - m) & 1 else 1 - bit[:, i, m] for m in range(3)) for e in range(8)], dim=1)
        for i in range(2)
    )
    ours = torch.autograd.grad((routing.weight * value[routing.token, routing.expert]).sum(), tuple(router.parameters()))
    theirs = torch.autograd.grad((all_TE * value).sum(), tuple(router.parameters()))
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_rounding_never_makes_a_weight_negative():
    router = DSelectK(1, 2, k=1)
    with torch.no_grad():
        router.selectors.fill_(1)
    z = torch.linspace(-0.502, 0.502, 200_001)[:, None]
    scores = router(RouterInputs(z)).scores
    assert scores.min() == 0
    assert scores.max() == 1
    torch.testing.assert_close(scores.sum(1), torch.ones(len(z)))


def test_a_number_that_no_expert_has_leaves_the_token_without_experts():
    router = DSelectK(2, 3, k=1)
    with torch.no_grad():
        router.selectors.copy_(torch.eye(2)[None])
    routing = router(RouterInputs(torch.tensor([[1.0, 1.0], [1.0, -1.0]])))  # spells 3, then 2
    assert routing.token.tolist() == [1]
    assert routing.expert.tolist() == [2]
    assert routing.losses["reachable"].item() == pytest.approx((1 / 3e-6 + 1) / 2, rel=1e-4)
    torch.testing.assert_close(routing.probs, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0, 0, 1]]))


def test_no_tokens_and_the_same_in_evaluation():
    torch.manual_seed(0)
    router, x = DSelectK(8, 4), torch.randn(5, 8)
    empty = router(RouterInputs(x[:0]))
    assert [loss.item() for loss in empty.losses.values()] == [0, 0]
    weight = router(RouterInputs(x)).weight
    assert torch.equal(router.eval()(RouterInputs(x)).weight, weight)


@pytest.mark.parametrize(("options", "word"), [({"k": 0}, "k 0"), ({"gamma": 0.0}, "gamma"), ({"gamma": math.nan}, "gamma")])
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        DSelectK(8, 4, **options)
