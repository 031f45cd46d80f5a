"""One-bit weights: values by a loop, gradients that pass straight through, and a decoder of them that trains and is saved."""

import copy

import pytest
import torch
import torch.nn.functional as F

from moebench.models import shapes
from moebench.models.decoder import Decoder
from moebench.moe import FactorisedExperts, FeedForwardExperts, MoELayer, ResidualExperts, SwiGLUExperts
from moebench.moe.experts import Experts
from moebench.moe.layers.aoe import AoE
from moebench.moe.multi_head import MultiHead
from moebench.moe.one_bit import OneBitLinear, binary, eight_bit, one_bit
from moebench.moe.routers.mhmoe_topk import MHMoETopK

V, D, E, HEADS = 50, 24, 5, 3


def signs(weight):
    """(F, D): ± mean |W|, by a loop."""
    numbers = [value.item() for row in weight for value in row]
    mean, beta = sum(numbers) / len(numbers), sum(abs(value) for value in numbers) / len(numbers)
    return torch.tensor([[beta if value.item() > mean else -beta for value in row] for row in weight], dtype=weight.dtype)


def rounded(x):
    """(D,): what is left of a token, by a loop."""
    mean = sum(x.tolist()) / len(x)
    deviation = (sum((value - mean) ** 2 for value in x.tolist()) / len(x) + 1e-5) ** 0.5
    normed = [(value - mean) / deviation for value in x.tolist()]
    step = max(abs(value) for value in normed) / 127
    return torch.tensor([round(value / step) * step for value in normed], dtype=x.dtype)


def numbers(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_map_is_what_the_formula_says():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4)).double()
    torch.nn.init.normal_(model[0].weight, mean=0.3)  # a mean that matters
    plain = copy.deepcopy(model)
    one_bit(model)
    x = numbers(2, 5, 6)
    expected = torch.stack([signs(plain[0].weight) @ rounded(token) + plain[0].bias for token in x.flatten(0, 1)]).view(2, 5, 4)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert (model(x) - plain(x)).abs().max() > 0.1


def test_weights_have_two_values_and_activations_255():
    weight = numbers(3, 40, 30) + torch.tensor([0.0, 1.0, -2.0])[:, None, None]
    made = binary(weight)
    for e in range(3):
        beta = weight[e].abs().mean()
        assert set(made[e].unique().tolist()) == {-beta.item(), beta.item()}
        assert torch.equal(made[e] > 0, weight[e] > weight[e].mean())
    levels = eight_bit(numbers(4, 3000))
    for token in levels:
        steps = token / token.abs().max() * 127
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
        assert 100 < len(steps.round().unique()) <= 255
        assert steps.abs().max().item() == pytest.approx(127)
    assert not eight_bit(torch.ones(2, 5)).any()
    assert eight_bit(torch.ones(0, 5)).shape == (0, 5)


def test_gradients_pass_straight_through():
    torch.manual_seed(0)
    model = OneBitLinear(6, 4).double()
    x = numbers(9, 6).requires_grad_()
    upstream = numbers(9, 4, seed=1)
    (model(x) * upstream).sum().backward()
    torch.testing.assert_close(model.weight.grad, upstream.T @ eight_bit(x).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.bias.grad, upstream.sum(0), rtol=0, atol=1e-12)
    again = x.detach().requires_grad_()
    (F.layer_norm(again, (6,)) * (upstream @ binary(model.weight).detach())).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=0, atol=1e-12)
    weight = numbers(2, 3, 4).requires_grad_()
    upstream = numbers(2, 3, 4, seed=1)
    (binary(weight) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


KINDS = {
    "swiglu": lambda: SwiGLUExperts(3, 6, 8),
    "normed": lambda: SwiGLUExperts(3, 6, 8, subln=True),
    "factorised": lambda: FactorisedExperts(3, 6, 4, 8),
    "feed-forward": lambda: FeedForwardExperts(3, 6, 8),
    "residual": lambda: ResidualExperts(3, 6, 8, 2),
}


def through(experts, name, e, x, layer=None):
    """A token through one matrix of an expert."""
    weight, bias = experts.get_parameter(f"{name}_weight"), getattr(experts, f"{name}_bias", None)
    weight, bias = (None if value is None else value[e] if layer is None else value[e, layer] for value in (weight, bias))
    return signs(weight) @ rounded(x) + (0 if bias is None else bias)


def one_token(kind, experts, e, x):
    if kind == "feed-forward":
        return through(experts, "fc2", e, F.gelu(through(experts, "fc1", e, x)))
    if kind == "residual":
        y = x
        for layer in range(2):
            normed = F.layer_norm(y, (6,), experts.norm_weight[e, layer], experts.norm_bias[e, layer])
            y = y + through(experts, "fc2", e, F.gelu(through(experts, "fc1", e, normed, layer)), layer)
        return y - x
    gate = through(experts, "gate", e, through(experts, "reduce", e, x) if kind == "factorised" else x)
    inner = F.silu(gate) * through(experts, "up", e, x)
    if kind == "normed":
        inner = F.rms_norm(inner, (8,), experts.norm_weight[e], 1e-5)
    return through(experts, "down", e, inner)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_expert_has_scales_of_its_own(kind):
    torch.manual_seed(0)
    experts = KINDS[kind]().double()
    for parameter in experts.parameters():
        parameter.copy_(torch.randn_like(parameter) * torch.tensor([0.1, 1.0, 5.0]).view(3, *[1] * (parameter.ndim - 1)) + 0.3)
    one_bit(experts)
    rows, counts = numbers(6, 6), [3, 1, 2]
    expected = torch.stack([one_token(kind, experts, e, rows[a]) for a, e in enumerate([0, 0, 0, 1, 2, 2])])
    torch.testing.assert_close(experts(rows, torch.tensor(counts)), expected, rtol=1e-9, atol=1e-9)


def decoder(seed=0):
    torch.manual_seed(seed)
    shape = shapes.Decoder(layers=2, width=D, heads=2, inner=8, context=16)

    def layer(block):
        mixture = MoELayer(MHMoETopK(D // HEADS, E, k=2, dim=4), SwiGLUExperts(E, D // HEADS, 8))
        return MultiHead(D, mixture, heads=HEADS, shared=SwiGLUExperts(1, D, 8))

    return Decoder(shape, V, layer)


def logits(model, ids):
    return model.logits(model(ids)[0])


def test_what_becomes_one_bit_and_what_does_not():
    plain, model = decoder(), decoder()
    one_bit(model)
    parts = {name for name, part in model.named_modules() if isinstance(part, OneBitLinear)}
    names = ("qkv", "out", "layer.head.0", "layer.merge.0")
    assert parts == {f"blocks.{block}.{name}" for block in range(2) for name in names}
    state = plain.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    ids = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(0))
    seen = {}
    for block in model.blocks:
        block.layer.router.register_forward_hook(lambda router, given, found: seen.update({router: (given[0].tokens, found.scores)}))
    model.eval()(ids)
    for router, (tokens, scores) in seen.items():  # in full precision
        own = tokens @ router.projection.weight.T @ F.normalize(router.embedding, dim=1).T
        torch.testing.assert_close(scores, own)
    for before, after in zip(plain.modules(), model.modules(), strict=True):
        if isinstance(after, Experts):
            rows, counts = torch.randn(2 * after.count, after.gate_weight.shape[2]), torch.full((after.count,), 2)
            assert (after(rows, counts) - before(rows, counts)).abs().max() > 1e-4


def test_a_decoder_of_them_trains_and_its_state_goes_round():
    model = decoder()
    one_bit(model)
    ids = torch.randint(V, (4, 12), generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = F.cross_entropy(logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert losses[-1] < 0.7 * losses[0]
    again = decoder(seed=7)
    one_bit(again)
    again.load_state_dict(model.state_dict())
    later = decoder(seed=8)
    later.load_state_dict(model.state_dict())
    one_bit(later)
    expected = logits(model.eval(), ids)
    for other in (again, later, copy.deepcopy(model)):
        assert torch.equal(logits(other.eval(), ids), expected)


@torch.no_grad()
def test_later_tokens_and_batch_mates_change_nothing():
    model, ids = decoder().eval(), torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(0))
    one_bit(model)
    other = torch.cat([ids[:, :7], (ids[:, 7:] + 1) % V], 1)
    whole = logits(model, ids)
    torch.testing.assert_close(logits(model, other)[:, :7], whole[:, :7], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model, ids[1:2]), whole[1:2], rtol=0, atol=1e-5)


def test_under_autocast_it_stays_near_and_trains():
    model, ids = decoder(), torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(0))
    one_bit(model)
    exact = logits(model.eval(), ids)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, ids)
        rough.float().logsumexp(-1).sum().backward()
    assert 0 < ((rough - exact).norm() / exact.norm()).item() < 0.1
    assert all(parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_experts_that_choose_by_their_own_products_are_refused():
    with pytest.raises(ValueError, match="the layer: its experts choose by products of their own"):
        one_bit(AoE(D, FactorisedExperts(E, D, 4, 8), "the layer"))
