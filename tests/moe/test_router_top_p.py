"""Dynamic routing against the public selection, a loop over tokens and analytic values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.moe import RouterInputs
from moebench.moe.routers.top_p import TopP

GOLDEN = Path(__file__).parents[1] / "golden" / "topp_selection.npz"


def of_logits(experts, threshold=0.4):
    """A router whose logits are its tokens."""
    router = TopP(experts, experts, threshold=threshold).double()
    with torch.no_grad():
        router.embedding.copy_(torch.eye(experts))
    return router


def dense(routing):
    weight_TE = torch.zeros_like(routing.scores)
    weight_TE[routing.token, routing.expert] = routing.weight.detach()
    return weight_TE


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_public_selection(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        probs, taus, weights, mask, k = (arrays[f"{case}/{key}"] for key in ("probs", "taus", "weights", "mask", "k"))
    experts = probs.shape[-1]
    router = of_logits(experts)
    for index, tau in enumerate(taus):
        router.threshold = float(tau)  # 1.5 is no mass, but there too all are taken
        routing = router(RouterInputs(torch.from_numpy(probs).double().log().view(-1, experts)))
        found = dense(routing).view(probs.shape).numpy()
        np.testing.assert_array_equal(found > 0, mask[index])
        np.testing.assert_array_equal((found > 0).sum(-1), k[index])
        np.testing.assert_allclose(found, weights[index], rtol=0, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(0, 5), st.floats(0.01, 1), st.integers(0, 99))
def test_equals_a_loop(experts, tokens, threshold, seed):
    x = torch.randn(tokens, experts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    routing = of_logits(experts, threshold)(RouterInputs(x))
    expected, entropy = np.zeros((tokens, experts)), 0.0
    for t, row in enumerate(x.numpy()):
        p = np.exp(row) / np.exp(row).sum()
        entropy -= (p * np.log(p)).sum()
        mass = 0.0
        for e in np.argsort(-p, kind="stable"):
            if mass > threshold:
                break
            expected[t, e] = p[e]
            mass += p[e]
    np.testing.assert_allclose(dense(routing), expected, rtol=0, atol=1e-12)
    assert routing.losses["entropy"].item() == pytest.approx(entropy / max(tokens, 1), abs=1e-12)
    assert all(loss.isfinite() for loss in routing.losses.values())


def test_even_and_certain_tokens():
    router = of_logits(4)
    even = router(RouterInputs(torch.zeros(3, 4, dtype=torch.float64)))
    assert even.expert.tolist() == [0, 1] * 3  # 0.25, 0.5 > 0.4; of equals the first
    assert even.losses["entropy"].item() == pytest.approx(math.log(4))
    assert even.losses["balance"].item() == pytest.approx(1)
    certain = router(RouterInputs(torch.tensor([[800.0, 0, 0, 0]], dtype=torch.float64)))
    assert certain.expert.tolist() == [0]
    assert certain.losses["entropy"].item() == 0
    assert certain.losses["balance"].item() == pytest.approx(4)
    everything = of_logits(4, threshold=1.0)(RouterInputs(torch.zeros(2, 4, dtype=torch.float64)))
    assert everything.load.tolist() == [2, 2, 2, 2]


def test_the_expert_that_reaches_the_threshold_exactly_does_not_exceed_it():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    assert len(of_logits(4, threshold=0.5)(RouterInputs(logits)).expert) == 2
    assert len(of_logits(4, threshold=0.49)(RouterInputs(logits)).expert) == 1


def test_entropy_sharpens_and_so_takes_fewer():
    torch.manual_seed(0)
    router, x = TopP(16, 8, threshold=0.6), torch.randn(64, 16)
    before = len(router(RouterInputs(x)).expert)
    optimiser = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        router(RouterInputs(x)).losses["entropy"].backward()
        optimiser.step()
    assert len(router(RouterInputs(x)).expert) < before / 2


def test_weights_are_raw_so_every_expert_feels_them():
    torch.manual_seed(0)
    router = TopP(6, 5).double()
    routing = router(RouterInputs(torch.randn(3, 6, dtype=torch.float64)))
    assert ((dense(routing).sum(1) > 0.4) & (dense(routing).sum(1) < 1)).all()
    (gradient,) = torch.autograd.grad(routing.weight.sum(), router.embedding)
    assert gradient.abs().amax(1).min() > 0


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_a_threshold_that_is_no_mass_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        TopP(4, 4, threshold=threshold)
