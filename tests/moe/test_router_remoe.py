"""ReLU routing against numpy, and its λ against what it should do."""

import io
import math

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers import remoe
from moebench.moe.routers.remoe import ReMoE


def of_logits(experts, **options):
    """A router whose logits are its tokens."""
    router = ReMoE(experts, experts, **options)
    with torch.no_grad():
        router.embedding.copy_(torch.eye(experts))
    return router


def step(router, density, tokens=100):
    """A training forward with this share of pairs on, and the hook."""
    logits = torch.full((tokens * router.experts,), -1.0)
    logits[: round(density * len(logits))] = 1
    router(RouterInputs(logits.view(tokens, -1)))
    router.after_optimizer_step()
    return router.strength.item()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equals_numpy(k):
    torch.manual_seed(k)
    router, x = ReMoE(10, 5, k=k, start=0.3).double(), torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    routing = router(RouterInputs(x))
    logits = x.detach().numpy() @ router.embedding.detach().numpy().T
    r = np.maximum(logits, 0)
    token, expert = np.nonzero(r)
    assert routing.token.tolist() == token.tolist()
    assert routing.expert.tolist() == expert.tolist()
    np.testing.assert_allclose(routing.weight.detach(), r[token, expert], atol=1e-12)
    np.testing.assert_allclose(routing.scores, logits, atol=1e-12)
    share = (r > 0).sum(0) * 5 / (k * 7)
    strength = router.strength.item()
    assert strength == pytest.approx(0.3, rel=1e-7)
    assert routing.losses["sparsity"].item() == pytest.approx(strength * (share * r).sum() / 7, rel=1e-12)
    (gradient,) = torch.autograd.grad(routing.losses["sparsity"], router.embedding)  # f is a constant to it
    expected = np.stack([strength * share[e] / 7 * x.detach().numpy()[r[:, e] > 0].sum(0) for e in range(5)])
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(7, dtype=torch.float64))


def test_even_load_at_the_aim_makes_it_the_plain_penalty():
    router = of_logits(4, start=2.0)
    routing = router(RouterInputs(torch.eye(4) * 3 - 1))
    assert routing.losses["sparsity"].item() == pytest.approx(2.0 * 2)  # f = 1, one expert of weight 2 a token


def test_strength_rises_when_too_dense_falls_when_too_sparse_and_rests_at_the_aim():
    router = of_logits(4, start=1e-3)
    assert step(router, 0.5) == pytest.approx(1.2e-3)
    assert step(router, 0.25) == pytest.approx(1.2e-3)  # exactly k / E are on
    assert step(router, 0.1) == pytest.approx(1e-3)
    assert step(router, 0.0) == pytest.approx(1e-3 / 1.2)
    assert step(of_logits(4, k=3, start=1e-3, factor=2.0), 0.5) == pytest.approx(5e-4)


def test_micro_batches_count_by_their_pairs():
    router = of_logits(4, start=1e-3)
    router(RouterInputs(torch.ones(1, 4)))  # 4 of 4 on
    assert step(router, 0.2, tokens=100) == pytest.approx(1e-3 / 1.2)  # 84 of 404


def test_ranks_are_summed(monkeypatch):
    router = of_logits(4, start=1e-3)
    monkeypatch.setattr(remoe, "summed_over_ranks", lambda pairs: pairs + torch.tensor([400, 400]))  # another rank, all on
    assert step(router, 0.0) == pytest.approx(1.2e-3)


def test_without_a_training_forward_nothing_moves():
    router = of_logits(4, start=1e-3)
    step(router, 0.5)
    before = router.strength.item()
    router.after_optimizer_step()
    router.eval()
    step(router, 0.5)
    router.train().requires_grad_(False)
    step(router, 0.5)
    router.requires_grad_(True)
    router(RouterInputs(torch.zeros(0, 4)))
    router.after_optimizer_step()
    assert router.strength.item() == before
    assert not router.pairs.any()


def test_strength_stays_in_range_when_the_aim_is_out_of_reach():
    router = of_logits(4, start=500.0)
    assert [step(router, 1.0) for _ in range(9)][-1] == 1000
    assert step(router, 0.0) < 1000  # and comes back
    router.strength.fill_(1e-30)
    assert step(router, 0.0) == pytest.approx(1e-30)
    assert step(router, 1.0) == pytest.approx(1.2e-30)
    assert router.strength.dtype == torch.float32


def test_training_reaches_the_sparsity():
    torch.manual_seed(0)
    router, values, teacher, k = ReMoE(16, 8, k=2), torch.nn.Parameter(torch.randn(8, 4) / 2), torch.randn(16, 4), []
    optimiser = torch.optim.Adam([*router.parameters(), values], lr=0.01)
    for _ in range(300):
        x = torch.randn(128, 16) + 0.5  # with a common part, or a router without a bias could not get sparse
        routing = router(RouterInputs(x))
        k.append(len(routing.expert) / 128)
        y = torch.zeros(128, 4).index_add(0, routing.token, routing.weight[:, None] * values[routing.expert])
        optimiser.zero_grad()
        ((y - (x @ teacher).tanh()).square().sum(1).mean() + routing.losses["sparsity"]).backward()
        optimiser.step()
        router.after_optimizer_step()
    assert k[0] > 3.5
    assert np.mean(k[-100:]) == pytest.approx(2, abs=0.4)


def test_saved_between_forward_and_hook_it_goes_on_the_same():
    torch.manual_seed(0)
    router, other, x = ReMoE(6, 4), ReMoE(6, 4), torch.randn(9, 6)
    for _ in range(3):
        router(RouterInputs(x))
        router.after_optimizer_step()
    router(RouterInputs(x))
    buffer = io.BytesIO()
    torch.save(router.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for module in (router, other):
        module.after_optimizer_step()
    assert torch.equal(router.strength, other.strength)
    assert torch.equal(router(RouterInputs(x)).losses["sparsity"], other(RouterInputs(x)).losses["sparsity"])


def test_a_token_without_experts_and_no_tokens():
    router = of_logits(4)
    routing = router(RouterInputs(torch.tensor([[-1.0, -2, 0, -1], [1, 2, -1, 1]])))
    assert routing.token.tolist() == [1, 1, 1]  # 0 is not above 0
    assert routing.probs.tolist() == [[0.25] * 4, [0.25, 0.5, 0, 0.25]]
    empty = router(RouterInputs(torch.zeros(0, 4)))
    assert len(empty.expert) == 0
    assert empty.losses["sparsity"].item() == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"k": 0}, "k 0"),
        ({"k": 5}, "k 5"),
        ({"start": 0.0}, "start"),
        ({"start": 1e4}, "start"),
        ({"start": math.nan}, "start"),
        ({"factor": 1.0}, "factor"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        ReMoE(8, 4, **options)
