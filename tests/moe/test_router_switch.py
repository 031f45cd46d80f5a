"""The Switch router against TorchScale's arrays, a loop with counters, and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import MoELayer, ResidualExperts, RouterInputs
from moebench.moe.routers.switch import Switch

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01", "case02", "case03", "case04")
T, D, E = 23, 10, 4


def golden(case):
    with np.load(GOLDEN / "switch_top1_torchscale.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def router(**options):
    """A router and tokens with scores far apart."""
    torch.manual_seed(0)
    module = Switch(D, E, **options).double()
    torch.nn.init.normal_(module.embedding)
    return module, torch.randn(T, D, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_torchscale(case):
    """There padding counts among the tokens of the capacity and of the loss; here it is gone before the router.

    So the factor is set to give the same capacity, and where a case has padding, the loss and its gradient are rebuilt from all rows.
    """
    data = golden(case)
    real, tokens, experts = ~data["pad_mask"], int(data["T"]), int(data["E"])
    factor = (data["capacity"].item() + 0.5) / math.ceil(int(real.sum()) / experts)
    module = Switch(int(data["d"]), experts, jitter=0.0, capacity_factor=factor, eval_capacity_factor=factor).train(bool(data["train"]))
    with torch.no_grad():
        module.embedding.copy_(data["wg"])
    x = data["x"].requires_grad_()
    routing = module(RouterInputs(x[real]))

    kept = data["kept"][real]
    assert torch.equal(routing.token, kept.nonzero()[:, 0])
    assert torch.equal(routing.expert, data["argmax"][real][kept])
    assert routing.dropped == (~kept).sum()
    torch.testing.assert_close(routing.scores, data["logits"][real], rtol=0, atol=1e-5)
    torch.testing.assert_close(routing.weight.detach(), data["gate"][real][kept], rtol=0, atol=1e-6)

    chosen = torch.bincount(data["argmax"][real], minlength=experts) / tokens
    balance = experts * (chosen * (x @ module.embedding.T).softmax(-1).mean(0)).sum() if (~real).any() else routing.losses["balance"]
    assert balance.item() == pytest.approx(data["l_aux"].item(), abs=1e-5)
    (balance + (routing.weight * data["upstream"][real][routing.token, routing.expert]).sum()).backward()
    torch.testing.assert_close(x.grad, data["grad_x"], rtol=0, atol=1e-5)
    torch.testing.assert_close(module.embedding.grad, data["grad_wg"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["case00", "case02", "case04"])
def test_torchscales_capacity_is_ours_where_its_options_have_a_counterpart(case):
    data = golden(case)
    assert not data["pad_mask"].any()
    # in evaluation it takes a quarter of the tokens
    factor = data["capacity_factor"].item() if data["train"] else data["E"].item() / 4
    module = Switch(int(data["d"]), int(data["E"]), jitter=0.0, capacity_factor=factor)
    with torch.no_grad():
        module.embedding.copy_(data["wg"])
    assert torch.equal(module(RouterInputs(data["x"])).token, data["kept"].nonzero()[:, 0])


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 1.25, 2.0])
def test_capacity_is_first_come_first_served(factor):
    module, x = router(capacity_factor=factor, jitter=0.0)
    routing = module(RouterInputs(x))
    limit, taken, expected = max(math.floor(factor * math.ceil(T / E)), 1), [0] * E, []
    for token, expert in enumerate(routing.scores.argmax(1).tolist()):
        if taken[expert] < limit:
            taken[expert] += 1
            expected.append((token, expert))
    assert list(zip(routing.token.tolist(), routing.expert.tolist(), strict=True)) == expected
    assert routing.load.tolist() == taken
    assert routing.dropped == T - len(expected)


def test_losses_do_not_see_the_drops():
    limited, x = router(capacity_factor=0.1, jitter=0.0)
    free, _ = router(capacity_factor=None, jitter=0.0)
    few, all_ = limited(RouterInputs(x)), free(RouterInputs(x))
    assert few.dropped > 0 == all_.dropped
    probs, chosen = all_.scores.softmax(-1), torch.bincount(all_.expert, minlength=E).double() / T
    assert few.losses["balance"].item() == pytest.approx((E * chosen * probs.mean(0)).sum().item(), abs=1e-12)
    assert few.losses["z"].item() == pytest.approx(all_.scores.exp().sum(1).log().square().mean().item(), abs=1e-12)


@pytest.mark.parametrize(("scale", "balance"), [(0.0, 1.0), (1e3, float(E))])
def test_balance_is_1_when_uniform_and_E_when_collapsed(scale, balance):
    module, x = router()
    with torch.no_grad():
        module.embedding.zero_()
        module.embedding[2] = scale * x[0]
    routing = module(RouterInputs(x[:1].expand(T, D)))
    assert routing.losses["balance"].item() == pytest.approx(balance, abs=1e-9)
    limit = math.floor(1.25 * math.ceil(T / E))
    assert (routing.load.max(), routing.dropped) == (limit, T - limit)


def test_jitter_is_uniform_noise_on_the_routers_input_in_training():
    module, x = router(jitter=0.25, capacity_factor=None)
    module.experts = 400
    module.embedding = torch.nn.Parameter(torch.eye(D, dtype=x.dtype))  # the scores are the jittered input
    routing = module(RouterInputs(x.repeat(100, 1)))
    noise = routing.scores / x.repeat(100, 1)
    assert 0.75 <= noise.min() < 0.751
    assert 1.249 < noise.max() <= 1.25
    assert noise.mean().item() == pytest.approx(1, abs=0.005)
    assert noise.std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.02)
    assert torch.equal(module.eval()(RouterInputs(x)).scores, x)


def test_jitter_stays_out_of_the_experts():
    torch.manual_seed(0)
    seen = []

    class Experts(ResidualExperts):
        def forward(self, x, count):
            seen.append(x)
            return super().forward(x, count)

    module, x = router(jitter=0.5, capacity_factor=None)
    MoELayer(module, Experts(E, D, 12, 1).double())(x[None])
    assert set(map(tuple, seen[0].tolist())) == set(map(tuple, x.tolist()))


def test_training_limits_and_evaluation_does_not_unless_asked():
    module, x = router(capacity_factor=0.5)
    assert module(RouterInputs(x)).dropped > 0
    assert module.eval()(RouterInputs(x)).dropped == 0
    asked, _ = router(capacity_factor=None, eval_capacity_factor=0.5)
    assert asked(RouterInputs(x)).dropped == 0
    assert asked.eval()(RouterInputs(x)).dropped > 0


def test_no_tokens():
    module, x = router()
    routing = module(RouterInputs(x[:0]))
    assert len(routing.token) == routing.dropped == 0
    assert {key: loss.item() for key, loss in routing.losses.items()} == {"balance": 0, "z": 0}


def test_weights_start_as_the_papers_truncated_normal():
    torch.manual_seed(0)
    weight, std = Switch(100, 400).embedding, math.sqrt(0.1 / 100)
    assert weight.abs().max() <= 2 * std
    assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)  # of a normal cut at two deviations


def test_defaults_are_the_papers():
    module = Switch(D, E)
    assert (module.jitter, module.capacity_factor, module.eval_capacity_factor) == (0.01, 1.25, None)


@pytest.mark.parametrize(
    "options", [{"jitter": -0.1}, {"jitter": 1.0}, {"capacity_factor": 0.0}, {"eval_capacity_factor": -1.0}, {"capacity_factor": math.nan}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Switch(D, E, **options)
