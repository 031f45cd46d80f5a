"""Tutel's cosine gate against Tutel's arrays, a loop over tokens, and the paper's router."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.xmoe import XMoE
from moebench.moe.routers.xmoe_tutel import XMoETutel

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01", "case02")
T, D, E = 23, 10, 6


def golden(case):
    with np.load(GOLDEN / "xmoe_tutel_cosine_gate.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def router(**options):
    torch.manual_seed(0)
    return XMoETutel(D, E, **{"dim": 8, **options}).double(), torch.randn(T, D, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_tutel(case):
    data = golden(case)
    temperature = data["init_t"].item()
    module = XMoETutel(int(data["d"]), int(data["E"]), dim=int(data["d_e"]), temperature=temperature, capacity_factor=None)
    assert module.log_scale.item() == pytest.approx(data["temperature_param"].item(), abs=1e-6)
    with torch.no_grad():
        module.projection.weight.copy_(data["projector_weight"])
        module.projection.bias.copy_(data["projector_bias"])
        module.embedding.copy_(data["sim_matrix"].T)
        module.log_scale.copy_(data["temperature_param"][0])
    routing = module(RouterInputs(data["x"]))
    assert torch.equal(routing.expert, data["argmax"])
    torch.testing.assert_close(routing.scores, data["scaled_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(routing.scores.softmax(-1), data["softmax"], rtol=0, atol=1e-5)
    torch.testing.assert_close(routing.weight.detach(), data["softmax"].max(1).values, rtol=0, atol=1e-5)
    chosen = torch.bincount(data["argmax"], minlength=int(data["E"])) / int(data["T"])
    assert routing.losses["balance"].item() == pytest.approx((data["E"] * chosen * data["softmax"].mean(0)).sum().item(), abs=1e-5)


def test_one_case_has_a_bias():
    assert any(golden(case)["projector_bias"].any() for case in CASES)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_without_bias_it_is_the_papers_router(temperature):
    ours, x = router(temperature=temperature, capacity_factor=None)
    paper = XMoE(D, E, dim=8, temperature=temperature).double()
    with torch.no_grad():
        ours.projection.bias.zero_()
        paper.projection.copy_(ours.projection.weight)
        paper.embedding.copy_(ours.embedding)
    first, second = ours(RouterInputs(x)), paper(RouterInputs(x))
    assert torch.equal(first.expert, second.expert)
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=1e-6)  # the temperatures are fp32
    torch.testing.assert_close(first.losses["z"], second.losses["z"], rtol=1e-6, atol=0)


def test_a_temperature_below_a_hundredth_acts_as_it_and_is_not_learned():
    below, x = router(temperature=0.002, capacity_factor=None)
    least, _ = router(temperature=0.01, capacity_factor=None)
    assert below.log_scale.item() == pytest.approx(math.log(500))  # what Tutel's parameter starts from
    first, second = below(RouterInputs(x)), least(RouterInputs(x))
    assert torch.equal(first.expert, second.expert)
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-4, atol=0)
    first.weight.sum().backward()
    assert below.log_scale.grad == 0
    assert below.embedding.grad.abs().max() > 0


def test_the_scale_is_100_at_most():
    module, x = router(capacity_factor=None)
    for log_scale, scale in [(math.log(50), 50), (math.log(100) + 0.5, 100), (9.0, 100)]:
        with torch.no_grad():
            module.log_scale.fill_(log_scale)
        routing = module(RouterInputs(x))
        with torch.no_grad():
            module.log_scale.zero_()
        torch.testing.assert_close(routing.scores, scale * module(RouterInputs(x)).scores)
        with torch.no_grad():
            module.log_scale.fill_(log_scale)
        module.zero_grad()
        module(RouterInputs(x)).weight.sum().backward()
        assert (module.log_scale.grad.abs() > 0) == (scale < 100)


@pytest.mark.parametrize("factor", [0.2, 1.0, None])
@pytest.mark.parametrize("k", [1, 2, 3, E])
def test_equals_a_loop_over_tokens(k, factor):
    module, x = router(k=k, capacity_factor=factor, temperature=0.05)
    routing = module(RouterInputs(x))
    z = x @ module.projection.weight.T + module.projection.bias
    cosine = torch.cosine_similarity(z[:, None], module.embedding[None], dim=-1).detach()
    probs = (cosine * module.log_scale.exp().item()).softmax(-1)
    ranked = probs.argsort(descending=True)[:, :k].tolist()
    limit = k * T if factor is None else max(k * math.floor(factor * math.ceil(T / E)), 1)
    expected, taken = torch.zeros_like(probs), [0] * E
    for choice in range(k):
        for token in range(T):
            expert = ranked[token][choice]
            if taken[expert] < limit:
                taken[expert] += 1
                expected[token, expert] = probs[token, expert] / (probs[token, ranked[token]].sum() if k > 1 else 1)
    ours = torch.zeros_like(probs).index_put((routing.token, routing.expert), routing.weight.detach())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert routing.load.tolist() == taken
    assert routing.dropped == T * k - sum(taken)
    chosen = torch.bincount(probs.argmax(1), minlength=E).double() / T
    assert routing.losses["balance"].item() == pytest.approx((E * chosen * probs.mean(0)).sum().item(), abs=1e-12)
    assert routing.losses["z"].item() == pytest.approx(routing.scores.exp().sum(1).log().square().mean().item(), abs=1e-12)


def test_every_parameter_learns_and_rows_are_not_held():
    module, x = router()
    module(RouterInputs(x)).weight.sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad.abs().max() > 0, key
    norms = module.embedding.norm(dim=1).detach()
    with torch.no_grad():
        module.embedding.mul_(3)
    module.after_optimizer_step()
    torch.testing.assert_close(module.embedding.norm(dim=1), 3 * norms)


def test_balance_is_1_when_uniform_and_near_E_when_collapsed():
    module, x = router(temperature=0.01)
    with torch.no_grad():
        module.embedding.copy_(-module.projection(x[0]))
        module.embedding[1].neg_()
    assert module(RouterInputs(x[:1].expand(T, D))).losses["balance"].item() == pytest.approx(E, abs=1e-9)
    with torch.no_grad():
        module.embedding.copy_(module.embedding[0].clone())
    assert module(RouterInputs(x)).losses["balance"].item() == pytest.approx(1, abs=1e-9)


def test_training_limits_and_evaluation_does_not_unless_asked():
    module, x = router(k=2)
    assert module(RouterInputs(x)).dropped > 0
    assert module.eval()(RouterInputs(x)).dropped == 0
    asked, _ = router(k=2, capacity_factor=None, eval_capacity_factor=0.5)
    assert asked(RouterInputs(x)).dropped == 0
    assert asked.eval()(RouterInputs(x)).dropped > 0


def test_no_tokens_and_zero_tokens():
    module, x = router(k=2)
    routing = module(RouterInputs(x[:0]))
    assert len(routing.token) == routing.losses["balance"] == routing.losses["z"] == routing.dropped == 0
    with torch.no_grad():
        module.projection.bias.zero_()
    routing = module(RouterInputs(x[:1] * 0))
    torch.testing.assert_close(routing.weight.detach(), torch.full((2,), 0.5, dtype=x.dtype))


def test_defaults_are_tutels():
    torch.manual_seed(0)
    module = XMoETutel(64, 32)
    assert module.projection.weight.shape == (256, 64)
    assert module.log_scale.exp().item() == pytest.approx(2)
    assert module.embedding.std().item() == pytest.approx(0.01, rel=0.05)
    assert (module.k, module.capacity_factor, module.eval_capacity_factor) == (1, 1.0, None)


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": E + 1}, {"dim": 0}, {"temperature": 0.0}, {"capacity_factor": 0.0}, {"eval_capacity_factor": -1.0}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        XMoETutel(D, E, **options)
