"""What holds for a sparse layer with any router. A new router is picked up with its default options; VARIANTS adds others."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.moe import MoELayer, ResidualExperts, build_router, router_names

VARIANTS = {
    "dot": [{"gate": "sigmoid"}],
    "xmoe": [
        {"gate": "sigmoid"},
        {"temperature": 0.5, "dim": 5, "norm": 1.0},
        {"reduce": False},
        {"normalise": False},
        {"gate": "sigmoid", "reduce": False, "normalise": False},
    ],
}
CASES = [(name, options) for name in router_names() for options in [{}, *VARIANTS.get(name, [])]]
every_router = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])

D = 8
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def build(name, options, experts=4, identity=False):
    """A layer in fp64 with weights far from 0, so that no term is negligible."""
    torch.manual_seed(1)
    layer = MoELayer(build_router(name, D, experts, options), ResidualExperts(experts, D, 12, 2, identity=identity), "the layer").double()
    if not identity:
        for parameter in layer.experts.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return layer


def states(*shape, seed=0):
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(layer, x_BSD, mask_BS):
    """The layer's definition: a loop over assignments and sub-layers that shares no code with dispatch and experts."""
    _, aux = layer(x_BSD, mask_BS)
    routing, experts = aux.routing, layer.experts
    places = mask_BS.nonzero().tolist()
    rows = {tuple(place): torch.zeros(D, dtype=x_BSD.dtype) for place in torch.ones_like(mask_BS).nonzero().tolist()}
    for token, expert, weight in zip(routing.token.tolist(), routing.expert.tolist(), routing.weight, strict=True):
        b, s = places[token]
        x = h = x_BSD[b, s]
        for index in range(experts.fc1_weight.shape[1]):
            centred = h - h.mean()
            normed = (
                centred / (centred.square().mean() + 1e-5).sqrt() * experts.norm_weight[expert, index] + experts.norm_bias[expert, index]
            )
            inner = F.gelu(experts.fc1_weight[expert, index] @ normed + experts.fc1_bias[expert, index])
            h = h + experts.fc2_weight[expert, index] @ inner + experts.fc2_bias[expert, index]
        rows[b, s] = rows[b, s] + weight * (h - x)
    return torch.stack(list(rows.values())).reshape(x_BSD.shape), aux


def objective(y, aux):
    """A scalar that feels every output and every loss."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() + sum(aux.losses.values())


def gradients(layer, run, x, mask):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y, aux = run(x, mask)
    objective(y, aux).backward()
    return y.detach(), {"x": x.grad, **{key: parameter.grad for key, parameter in layer.named_parameters()}}


@every_router
def test_equals_a_loop_over_tokens_with_gradients(name, options):
    layer, x = build(name, options), states(*MASK.shape)
    y, ours = gradients(layer, layer, x, MASK)
    expected, theirs = gradients(layer, lambda x, mask: one_by_one(layer, x, mask), x, MASK)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    assert ours["x"].abs().max() > 0
    for key, gradient in ours.items():
        assert gradient is not None, key
        other = torch.zeros_like(gradient) if theirs[key] is None else theirs[key]
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@every_router
@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 6), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_any_number_of_experts_and_any_padding(name, options, experts, lengths):
    layer, x = build(name, options, experts), states(len(lengths), 4, seed=sum(lengths))
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    y, aux = layer(x, mask)
    torch.testing.assert_close(y, one_by_one(layer, x, mask)[0], rtol=1e-10, atol=1e-11)
    assert len(aux.load) == experts
    assert aux.load.sum() == len(aux.routing.expert)
    assert all(loss.isfinite() for loss in aux.losses.values())


@every_router
def test_all_tokens_on_one_expert(name, options):
    layer, x = build(name, options), states(1, 1).expand(2, 3, D)
    mask = torch.ones(2, 3, dtype=torch.bool)
    y, aux = layer(x, mask)
    assert aux.load.max() == 6
    torch.testing.assert_close(y, one_by_one(layer, x, mask)[0], rtol=1e-10, atol=1e-11)


@every_router
def test_gradients_are_those_of_finite_differences(name, options):
    layer, x = build(name, options, experts=3), states(1, 3).requires_grad_()
    # no balance loss here: its share of assignments is a constant only to the gradient
    names, values = zip(*layer.router.named_parameters(prefix="router"), strict=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *values), eps=1e-7, atol=1e-5)


@every_router
def test_padding_changes_nothing(name, options):
    layer, x = build(name, options), states(2, 3)
    bare, aux = layer(x, torch.ones(2, 3, dtype=torch.bool))
    padded = torch.cat([x, torch.full((2, 4, D), torch.nan, dtype=x.dtype)], 1)
    y, padded_aux = layer(padded, torch.arange(7)[None].expand(2, 7) < 3)
    assert torch.equal(y[:, :3], bare)
    assert torch.equal(aux.load, padded_aux.load)
    assert all(torch.equal(loss, padded_aux.losses[key]) for key, loss in aux.losses.items())


@every_router
def test_a_token_depends_on_no_other(name, options):
    layer, x = build(name, options).eval(), states(*MASK.shape)
    together, _ = layer(x, MASK)
    alone, _ = layer(x[1:2], MASK[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-12)  # batch mates
    changed = torch.cat([x[:, :2], states(3, 3, seed=9)], 1)
    torch.testing.assert_close(layer(changed, MASK)[0][:, :2], together[:, :2], rtol=0, atol=1e-12)  # later tokens


@every_router
def test_the_numbering_of_experts_does_not_matter(name, options):
    layer, x = build(name, options), states(*MASK.shape)
    if "embedding" not in dict(layer.router.named_parameters()):
        pytest.skip("experts have no embedding to renumber")
    y, aux = layer(x, MASK)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for parameter in (layer.router.embedding, *layer.experts.parameters()):
            parameter.copy_(parameter[order].clone())
    renumbered, renumbered_aux = layer(x, MASK)
    torch.testing.assert_close(renumbered, y, rtol=0, atol=1e-12)
    assert torch.equal(renumbered_aux.load, aux.load[order])
    for key, loss in aux.losses.items():
        torch.testing.assert_close(renumbered_aux.losses[key], loss, rtol=0, atol=1e-12)


@every_router
def test_one_expert_gets_everything(name, options):
    _, aux = build(name, options, experts=1)(states(*MASK.shape), MASK)
    assert aux.load.tolist() == [MASK.sum()]
    if "balance" in aux.losses:
        assert aux.losses["balance"].item() == pytest.approx(1, abs=1e-12)


@every_router
def test_saved_and_loaded_it_is_the_same_bit_for_bit(name, options):
    layer, x = build(name, options).float(), states(*MASK.shape).float()
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(99)
    other = MoELayer(build_router(name, D, 4, options), ResidualExperts(4, D, 12, 2))
    assert not torch.equal(other(x, MASK)[0], layer(x, MASK)[0])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x, MASK)[0], layer(x, MASK)[0])


@every_router
def test_two_runs_are_the_same_bit_for_bit(name, options):
    layer, x = build(name, options).float(), states(*MASK.shape).float()
    (y, first), (again, second) = (gradients(layer, layer, x, MASK) for _ in range(2))
    assert torch.equal(y, again)
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_router
def test_bf16_is_close_to_fp32_and_routes_the_same(name, options):
    layer, x = build(name, options).float(), states(4, 8).float()
    exact, aux = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, rough_aux = layer(x)
    assert torch.equal(aux.routing.expert, rough_aux.routing.expert)
    assert torch.equal(aux.routing.weight, rough_aux.routing.weight)
    assert 0 < ((rough - exact).norm() / exact.norm()).item() < 0.02


@every_router
def test_nan_raises_with_the_layers_name(name, options):
    x = states(*MASK.shape)
    x[0, 1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="the layer"):
        build(name, options)(x, MASK)


@every_router
def test_identity_experts_change_nothing(name, options):
    y, _ = build(name, options, identity=True)(states(*MASK.shape), MASK)
    assert torch.equal(y, torch.zeros_like(y))


@every_router
def test_frozen_it_stays_bit_for_bit_and_still_passes_gradients_to_the_tokens(name, options):
    layer = build(name, options).float().requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    x = states(*MASK.shape).float().requires_grad_()
    y, aux = layer(x, MASK)
    for value in (y.sum(), *aux.losses.values()):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        assert gradient[MASK].abs().amax(-1).min() > 0
    layer.after_optimizer_step()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@every_router
def test_the_hook_only_repeats_itself(name, options):
    """A model that is saved after the hook and loaded is where it was."""
    layer = build(name, options).float()
    layer.after_optimizer_step()
    before = copy.deepcopy(layer.state_dict())
    layer.after_optimizer_step()
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=0)
