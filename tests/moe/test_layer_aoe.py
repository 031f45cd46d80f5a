"""Autonomy-of-Experts against loops over tokens and experts, against experts with given choices, and what its losses teach."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from moebench.models.matching import widened
from moebench.moe import FactorisedExperts, MoELayer, ResidualExperts, Router, SwiGLUExperts, build_layer, build_router
from moebench.moe.layers.aoe import AoE

D, L, INNER, E = 8, 3, 12, 4
NODES = ("gate", "up", "activated", "product", "output")
LENGTHS = (5, 2, 1)
MASK = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]


def factorised(count=E):
    return FactorisedExperts(count, D, L, INNER)


def swiglu(count=E):
    return SwiGLUExperts(count, D, INNER)


def build(make=factorised, **options):
    torch.manual_seed(1)
    layer = AoE(D, make(), "the layer", **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def states(*shape, seed=0):
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inside(experts, e, x_D):
    """All activations of an expert for one token."""
    found = {"gate": experts.gate_weight[e] @ x_D} if isinstance(experts, SwiGLUExperts) else {"reduced": experts.reduce_weight[e] @ x_D}
    if "reduced" in found:
        found["gate"] = experts.gate_weight[e] @ found["reduced"]
    found["up"] = experts.up_weight[e] @ x_D
    found["activated"] = found["gate"] * found["gate"].sigmoid()
    found["product"] = found["activated"] * found["up"]
    return found | {"output": experts.down_weight[e] @ found["product"]}


def length(values, norm):
    return {"l2": values.square().sum().sqrt(), "l1": values.abs().sum(), "linf": values.abs().max()}[norm]


def choice(layer, norms, groups):
    """Pairs of token and expert."""
    rows = norms.detach().tolist()
    probs = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in rows]
    if layer.selection == "top_k":
        return {(t, e) for t, row in enumerate(rows) for e in sorted(range(E), key=lambda e, row=row: -row[e])[: layer.k]}
    if layer.selection == "expert_choice":
        return {
            (t, e)
            for group in groups
            for e in range(E)
            for t in sorted(group, key=lambda t, e=e: -probs[t][e])[: math.ceil(layer.capacity_factor * len(group) / E)]
        }
    chosen = set()
    for t, row in enumerate(probs):
        mass = 0.0
        for e in sorted(range(E), key=lambda e, row=row: -row[e]):
            if mass <= layer.threshold:
                chosen.add((t, e))
            mass += row[e]
    return chosen


def by_loop(layer, tokens_TD, groups):
    """Algorithm 2, a token and an expert at a time; also the losses."""
    activations = [[inside(layer.experts, e, x_D) for e in range(E)] for x_D in tokens_TD]
    norms = torch.stack([torch.stack([length(of[layer.node], layer.norm) for of in row]) for row in activations])
    chosen, rows = choice(layer, norms, groups), []
    for t, row in enumerate(activations):
        mine = [e for e in range(E) if (t, e) in chosen]
        total = sum(norms[t, e].exp() for e in (mine if layer.weights == "kept" else range(E)))
        rows.append(sum((norms[t, e].exp() / total * row[e]["output"] for e in mine), torch.zeros_like(tokens_TD[0])))
    probs = norms.exp() / norms.exp().sum(1, keepdim=True)
    share = [sum(e == other for _, other in chosen) / len(chosen) for e in range(E)]
    losses = {
        "balance": E * sum(share[e] * probs[:, e].mean() for e in range(E)),
        "entropy": -(probs * probs.log()).sum() / len(probs),
    }
    return torch.stack(rows), norms, losses


def of_batch(training, group):
    return [range(8)] if training and group == "batch" else [range(5), range(5, 7), range(7, 8)]


CASES = [
    *({"weights": weights, "selection": selection} for weights in ("kept", "all") for selection in ("top_k", "top_p", "expert_choice")),
    *({"node": node, "k": k} for node in NODES for k in (1, 3)),
    *({"node": node, "norm": norm} for node in ("reduced", "product") for norm in ("l1", "linf")),
    {"selection": "expert_choice", "group": "sequence", "capacity_factor": 1.3, "weights": "kept"},
    {"selection": "top_p", "threshold": 0.9, "node": "output"},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [factorised, swiglu])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_equals_a_loop_over_tokens_and_experts_with_gradients(options, make, training):
    if make is swiglu and options.get("node", "reduced") == "reduced":
        pytest.skip("has no reduction")
    layer = build(make, **options).train(training)
    x = states(*MASK.shape)
    ours, theirs = x.clone().requires_grad_(), x[MASK].requires_grad_()
    y, aux = layer(ours, MASK)
    rows, norms, losses = by_loop(layer, theirs, of_batch(training, layer.group))
    torch.testing.assert_close(y[MASK], rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(aux.routing.scores, norms, rtol=0, atol=1e-12)
    torch.testing.assert_close(aux.probs, norms.softmax(-1), rtol=0, atol=1e-12)
    upstream = states(len(rows), seed=7)
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad((y[MASK] * upstream).sum() + sum(aux.losses.values()), [ours, *parameters.values()])
    expected = torch.autograd.grad((rows * upstream).sum() + sum(losses.values()), [theirs, *parameters.values()])
    for key, value in losses.items():
        torch.testing.assert_close(aux.losses[key], value, rtol=0, atol=1e-12)
    for key, one, other in zip(("x", *parameters), (found[0][MASK], *found[1:]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("options", [{}, {"weights": "all"}, {"selection": "top_p"}, {"selection": "expert_choice"}], ids=str)
def test_gradients_are_those_of_finite_differences(options):
    layer, x = build(**options).eval(), states(1, 3).requires_grad_()
    chosen = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(chosen, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *chosen.values()), eps=1e-7, atol=1e-5, fast_mode=True)


class Given(Router):
    """Decides as it is told."""

    def forward(self, inputs):
        return self.routing


def test_it_is_factorised_experts_and_swiglu_experts_with_that_choice():
    """The same experts behind any router that chooses and weights so; and SwiGLU whose gate is W_down · W_up multiplied out."""
    layer, x = build(), states(2, 5)
    y, aux = layer(x)
    for experts in (layer.experts, SwiGLUExperts(E, D, INNER).double()):
        if experts is not layer.experts:
            with torch.no_grad():
                experts.gate_weight.copy_(torch.stack([layer.experts.gate_weight[e] @ layer.experts.reduce_weight[e] for e in range(E)]))
                experts.up_weight.copy_(layer.experts.up_weight)
                experts.down_weight.copy_(layer.experts.down_weight)
        router = Given(D, E)
        router.routing = aux.routing
        torch.testing.assert_close(MoELayer(router, experts)(x)[0], y, rtol=0, atol=1e-13)
        torch.testing.assert_close(experts.gate_EFD, layer.experts.gate_EFD, rtol=0, atol=1e-13)


@pytest.mark.parametrize("weights", ["kept", "all"])
def test_who_teaches_the_experts_that_lost(weights):
    """The task teaches the chosen alone, or with weights over all norms everyone's reduction; the balance loss teaches everyone."""
    layer, x = build(weights=weights), states(1, 1)
    y, aux = layer(x)
    lost = sorted(set(range(E)) - set(aux.routing.expert.tolist()))
    assert len(lost) == E - 2
    grads = torch.autograd.grad(y.square().sum(), list(layer.experts.parameters()), retain_graph=True)
    names = [name for name, _ in layer.experts.named_parameters()]
    for name, grad in zip(names, grads, strict=True):
        largest = grad[lost].abs().amax((1, 2))
        if name == "reduce_weight" and weights == "all":
            assert largest.min() > 0
        else:
            assert largest.max() == 0
    (of_balance,) = torch.autograd.grad(aux.losses["balance"], layer.experts.reduce_weight)
    assert of_balance.abs().amax((1, 2)).min() > 0


def test_the_balance_loss_is_1_when_even_and_entropy_is_log_of_the_number_of_experts():
    layer, x = build(k=3), states(2, 5)
    torch.nn.init.zeros_(layer.experts.reduce_weight)
    losses = layer(x)[1].losses
    assert losses["balance"].item() == pytest.approx(1, abs=1e-12)
    assert losses["entropy"].item() == pytest.approx(math.log(E), abs=1e-12)
    y = layer(x)[0].square().sum()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y, list(layer.parameters())))


def test_norms_far_apart_do_not_overflow():
    """Where the softmax of a chosen expert is 0 its weight is still one among the chosen."""
    layer, x = build(selection="expert_choice").eval(), states(1, 3).abs()
    with torch.no_grad():
        layer.experts.reduce_weight.fill_(1)
        layer.experts.reduce_weight.mul_(torch.tensor([1e5, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None, None])
    y, aux = layer(x)
    assert aux.probs[:, 1:].max() == 0
    for token in range(3):
        weights = aux.routing.weight[aux.routing.token == token]
        assert weights.sum().item() == pytest.approx(1) or not len(weights)
    assert y.isfinite().all()
    one = build(k=3)
    one.experts.load_state_dict({key: value / 100 for key, value in layer.experts.state_dict().items()})
    assert one(x)[1].load[0] == 3
    assert one(x)[1].load.sum() == 9


def test_under_autocast_the_product_is_bf16_and_norms_and_weights_are_fp32():
    layer, x = build().float(), states(4, 8).float()
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, aux = layer(x)
        reduced_TEL = F.linear(x.view(-1, D), layer.experts.reduce_weight.flatten(0, 1)).view(-1, E, L)
    assert reduced_TEL.dtype == torch.bfloat16
    norms = reduced_TEL.double().square().sum(-1).sqrt()
    assert {aux.routing.scores.dtype, aux.routing.weight.dtype, aux.probs.dtype, aux.losses["balance"].dtype} == {torch.float32}
    torch.testing.assert_close(aux.routing.scores.double(), norms, rtol=1e-6, atol=0)
    kept = norms.gather(1, aux.routing.expert.view(-1, 2))
    assert torch.equal(kept.sort(1).values, norms.topk(2).values.sort(1).values)
    torch.testing.assert_close(aux.routing.weight.view(-1, 2).double(), kept.softmax(1), rtol=1e-5, atol=0)
    assert 0 < ((y - exact).norm() / exact.norm()).item() < 0.1


def test_fp64_stays_fp64_and_one_low_precision_model_has_exact_norms():
    assert build()(states(1, 4))[1].routing.scores.dtype == torch.float64
    y, aux = build().bfloat16()(states(1, 4).bfloat16())
    assert (y.dtype, aux.routing.scores.dtype) == (torch.bfloat16, torch.float32)


def test_causality_is_that_of_the_selection():
    assert build().causal
    assert build(selection="top_p").causal
    assert not build(selection="expert_choice").causal
    layer, x = build(selection="expert_choice").eval(), states(1, 6)
    later = torch.cat([x[:, :3], states(1, 3, seed=4)], 1)
    assert not torch.equal(layer(x)[0][:, :3], layer(later)[0][:, :3])


@pytest.mark.parametrize(
    ("options", "make", "message"),
    [
        ({"k": 5}, factorised, "k 5: should be at least 1 and at most the number of experts, 4"),
        ({"k": 0}, factorised, "k 0: "),
        ({"threshold": 0.0}, factorised, r"threshold 0\.0: should be above 0 and at most 1"),
        ({"capacity_factor": 0.0}, factorised, r"capacity_factor 0\.0: should be above 0"),
        ({}, swiglu, "node 'reduced': SwiGLUExperts has no such node; the experts should be FactorisedExperts$"),
        ({"node": "up"}, lambda: ResidualExperts(4, D, 12, 1), "node 'up': ResidualExperts has no such node"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, make, message):
    with pytest.raises(ValueError, match=message):
        AoE(D, make(), **options)


# ------------------------------------------------------------------------------------------------------------ operations


def counted(layer, x):
    """What torch counts of matrix products, where experts run as plain ones."""
    layer.experts.backend = "loop"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, aux = layer(x)
    return counter.get_total_flops(), layer.overhead(x.shape[0] * x.shape[1], x.shape[0]) + int(aux.load.sum()) * layer.flops_per_row


@pytest.mark.parametrize("make", [factorised, swiglu])
@pytest.mark.parametrize("node", ["reduced", *NODES])
def test_operations_are_those_that_torch_counts(node, make):
    if make is swiglu and node == "reduced":
        pytest.skip("has no reduction")
    found, ours = counted(build(make, node=node, selection="top_p"), states(2, 5))
    assert found == ours


@pytest.mark.parametrize("make", [factorised, swiglu])
@pytest.mark.parametrize(("router", "options"), [("topk", {}), ("norm", {"low": 3})])
def test_operations_behind_a_router_are_those_that_torch_counts(router, options, make):
    found, ours = counted(MoELayer(build_router(router, D, E, options), make()), torch.randn(2, 5, D))
    assert found == ours


@pytest.mark.parametrize(("low", "ratio"), [(64, 1.021), (128, 1.042), (256, 1.083), (512, 1.167)])
def test_operations_at_the_papers_size(low, ratio):
    """768 wide, 8 experts of 3072, K 2: AoE costs (E − K)·D·L more multiplications a token than experts behind a router do."""
    d, n, k, tokens = 768, 8, 2, 4
    with torch.device("meta"):
        moe = MoELayer(build_router("topk", d, n, {"k": k}), SwiGLUExperts(n, d, 3072))
        aoe = build_layer("aoe", d, FactorisedExperts(n, d, low, widened(d, 3072, low)), {"k": k})
    of_moe = k * tokens * moe.flops_per_row
    of_aoe = aoe.overhead(tokens, 1) + k * tokens * aoe.flops_per_row
    assert of_aoe / of_moe == pytest.approx(ratio, abs=5e-4)
    sizes = [sum(parameter.numel() for parameter in experts.parameters()) for experts in (aoe.experts, moe.experts)]
    assert of_aoe == of_moe + 2 * (n - k) * d * low * tokens + 2 * k * tokens * (sizes[0] - sizes[1]) // n
    assert sizes[0] == pytest.approx(sizes[1], rel=2e-4)  # exactly for 256 and 512, whose width is no fraction
    assert (sizes[0] == sizes[1]) == (low in (256, 512))


# --------------------------------------------------------------------------------------------------- the paper's toy


WIDTH = 64


def blob(centre, tokens, generator):
    return centre + 0.15 * torch.randn(1, tokens, WIDTH, generator=generator)


def toy(layer, seed):
    """(3 times, 3 classes, 2 experts) shares of a class's tokens: at the start, after two classes were learnt, after all three."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.ones(WIDTH)
    centres, head = (mean, -mean, 0 * mean), torch.nn.Linear(WIDTH, 3)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=3e-3)

    def shares():
        return torch.stack([layer(blob(centre, 200, generator))[1].load / 200 for centre in centres])

    found = [shares()]
    for classes in (2, 3):
        for _ in range(200):
            x = torch.cat([blob(centre, 48 // classes, generator) for centre in centres[:classes]], 1)
            loss = F.cross_entropy(head(layer(x)[0])[0], torch.arange(classes).repeat_interleave(48 // classes))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found.append(shares())
    return torch.stack(found)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_toy_of_appendix_b(seed):
    """Two opposite classes at one expert; the third, which comes later and lies between them, at the other.

    Norms are even functions, so opposite classes share an expert before much is learnt. The third is there too, until it is trained on: the
    paper says that its norms are higher at the idle expert by then.
    """
    torch.manual_seed(seed)
    _, two, three = toy(AoE(WIDTH, FactorisedExperts(2, WIDTH, WIDTH // 3, WIDTH), k=1), seed)
    busy = int(two[0].argmax())
    assert two[:2, busy].min() > 0.95
    assert two[2, busy] > 0.85
    assert three[:2, busy].min() > 0.95
    assert three[2, busy] < 0.2


def test_what_the_toy_shows_of_a_router_is_there_before_it_is_trained():
    """Scores without bias are odd functions: opposite classes are parted and what lies between is split."""
    torch.manual_seed(0)
    moe = MoELayer(build_router("topk", WIDTH, 2, {"k": 1, "normalise": False}), SwiGLUExperts(2, WIDTH, WIDTH))
    for parted, opposite, between in toy(moe, 0):
        assert (parted - opposite).abs().min() > 0.95
        assert 0.35 < between[0] < 0.65
