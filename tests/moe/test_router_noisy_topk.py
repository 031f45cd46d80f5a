"""The V-MoE router against the outputs of the public code, and its losses against closed forms and a simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.noisy_topk import NoisyTopK, ranked_positions, slots, wins

GOLDEN = Path(__file__).parents[1] / "golden" / "vmoe_noisy_topk.npz"
CASES = ("case00", "case01", "case02", "case03")


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def router(data, dtype):
    factor = data["capacity_factor"].item()
    module = NoisyTopK(
        int(data["H"]),
        int(data["E"]),
        k=int(data["K"]),
        noise_std=data["noise_std"].item(),
        capacity_factor=factor,
        eval_capacity_factor=factor,
        batch_priority=bool(data["batch_priority"]),
    )
    with torch.no_grad():
        module.embedding.copy_(torch.from_numpy(data["W"].T))
    return module.to(dtype).train(not data["deterministic"])


def route(module, data, group, monkeypatch):
    """One group, with the stored noise in place of the draw."""
    dtype = module.embedding.dtype
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda logits: torch.from_numpy(data["noise"][group]).to(logits))
        return module(RouterInputs(torch.from_numpy(data["x"][group]).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_public_code(case, dtype, monkeypatch):
    data = golden(case)
    module = router(data, dtype)
    dropped = 0
    for group in range(int(data["G"])):
        routing = route(module, data, group, monkeypatch)
        combine = torch.zeros(int(data["S"]), int(data["E"]), dtype=dtype)
        combine[routing.token, routing.expert] = routing.weight.detach()
        np.testing.assert_allclose(combine, data["combine"][group], rtol=0, atol=1e-6)
        kept = np.zeros(combine.shape, dtype=bool)
        kept[routing.token, routing.expert] = True
        np.testing.assert_array_equal(kept, data["slot"][group] >= 0)
        assert routing.dropped == data["S"] * data["K"] - kept.sum()
        dropped += routing.dropped
        np.testing.assert_allclose(routing.losses["importance"].item(), data["importance_loss"][group], rtol=0, atol=1e-6)
        np.testing.assert_allclose(routing.losses["balance"].item(), data["gshard_loss"][group], rtol=0, atol=1e-6)
        if not data["deterministic"]:
            np.testing.assert_allclose(routing.losses["load"].item(), data["load_loss"][group], rtol=0, atol=1e-6)
    assert slots(int(data["S"]), int(data["K"]), int(data["E"]), data["capacity_factor"].item()) == data["capacity"]
    assert dropped > 0 or case == "case03"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_the_public_codes_losses(case, dtype, monkeypatch):
    data = golden(case)
    module = router(data, dtype)
    for group in range(int(data["G"])):
        losses = route(module, data, group, monkeypatch).losses
        auxiliary = 0.01 * losses["importance"] + (0 if data["deterministic"] else 0.02 * losses["load"])
        np.testing.assert_allclose(auxiliary.item(), data["auxiliary_loss"][group], rtol=0, atol=1e-6)
        auxiliary.backward()  # adds up over the groups
    np.testing.assert_allclose(module.embedding.grad.T, data["grad_W_aux"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["case00", "case01", "case02"])
def test_slots_are_those_of_the_public_code(case, monkeypatch):
    data = golden(case)
    module, (experts, k) = router(data, torch.float64), (int(data["E"]), int(data["K"]))
    for group in range(int(data["G"])):
        noisy = route(module, data, group, monkeypatch).scores
        expert = noisy.topk(k).indices
        position = ranked_positions(expert, noisy.softmax(-1).amax(-1) if data["batch_priority"] else None)
        slot = torch.full((len(noisy), experts), -1).scatter(1, expert, torch.where(position < int(data["capacity"]), position, -1))
        np.testing.assert_array_equal(slot, data["slot"][group])


def test_capacity_by_hand():
    assert slots(24, 2, 8, 1.05) == 8  # ⌈6.3⌉ = 7
    assert slots(32, 1, 4, 1.0) == 8
    assert slots(1, 1, 64, 0.1) == 4
    assert slots(0, 2, 8, 1.05) == 0


def test_first_choices_queue_before_second_ones_and_the_sure_before_the_unsure():
    expert = torch.tensor([[0, 1], [0, 1], [1, 0]])
    assert ranked_positions(expert, None).tolist() == [[0, 1], [1, 2], [0, 2]]
    assert ranked_positions(expert, torch.tensor([0.5, 0.9, 0.7])).tolist() == [[1, 2], [0, 1], [0, 2]]
    assert ranked_positions(expert, torch.tensor([0.5, 0.5, 0.5])).tolist() == ranked_positions(expert, None).tolist()


def test_wins_is_the_chance_to_be_chosen_when_one_experts_noise_is_drawn_again():
    torch.manual_seed(0)
    sigma, logits = 0.25, torch.randn(1, 4, dtype=torch.float64) * 0.3
    noisy = logits + sigma * torch.randn(1, 4, dtype=torch.float64)
    threshold = noisy.sort(descending=True).values[0, 1]
    again = logits + sigma * torch.randn(100_000, 4, dtype=torch.float64)
    torch.testing.assert_close(wins(logits, noisy, 2, sigma)[0], (again >= threshold).double().mean(0), rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alike_experts_have_no_losses_and_finite_gradients(dtype):
    module = NoisyTopK(6, 4, k=2).to(dtype).eval()
    torch.nn.init.zeros_(module.embedding)
    losses = module(RouterInputs(torch.randn(10, 6, dtype=dtype))).losses
    assert losses["importance"].item() == pytest.approx(0, abs=1e-12)
    assert losses["load"].item() == pytest.approx(0, abs=1e-12)
    assert losses["balance"].item() == pytest.approx(1, abs=1e-6)
    sum(losses.values()).backward()
    assert module.embedding.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_all_tokens_on_one_expert_are_as_uneven_as_can_be(training):
    module = NoisyTopK(4, 4, k=1).double().train(training)
    with torch.no_grad():
        module.embedding.copy_(torch.tensor([[60.0], [0], [0], [0]]).expand(4, 4))
    routing = module(RouterInputs(torch.ones(40, 4, dtype=torch.float64)))
    # (σ / μ)² of (1, 0, 0, 0) is 3
    assert routing.losses["importance"].item() == pytest.approx(3, abs=1e-9)
    assert routing.losses["load"].item() == pytest.approx(3, abs=1e-9)
    assert routing.losses["balance"].item() == pytest.approx(4, abs=1e-9)
    assert routing.losses["z"].item() == pytest.approx(240**2, rel=1e-9)
    assert routing.load.tolist() == ([12, 0, 0, 0] if training else [40, 0, 0, 0])  # ⌈40 · 1.05 / 4⌉ = 11
    assert routing.dropped == (28 if training else 0)
    assert routing.token.tolist() == list(range(12 if training else 40))


def test_noise_is_drawn_in_training_only():
    torch.manual_seed(0)
    module, inputs = NoisyTopK(6, 4), RouterInputs(torch.randn(500, 6))
    clean = module.eval()(inputs)
    assert torch.equal(clean.scores, module(inputs).scores)
    assert clean.dropped == 0
    torch.testing.assert_close(clean.scores, inputs.tokens @ module.embedding.detach().T)
    noise = module.train()(inputs).scores - clean.scores
    assert noise.std().item() == pytest.approx(0.25, rel=0.05)  # 1 / E
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    torch.manual_seed(7)
    first = module(inputs)
    torch.manual_seed(7)
    again = module(inputs)
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(first.token, again.token)


def test_the_load_loss_of_evaluation_is_around_the_thresholds_without_noise():
    torch.manual_seed(0)
    module, x = NoisyTopK(6, 4).double().eval(), torch.randn(9, 6, dtype=torch.float64)
    logits = (x @ module.embedding.T).detach().numpy()
    chance = [[0.5 * math.erfc((sorted(row)[-2] - s) / 0.25 / math.sqrt(2)) for s in row] for row in logits]
    total = np.sum(chance, 0)
    loss = module(RouterInputs(x)).losses["load"]
    assert loss.item() == pytest.approx(total.var() / total.mean() ** 2, abs=1e-12)
    assert torch.autograd.grad(loss, module.embedding)[0].abs().max() > 0


def test_without_noise_the_load_loss_is_of_the_counts_and_a_constant():
    torch.manual_seed(0)
    module, inputs = NoisyTopK(6, 4, noise_std=0.0).double(), RouterInputs(torch.randn(9, 6, dtype=torch.float64))
    routing = module(inputs)
    count = np.bincount(routing.scores.topk(2).indices.flatten(), minlength=4)
    assert routing.losses["load"].item() == pytest.approx(count.var() / count.mean() ** 2, abs=1e-12)
    assert not routing.losses["load"].requires_grad
    assert torch.equal(routing.scores, module.eval()(inputs).scores)


def test_batch_priority_keeps_the_largest_probabilities():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    kept = {}
    for priority in (False, True):
        module = NoisyTopK(6, 4, k=1, noise_std=0.0, capacity_factor=0.25, batch_priority=priority)
        torch.manual_seed(1)
        torch.nn.init.normal_(module.embedding)
        routing = module(RouterInputs(x))
        kept[priority] = {(token, expert) for token, expert in zip(routing.token.tolist(), routing.expert.tolist(), strict=True)}
    best, expert = routing.scores.softmax(-1).max(-1)
    for e in range(4):
        chosen = (expert == e).nonzero()[:, 0]
        assert {t for t, other in kept[False] if other == e} == set(chosen[:4].tolist())
        assert {t for t, other in kept[True] if other == e} == set(chosen[best[chosen].argsort(descending=True)[:4]].tolist())


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (4, 2), (4, 4)])
def test_few_tokens_and_experts(experts, k, training, tokens):
    module = NoisyTopK(6, experts, k=k, eval_capacity_factor=1.0).train(training)
    routing = module(RouterInputs(torch.randn(tokens, 6)))
    assert len(routing.token) == tokens * k
    assert set(routing.losses) == set(NoisyTopK.losses)
    (routing.weight.sum() + sum(routing.losses.values())).backward()
    assert all(loss.isfinite() for loss in routing.losses.values())
    assert module.embedding.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"k": 0}, "k 0"),
        ({"k": 5}, "number of experts, 4"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"capacity_factor": 0.0}, "^capacity_factor"),
        ({"eval_capacity_factor": -1.0}, "eval_capacity_factor"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        NoisyTopK(8, 4, **options)
