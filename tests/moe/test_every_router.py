"""What holds for a sparse layer with any router, for any layer without one, and for sub-tokens of `MultiHead` in either.

A new file is picked up with its default options and with every other value of its ``Literal`` and ``bool`` options; VARIANTS adds numbers.
"""

import copy
import io
import typing

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench import config
from moebench.moe import FactorisedExperts, MoELayer, ResidualExperts, build_layer, build_router, layer_names, router_names
from moebench.moe.multi_head import MultiHead

VARIANTS = {
    "xmoe": [{"temperature": 0.5, "dim": 5, "norm": 1.0}, {"gate": "sigmoid", "reduce": False, "normalise": False}],
    "switch": [{"capacity_factor": 0.5}, {"capacity_factor": None, "jitter": 0.5}],
    "gshard": [{"capacity_factor": 0.5, "normalise": "before"}],
    "mhmoe_topk": [{"k": 2, "capacity_factor": 0.5}, {"k": 3, "dim": 5}],
    "noisy_topk": [{"k": 1, "capacity_factor": 0.25}],
    "top_p": [{"threshold": 0.6}],
    "topk": [{"k": 3}],
    "aux_free": [{"k": 1}, {"k": 1, "normalise": True}],
    "aoe": [{"selection": "top_p", "weights": "all"}, {"selection": "expert_choice", "group": "sequence", "weights": "all"}],
}
REQUIRED = {"norm": {"low": 5}}
"""Options without a default."""
VOCABULARY = 50
D = 8
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)

STRAIGHT_THROUGH = {"dynmoe": "its binary gates pass the gradient on as if they were not binary"}
FIXED_NUMBERS = {
    "dselect_k": "experts are told apart by their binary codes",
    "hash": "the table holds the experts' numbers",
    "random": "draws are experts' numbers",
    "moec": "clusters are made of neighbouring numbers",
}
BLIND = {"hash": "token ids", "random": "token ids and positions"}
"""Routers that do not look at the hidden states, and what they look at."""
UNTAUGHT = {
    ("stablemoe", "distilled_words"): "learns the choice of the first stage, by its loss ``distil`` alone",
    ("stablemoe", "distilled_embedding"): "learns the choice of the first stage, by its loss ``distil`` alone",
    ("dselect_k", "mixture"): "with k 1 there is one selector and nothing to weigh",
}
"""Parameters that the task's loss does not reach, by design."""
ROUNDED = {"aoe": "its scores are activations of the experts, which autocast rounds"}
OWN_BALANCE = {"dynmoe": "the mean number of experts a token when even", "stablemoe": "0 when even"}


def other_values(folder, name):
    """One option at a time, every other value that its type lists."""
    for key, field in config.part(folder[:-1], name).options.model_fields.items():
        if field.annotation is bool:
            yield {key: not field.default}
        for value in typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ():
            if value != field.default:
                yield {key: value}


def cases(folder, names):
    found = [(name, options) for name in names for options in ({}, *other_values(folder, name), *VARIANTS.get(name, ()))]
    return pytest.mark.parametrize(("name", "options"), found, ids=[f"{name}-{options}" for name, options in found])


every_router = cases("routers", router_names())
every_layer = pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for folder, names in (("routers", router_names()), ("layers", layer_names()))
        for name in names
        for options in ({}, *other_values(folder, name), *VARIANTS.get(name, ()))
    ],
    ids=str,
)


def networks(name, experts, identity):
    if name != "aoe":
        return ResidualExperts(experts, D, 12, 2, identity=identity)
    made = FactorisedExperts(experts, D, 5, 12)
    if identity:
        torch.nn.init.zeros_(made.down_weight)
    return made


def build(name, options, experts=4, identity=False, seed=1):
    """A layer in fp64, in evaluation, with weights far from 0 so that no term is negligible."""
    torch.manual_seed(seed)
    experts = 1 if name == "dense" else experts
    known = config.part("layer" if name in layer_names() else "router", name).options.model_fields
    options = REQUIRED.get(name, {}) | options
    if "k" in known and options.get("k", known["k"].default) > experts:
        options = options | {"k": experts}
    if name in layer_names():
        layer = build_layer(name, D, networks(name, experts, identity), options, "the layer")
    else:
        router = build_router(name, D, experts, options, VOCABULARY)
        router.before_training(torch.arange(VOCABULARY))
        layer = MoELayer(router, networks(name, experts, identity), "the layer")
    if not identity:
        for parameter in layer.experts.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return layer.double().eval()


def states(*shape, seed=0):
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def known(x_BSD, mask_BS):
    """Ids and attention that are functions of each sequence."""
    real_BSD = torch.where(mask_BS[..., None], x_BSD.detach(), 0).nan_to_num()
    ids_BS = (1000 * real_BSD[..., 0]).long().remainder(VOCABULARY)
    with torch.autocast("cpu", enabled=False):
        likeness_BSS = real_BSD @ real_BSD.transpose(1, 2)
    likeness_BSS = likeness_BSS.masked_fill(~mask_BS[:, None], -torch.inf)
    return ids_BS, torch.stack([likeness_BSS.softmax(-1), (3 * likeness_BSS).softmax(-1)], 1).nan_to_num()


def call(layer, x_BSD, mask_BS=None):
    """Run a layer on what is `known`, with the same random draws every time."""
    mask_BS = torch.ones(x_BSD.shape[:2], dtype=torch.bool) if mask_BS is None else mask_BS
    ids_BS, attention_BHSS = known(x_BSD, mask_BS)
    torch.manual_seed(5)
    return layer(x_BSD, mask_BS, ids_BS, attention_BHSS)


def one_by_one(layer, x_BSD, mask_BS):
    """The layer's definition: a loop over assignments and sub-layers that shares no code with dispatch and experts."""
    _, aux = call(layer, x_BSD, mask_BS)
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


def gradients(layer, run, x, mask):
    """Gradients of a scalar that feels every output and every loss."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y, aux = run(x, mask)
    feels = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    ((y * feels).sum() + sum(aux.losses.values())).backward()
    return y.detach(), {"x": x.grad, **{key: parameter.grad for key, parameter in layer.named_parameters()}}


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_equals_a_loop_over_tokens_with_gradients(name, options, training):
    layer, x = build(name, options).train(training), states(*MASK.shape)
    start = copy.deepcopy(layer.state_dict())
    y, ours = gradients(layer, lambda x, mask: call(layer, x, mask), x, MASK)
    layer.load_state_dict(start)  # counters, in training
    expected, theirs = gradients(layer, lambda x, mask: one_by_one(layer, x, mask), x, MASK)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    assert ours["x"].abs().max() > 0
    for key, gradient in ours.items():
        assert gradient is not None or key.startswith("router."), key
        one, other = (torch.zeros(()) if value is None else value for value in (gradient, theirs[key]))
        torch.testing.assert_close(
            one, other.expand_as(one).to(one.dtype), rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
        )


@every_router
@settings(derandomize=True, deadline=None, max_examples=12)
@given(st.integers(1, 6), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans())
def test_any_number_of_experts_and_any_padding(name, options, experts, lengths, training):
    layer, x = build(name, options, experts).train(training), states(len(lengths), 4, seed=sum(lengths))
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    y, aux = call(layer, x, mask)
    torch.testing.assert_close(y, one_by_one(layer, x, mask)[0], rtol=1e-10, atol=1e-11)
    assert len(aux.load) == experts
    assert aux.load.sum() == len(aux.routing.expert)
    assert aux.probs.shape == (mask.sum(), experts)
    torch.testing.assert_close(aux.probs.sum(-1), torch.ones(len(aux.probs), dtype=aux.probs.dtype), rtol=0, atol=1e-6)
    assert not aux.probs.requires_grad
    assert not aux.routing.scores.requires_grad
    assert set(aux.losses) == set(layer.router.losses)
    assert all(loss.isfinite() and loss.ndim == 0 for loss in aux.losses.values())


@every_layer
@pytest.mark.parametrize("rows", [0, 2])
def test_a_batch_without_tokens_trains(name, options, rows):
    """A rank without rows, or with padding alone, has finite losses and gradients, and the hook after a step finds no fault either."""
    layer = build(name, options).train()
    x, mask = torch.zeros(rows, 5, D, dtype=torch.float64), torch.zeros(rows, 5, dtype=torch.bool)
    y, found = gradients(layer, lambda x, mask: call(layer, x, mask), x, mask)
    assert not y.any()
    assert all(gradient is None or gradient.isfinite().all() for gradient in found.values())
    _, aux = call(layer, x, mask)
    assert all(loss.isfinite() for loss in aux.losses.values())
    assert (len(aux.probs), int(aux.load.sum()), aux.dropped) == (0, 0, 0)
    layer.after_optimizer_step()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@every_router
def test_tokens_that_are_all_alike(name, options):
    layer, x = build(name, options), states(1, 1).expand(2, 3, D)
    y, _ = call(layer, x)
    torch.testing.assert_close(y, one_by_one(layer, x, torch.ones(2, 3, dtype=torch.bool))[0], rtol=1e-10, atol=1e-11)


@every_router
def test_gradients_are_those_of_finite_differences(name, options):
    if name in STRAIGHT_THROUGH:
        pytest.skip(STRAIGHT_THROUGH[name])
    layer, x = build(name, options, experts=3), states(1, 3).requires_grad_()
    # no losses here: the share of assignments in a balance loss is a constant only to the gradient
    chosen = {key: value for key, value in layer.router.named_parameters(prefix="router") if value.requires_grad}

    def run(x, *values):
        given = dict(zip(chosen, values, strict=True))
        ids, attention = torch.arange(3)[None], torch.eye(3, dtype=x.dtype)[None, None]
        return torch.func.functional_call(layer, given, (x, None, ids, attention))[0]

    many = sum(value.numel() for value in chosen.values()) > 500
    assert torch.autograd.gradcheck(run, (x, *chosen.values()), eps=1e-7, atol=1e-5, fast_mode=many)


@every_layer
def test_the_task_teaches_every_parameter_whatever_the_options(name, options):
    known = config.part("layer" if name in layer_names() else "router", name)
    check_what_is_taught(name, known, options)
    if "k" in known.options.model_fields and "k" not in options:
        check_what_is_taught(name, known, options | {"k": 1})


def check_what_is_taught(name, known, options):
    """The task gives every parameter a gradient, but those of options that are known to leave a router without one."""
    layer = build(name, options).train()
    y, _ = call(layer, states(*MASK.shape), MASK)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    defaults = {key: field.default for key, field in known.options.model_fields.items()}
    untaught = any(together.items() <= (defaults | options).items() for together in known.untaught)
    for key, parameter in layer.named_parameters():
        taught = parameter.grad is not None and parameter.grad.abs().max() > 1e-12
        if key.startswith("experts.") or not untaught:
            excused = (name, key.removeprefix("router.")) in UNTAUGHT
            assert taught or excused or not parameter.requires_grad, key
        else:
            assert not taught, key


@every_layer
def test_padding_changes_nothing(name, options):
    layer, x = build(name, options), states(2, 3)
    bare, aux = call(layer, x)
    padded = torch.cat([x, torch.full((2, 4, D), torch.nan, dtype=x.dtype)], 1)
    y, padded_aux = call(layer, padded, torch.arange(7)[None].expand(2, 7) < 3)
    torch.testing.assert_close(y[:, :3], bare, rtol=0, atol=1e-13)
    assert y[:, 3:].abs().max() == 0
    torch.testing.assert_close(aux.load, padded_aux.load)
    for key, loss in aux.losses.items():
        torch.testing.assert_close(loss, padded_aux.losses[key], rtol=0, atol=1e-13)


@every_layer
def test_a_prediction_depends_on_no_batch_mate(name, options):
    layer, x = build(name, options), states(*MASK.shape)
    together, _ = call(layer, x, MASK)
    for row in range(len(MASK)):
        alone, _ = call(layer, x[row : row + 1], MASK[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-12)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_documents_packed_into_rows_are_sequences(name, options, training):
    layer = build(name, options).train(training)
    if layer.needs_attention:
        pytest.skip("attention is over rows")
    start = copy.deepcopy(layer.state_dict())
    document = torch.tensor([[0, 0, 0, 1, 1, 2], [4, 4, 5, 5, 5, 5]])
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    x, lengths = states(2, 6), [3, 2, 1, 2, 1]
    ids = (1000 * x[..., 0]).long().remainder(VOCABULARY)
    torch.manual_seed(5)
    packed, packed_aux = layer(x, real, ids, None, document)
    layer.load_state_dict(start)  # counters, in training
    rows, row_ids = (torch.nn.utils.rnn.pad_sequence(value[real].split(lengths), batch_first=True) for value in (x, ids))
    torch.manual_seed(5)
    mask = torch.arange(3)[None] < torch.tensor(lengths)[:, None]
    alone, aux = layer(rows, mask, row_ids)
    torch.testing.assert_close(packed[real], alone[mask], rtol=0, atol=1e-12)
    assert packed[~real].abs().max() == 0
    for key, loss in aux.losses.items():
        torch.testing.assert_close(packed_aux.losses[key], loss, rtol=0, atol=1e-12)


@every_layer
def test_where_causality_is_claimed_later_tokens_change_nothing(name, options):
    layer, x = build(name, options), states(*MASK.shape)
    if not layer.causal:
        pytest.skip("not claimed")
    changed = torch.cat([x[:, :2], states(3, 3, seed=9)], 1)
    later, _ = call(layer, changed, MASK)
    torch.testing.assert_close(later[:, :2], call(layer, x, MASK)[0][:, :2], rtol=0, atol=1e-12)


@every_router
def test_the_numbering_of_experts_does_not_matter(name, options):
    if name in FIXED_NUMBERS:
        pytest.skip(FIXED_NUMBERS[name])
    layer, x = build(name, options), states(*MASK.shape)
    y, aux = call(layer, x, MASK)
    order = torch.tensor([2, 0, 3, 1])
    of_experts = [value for value in (*layer.router.state_dict().values(), *layer.experts.state_dict().values()) if value.shape[:1] == (4,)]
    assert len(of_experts) > len(layer.experts.state_dict())
    with torch.no_grad():
        for value in of_experts:
            value.copy_(value[order].clone())
    renumbered, renumbered_aux = call(layer, x, MASK)
    torch.testing.assert_close(renumbered, y, rtol=0, atol=1e-12)
    assert torch.equal(renumbered_aux.load, aux.load[order])
    for key, loss in aux.losses.items():
        torch.testing.assert_close(renumbered_aux.losses[key], loss, rtol=0, atol=1e-12)


@every_layer
def test_with_one_expert_it_is_that_expert_times_a_gate(name, options):
    layer, x = build(name, options, experts=1), states(*MASK.shape)
    y, aux = call(layer, x, MASK)
    change = layer.experts(x[MASK], torch.tensor([MASK.sum()]))
    if aux.routing is None:  # layers that mix tokens or parameters have nothing to mix
        if name != "soft_moe":
            torch.testing.assert_close(y[MASK], change, rtol=1e-10, atol=1e-11)
        return
    weight = torch.zeros(int(MASK.sum()), dtype=x.dtype).index_put((aux.routing.token,), aux.routing.weight.detach(), accumulate=True)
    torch.testing.assert_close(y[MASK], weight[:, None] * change, rtol=1e-10, atol=1e-11)
    if "balance" in aux.losses and name not in OWN_BALANCE:
        assert aux.losses["balance"].item() == pytest.approx(1, abs=1e-12)


@every_router
def test_the_balance_loss_is_1_where_the_router_is_uniform_and_more_where_it_is_not(name, options):
    layer, x = build(name, options), states(*MASK.shape)
    if "balance" not in layer.router.losses or name in OWN_BALANCE:
        pytest.skip("no balance loss, or one of its own")
    trained = call(layer, x.sign(), MASK)[1].losses["balance"]
    for parameter in layer.router.parameters():
        torch.nn.init.constant_(parameter, 0.0 if parameter.ndim else 1.0)
    _, aux = call(layer, x, MASK)
    torch.testing.assert_close(aux.probs, torch.full_like(aux.probs, 1 / 4), rtol=0, atol=1e-6)
    assert aux.losses["balance"].item() == pytest.approx(1, abs=1e-6)
    if name != "damoe":  # whose attention, here, lets every token see all experts: even whatever the router says
        assert trained.item() != pytest.approx(1, abs=1e-9)


def resumed(name, options, steps, stop=None):
    """Train a few steps; at ``stop`` everything is written to bytes and read into a new layer."""

    def start(seed):
        layer = build(name, options, seed=seed).float().train()
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        return layer, torch.optim.AdamW(parameters, lr=0.05)

    layer, optimiser = start(1)
    for step in range(steps):
        if step == stop:
            buffer = io.BytesIO()
            torch.save([layer.state_dict(), optimiser.state_dict()], buffer)
            buffer.seek(0)
            layer, optimiser = start(99)
            for part, state in zip((layer, optimiser), torch.load(buffer, weights_only=True), strict=True):
                part.load_state_dict(state)
        optimiser.zero_grad()
        y, aux = call(layer, states(3, 4, seed=step).float())
        (y.square().mean() + sum(aux.losses.values())).backward()
        optimiser.step()
        layer.after_optimizer_step()
    return layer


@every_layer
def test_saved_loaded_and_resumed_it_is_the_same_bit_for_bit(name, options):
    whole, continued = resumed(name, options, 4), resumed(name, options, 4, stop=2)
    assert whole.state_dict().keys() == continued.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[key]), key
    assert not torch.equal(next(whole.experts.parameters()), next(build(name, options).float().experts.parameters()))
    x = states(*MASK.shape).float()
    assert torch.equal(call(whole.eval(), x, MASK)[0], call(continued.eval(), x, MASK)[0])


@every_layer
def test_two_runs_are_the_same_bit_for_bit(name, options):
    x = states(*MASK.shape).float()
    runs = []
    for _ in range(2):
        layer = build(name, options).float().train()
        runs.append(gradients(layer, lambda x, mask, layer=layer: call(layer, x, mask), x, MASK))
    (y, first), (again, second) = runs
    assert torch.equal(y, again)
    for key, gradient in first.items():
        assert gradient is second[key] or torch.equal(gradient, second[key]), key


@every_layer
def test_bf16_is_close_to_fp32_and_routes_the_same(name, options):
    if name in ROUNDED:
        pytest.skip(ROUNDED[name])
    layer, x = build(name, options).float(), states(4, 8).float()
    exact, aux = call(layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, rough_aux = call(layer, x)
    assert torch.equal(aux.probs, rough_aux.probs)
    if aux.routing is not None:
        assert torch.equal(aux.routing.expert, rough_aux.routing.expert)
        assert torch.equal(aux.routing.weight, rough_aux.routing.weight)
    assert 0 < ((rough - exact).norm() / exact.norm()).item() < 0.02


@every_layer
def test_nan_raises_with_the_layers_name(name, options):
    if name in BLIND or name == "dense":
        pytest.skip("does not look at the hidden states")
    x = states(*MASK.shape)
    x[0, 1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="the layer"):
        call(build(name, options), x, MASK)


@every_layer
def test_identity_experts_change_nothing(name, options):
    y, _ = call(build(name, options, identity=True), states(*MASK.shape), MASK)
    assert torch.equal(y, torch.zeros_like(y))


@every_layer
def test_frozen_it_stays_bit_for_bit_and_still_passes_gradients_to_the_tokens(name, options):
    layer = build(name, options).float().train().requires_grad_(False)
    x = states(*MASK.shape).float().requires_grad_()
    y, _ = call(layer, x, MASK)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient[MASK].abs().max() > 0
    before = copy.deepcopy(layer.state_dict())
    layer.after_optimizer_step()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


HEADS = 2
PLACED = {"random": "hashes positions", "damoe": "looks up positions and counts tokens in attention"}
"""Routers to which a sub-token is no token of a longer sequence; `test_multi_head.py` says what it is to them."""


def multi_head(name, options):
    inner = build(name, options)
    torch.manual_seed(2)
    return MultiHead(HEADS * D, inner, "multi-head layer", heads=HEADS).double().eval()


def wide_states(*shape, seed=0):
    return torch.cat([states(*shape, seed=seed), states(*shape, seed=seed + 100)], -1)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_to_a_layer_inside_multi_head_a_row_is_a_sequence_of_sub_tokens(name, options, training):
    layer, x = multi_head(name, options).train(training), wide_states(*MASK.shape)
    if name in PLACED and not (name == "random" and training):
        pytest.skip(PLACED[name])
    start = copy.deepcopy(layer.state_dict())
    y, aux = call(layer, x, MASK)
    layer.load_state_dict(start)  # counters, in training
    ids, attention = (value.repeat_interleave(HEADS, -1) for value in known(x, MASK))
    sub_tokens = layer.head(x).reshape(len(x), -1, D)
    torch.manual_seed(5)
    alone, expected = layer.inner(sub_tokens, MASK.repeat_interleave(HEADS, 1), ids, attention.repeat_interleave(HEADS, -2))
    merged = torch.where(MASK[..., None], layer.merge(alone.reshape(x.shape)), 0)
    torch.testing.assert_close(y, merged, rtol=0, atol=1e-12)
    assert aux.heads == HEADS
    assert len(aux.probs) == HEADS * MASK.sum()
    torch.testing.assert_close(aux.probs, expected.probs)
    assert torch.equal(aux.load, expected.load)
    assert aux.losses.keys() == expected.losses.keys()
    for key, loss in aux.losses.items():
        torch.testing.assert_close(loss, expected.losses[key], rtol=0, atol=1e-12)


@every_layer
def test_multi_head_around_it_trains(name, options):
    layer, x = multi_head(name, options).train(), wide_states(*MASK.shape).requires_grad_()
    y, aux = call(layer, x, MASK)
    feels = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    ((y * feels).sum() + sum(aux.losses.values())).backward()
    assert x.grad[MASK].abs().max() > 0
    for key, parameter in layer.named_parameters():
        if key.startswith(("head.", "merge.", "inner.experts.")):
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key
    before = copy.deepcopy(layer.inner.state_dict())
    layer.after_optimizer_step()
    hooked = {key for key, value in layer.inner.state_dict().items() if not torch.equal(value, before[key])}
    layer.inner.load_state_dict(before)
    layer.inner.after_optimizer_step()
    assert hooked == {key for key, value in layer.inner.state_dict().items() if not torch.equal(value, before[key])}


@every_layer
def test_multi_head_around_it_is_as_causal_as_it_is_and_depends_on_no_batch_mate(name, options):
    layer, x = multi_head(name, options), wide_states(*MASK.shape)
    assert layer.causal == layer.inner.causal
    assert layer.needs_attention == layer.inner.needs_attention
    together, _ = call(layer, x, MASK)
    for row in range(len(MASK)):
        torch.testing.assert_close(call(layer, x[row : row + 1], MASK[row : row + 1])[0], together[row : row + 1], rtol=0, atol=1e-12)
    if layer.causal:
        changed = torch.cat([x[:, :2], wide_states(3, 3, seed=9)], 1)
        torch.testing.assert_close(call(layer, changed, MASK)[0][:, :2], together[:, :2], rtol=0, atol=1e-12)


@every_layer
def test_multi_head_around_it_takes_a_batch_without_tokens(name, options):
    layer, mask = multi_head(name, options).train(), torch.zeros(2, 3, dtype=torch.bool)
    y, aux = call(layer, torch.zeros(2, 3, HEADS * D, dtype=torch.float64), mask)
    (y.sum() + sum(aux.losses.values())).backward()
    assert not y.any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert (len(aux.probs), int(aux.load.sum()), aux.dropped) == (0, 0, 0)
