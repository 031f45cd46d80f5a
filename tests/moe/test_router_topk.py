"""The conventional top-k router against a loop in numpy, and against the papers that it stands for."""

import numpy as np
import pytest
import torch

from moebench.moe import MoELayer, ResidualExperts, RouterInputs
from moebench.moe.routers.topk import TopK

T, D, E = 9, 10, 6


def router(**options):
    torch.manual_seed(0)
    module = TopK(D, E, **options).double()
    torch.nn.init.normal_(module.embedding)
    return module, torch.randn(T, D, dtype=torch.float64)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("k", [1, 2, E])
def test_equals_a_loop(k, normalise):
    module, x = router(k=k, normalise=normalise)
    routing = module(RouterInputs(x))
    logits = x.numpy() @ module.embedding.detach().numpy().T
    count, z = np.zeros(E), 0.0
    found = list(zip(routing.token.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True))
    assert len(found) == T * k
    for t in range(T):
        p = softmax(logits[t])
        kept = np.sort(p)[-k:]
        weights = {int(e): p[e] / (kept.sum() if normalise else 1) for e in np.argsort(p)[-k:]}
        mine = {e: w for token, e, w in found if token == t}
        assert mine == pytest.approx(weights, abs=1e-12)
        count[list(weights)] += 1
        z += np.log(np.exp(logits[t]).sum()) ** 2
    np.testing.assert_array_equal(routing.load, count)
    np.testing.assert_allclose(routing.scores, logits, atol=1e-12)
    assert routing.losses["balance"].item() == pytest.approx(E * (count / (T * k) * softmax(logits).mean(0)).sum(), abs=1e-12)
    assert routing.losses["z"].item() == pytest.approx(z / T, abs=1e-12)


def test_mixtrals_softmax_over_the_kept_logits_is_the_same():
    module, x = router(k=3)
    routing = module(RouterInputs(x))
    kept = routing.scores.gather(1, routing.expert.view(T, 3))
    torch.testing.assert_close(routing.weight.view(T, 3), kept.softmax(-1), rtol=0, atol=1e-12)


def test_the_expert_level_loss_of_deepseekmoe():
    """Equations 12-14: Σ f_i P_i with f_i = N' / (K' T) Σ_t 1(token t selects i), P_i = 1/T Σ_t s_it."""
    module, x = router(k=2, normalise=False)
    routing = module(RouterInputs(x))
    s = softmax(routing.scores.numpy())
    chosen = routing.expert.view(T, 2).tolist()
    loss = 0.0
    for i in range(E):
        loss += E / (2 * T) * sum(i in pair for pair in chosen) * sum(s[t, i] for t in range(T)) / T
    assert routing.losses["balance"].item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_balance_is_1_when_uniform_and_its_most_when_collapsed(k):
    module, x = router(k=k)
    with torch.no_grad():
        module.embedding.zero_()
    assert module(RouterInputs(x)).losses["balance"].item() == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        module.embedding[0] = 100
    assert module(RouterInputs(x.abs())).losses["balance"].item() == pytest.approx(E / k, abs=1e-9)  # the other k - 1 have no probability


def test_normalised_top1_learns_from_its_losses_only():
    module, x = router(k=1)
    routing = module(RouterInputs(x))
    assert torch.equal(routing.weight, torch.ones_like(routing.weight))
    assert torch.autograd.grad(routing.weight.square().sum(), module.embedding, retain_graph=True)[0].abs().max() < 1e-12
    assert torch.autograd.grad(routing.losses["balance"], module.embedding)[0].abs().max() > 1e-4


def test_with_all_experts_the_layer_is_the_dense_mixture():
    module, x = router(k=E, normalise=False)
    experts = ResidualExperts(E, D, 7, 1).double()
    y, _ = MoELayer(module, experts)(x[None])
    everything = experts(x.repeat(E, 1), torch.full((E,), T)).view(E, T, D)
    torch.testing.assert_close(y[0], torch.einsum("te,etd->td", (x @ module.embedding.T).softmax(-1), everything), rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    module, x = router(k=2)

    def run(x, embedding):
        routing = torch.func.functional_call(module, {"embedding": embedding}, (RouterInputs(x),))
        return routing.weight, routing.losses["z"]

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), module.embedding))


@pytest.mark.parametrize("k", [0, E + 1])
def test_options_that_make_no_sense_are_refused(k):
    with pytest.raises(ValueError, match=f"k {k}: should be at least 1 and at most the number of experts, {E}"):
        TopK(D, E, k=k)
