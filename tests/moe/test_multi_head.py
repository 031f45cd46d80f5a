"""Multi-Head MoE: public code's arrays, a loop over sub-tokens and experts, and what head, merge, residual and shared experts are."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moebench.models import shapes
from moebench.models.decoder import Decoder
from moebench.moe import FactorisedExperts, MoELayer, SwiGLUExperts, build_layer, build_router
from moebench.moe.layers.aoe import AoE
from moebench.moe.multi_head import MultiHead
from moebench.moe.routers.damoe import DAMoE
from moebench.moe.routers.mhmoe_topk import MHMoETopK
from moebench.moe.routers.random import Random

GOLDEN = Path(__file__).parents[1] / "golden" / "mhmoe_layer.npz"
CASES = ("fx_h3k2", "fx_h1k2", "case00", "case01", "case02", "case03", "case04")
D, E, INNER = 24, 5, 7


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def official(data):
    """The layer of a case, with its weights."""
    d, heads, experts, k, inner = (int(data[key]) for key in ("d", "heads", "E", "top_k", "ffn_dim"))
    router = MHMoETopK(d // heads, experts, k=k, dim=16 if data["use_xmoe"] else None, eval_capacity_factor=1.0)
    networks = SwiGLUExperts(experts, d // heads, inner, subln=bool(data["subln"]))
    maps = int("head/weight" in data)
    layer = MultiHead(d, MoELayer(router, networks), heads=heads, head_layers=maps, merge_layers=maps)
    weights = {f"{side}.0.{part}": data[f"{side}/{part}"] for side in ("head", "merge") for part in ("weight", "bias") if maps}
    weights |= {"inner.router.embedding": data["gate/wg"]}
    if data["use_xmoe"]:
        weights["inner.router.projection.weight"] = data["gate/wg_reduction"]
    names = {"gate_weight": "fc3_weight", "up_weight": "fc1_weight", "down_weight": "fc2_weight", "norm_weight": "ffn_layernorm_weight"}
    weights |= {f"inner.experts.{ours}": data[f"experts/{theirs}"] for ours, theirs in names.items() if f"experts/{theirs}" in data}
    layer.load_state_dict(weights)
    layer.after_optimizer_step()  # there each forward pass puts the embeddings to their norm
    return layer.train(bool(data["train"]))


def close(ours, theirs, relative):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * (1 + theirs.abs().max().item()))


@pytest.mark.parametrize("case", CASES)
def test_public_code(case):
    data = golden(case)
    layer, x, k = official(data), data["x"].clone().requires_grad_(), int(data["top_k"])
    y, aux = layer(x)
    torch.testing.assert_close(y, data["y"], rtol=0, atol=1e-5)
    assert aux.losses["balance"].item() == pytest.approx(data["aux"].item(), abs=1e-5)
    assert torch.equal(aux.routing.scores.topk(k).indices, data["top_index"])
    assert torch.equal(aux.routing.token, data["kept"].nonzero()[:, 0])
    assert torch.equal(aux.routing.expert, data["top_index"][data["kept"]])
    assert aux.dropped == (~data["kept"]).sum()
    assert aux.dropped / data["kept"].numel() == pytest.approx(data["dropped_fraction"].item(), abs=1e-6)
    if "upstream" not in data:
        return
    torch.testing.assert_close(aux.routing.scores, data["router_logits"], rtol=0, atol=1e-5)
    ((y * data["upstream"]).sum() + aux.losses["balance"]).backward()
    close(x.grad, data["grad_x"], 1e-4)
    close(layer.router.embedding.grad, data["grad_wg"], 1e-4)
    if data["heads"] > 1:
        close(layer.head[0].weight.grad, data["grad_head_weight"], 1e-4)
        close(layer.merge[0].weight.grad, data["grad_merge_weight"], 1e-4)


def test_every_case_drops_something():
    assert all(golden(case)["dropped_fraction"] > 0 for case in CASES)


def multi_head(heads=3, k=2, dim=None, seed=0, capacity=1.0, **options):
    """A layer in fp64 with weights far from 0."""
    torch.manual_seed(seed)
    router = MHMoETopK(D // heads, E, k=k, dim=dim, capacity_factor=capacity)
    layer = MultiHead(D, MoELayer(router, SwiGLUExperts(E, D // heads, INNER)), heads=heads, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    layer.after_optimizer_step()
    return layer


def states(*size, seed=0):
    return torch.randn(*size, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(side, x):
    for part in side:
        x = part.weight @ x + part.bias if isinstance(part, torch.nn.Linear) else x.clamp(min=0)
    return x


def one_by_one(layer, x_TD, k, dim, limited):
    """Equations 3 to 9, a sub-token and an expert at a time; returns y and the balance loss."""
    heads, width = layer.heads, D // layer.heads
    split = [maps(layer.head, x)[h * width : (h + 1) * width] for x in x_TD for h in range(heads)]
    e = layer.router.embedding
    if dim is None:
        scores = [[sub @ e[i] for i in range(E)] for sub in split]
    else:
        scores = [[(layer.router.projection.weight @ sub) @ e[i] / e[i].norm() for i in range(E)] for sub in split]
    probs = [torch.stack(row).exp() / torch.stack(row).exp().sum() for row in scores]
    ranked = [sorted(range(E), key=lambda i, p=p: -p[i].item()) for p in probs]
    taken, out = [0] * E, [sub if layer.residual else torch.zeros_like(sub) for sub in split]
    for choice in range(k):
        for u, sub in enumerate(split):
            i = ranked[u][choice]
            taken[i] += 1
            if limited and taken[i] > int(0.75 * k * math.ceil(len(split) / E)):
                continue
            gate, up, down = (getattr(layer.experts, f"{name}_weight")[i] for name in ("gate", "up", "down"))
            out[u] = out[u] + probs[u][i] * (down @ (F.silu(gate @ sub) * (up @ sub)))
    share = [sum(row[0] == i for row in ranked) / len(split) for i in range(E)]
    balance = E * sum(share[i] * torch.stack(probs)[:, i].mean() for i in range(E))
    merged = [maps(layer.merge, torch.cat(out[t * heads : (t + 1) * heads])) for t in range(len(x_TD))]
    return torch.stack(merged), balance


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dim", [None, 6])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_equals_a_loop_with_gradients(heads, k, dim, training):
    more = {"residual": k == 2, "head_layers": 2 if heads == 3 else 1, "merge_layers": 3 if heads == 6 else 1}
    layer, x = multi_head(heads, k, dim, capacity=0.75, **more), states(9, seed=heads)

    def vectorised(x_TD):
        y, aux = layer.train(training)(x_TD[None])
        return y[0], aux.losses["balance"]

    found = []
    for run in (vectorised, lambda x_TD: one_by_one(layer, x_TD, k, dim, training)):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        y, balance = run(leaf)
        ((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + balance).backward()
        found.append([y.detach(), balance.detach(), leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert layer.train()(x[None])[1].dropped > 0
    assert layer.eval()(x[None])[1].dropped == 0  # by default


def test_with_one_head_and_no_maps_it_is_the_inner_layer_bit_for_bit():
    torch.manual_seed(0)
    inner = MoELayer(build_router("topk", D, E, {}), SwiGLUExperts(E, D, INNER))
    layer, x = MultiHead(D, inner, heads=1, head_layers=0, merge_layers=0), states(2, 9).float()
    results = [each(x) for each in (layer, inner)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1].routing.weight, results[1][1].routing.weight)
    assert layer.state_dict().keys() == {f"inner.{key}" for key in inner.state_dict()}
    assert results[0][1].heads == results[1][1].heads == 1


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 24])
def test_merging_undoes_splitting(heads):
    """Experts of zeros, with the residual: sub-tokens come back as they were."""
    layer = multi_head(heads, residual=True, head_layers=0, merge_layers=0)
    torch.nn.init.zeros_(layer.experts.down_weight)
    x = states(2, 9)
    assert torch.equal(layer(x)[0], x)


def test_experts_that_say_nothing_leave_the_merge_bias_or_with_the_residual_both_maps():
    code, paper, x = multi_head(), multi_head(residual=True), states(2, 9)
    for layer in (code, paper):
        torch.nn.init.zeros_(layer.experts.down_weight)
    torch.testing.assert_close(code(x)[0], code.merge[0].bias.expand_as(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(paper(x)[0], paper.merge(paper.head(x)), rtol=0, atol=1e-13)


def test_inside_are_the_contiguous_parts_of_a_token_one_after_the_other():
    layer, x = multi_head(3, head_layers=0), states(2, 4)
    seen = []
    layer.router.register_forward_pre_hook(lambda router, given: seen.append(given[0]))
    mask, ids = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.bool), torch.arange(8).view(2, 4)
    attention = torch.rand(2, 5, 4, 4)
    _, aux = layer(x, mask, ids, attention)
    (inputs,) = seen
    assert torch.equal(inputs.tokens, torch.stack([token[8 * h : 8 * h + 8] for token in x[mask] for h in range(3)]))
    assert inputs.token_ids.tolist() == [i for i in (0, 1, 2, 3, 5, 6) for _ in range(3)]
    assert inputs.sequence_ids.tolist() == [0] * 12 + [1] * 6
    assert inputs.positions.tolist() == [i for i in (0, 1, 2, 3, 1, 2) for _ in range(3)]
    assert torch.equal(inputs.attention, attention.transpose(1, 2)[mask].repeat_interleave(3, 0))
    assert inputs.heads == aux.heads == 3
    assert len(aux.probs) == len(aux.routing.scores) == 18
    assert int(aux.load.sum()) == len(aux.routing.token) == 2 * 18 - aux.dropped
    assert aux.routing.token.max() == 17


def test_balance_is_1_where_the_router_is_uniform():
    layer = multi_head(4)
    torch.nn.init.zeros_(layer.router.embedding)
    assert layer(states(2, 9))[1].losses["balance"].item() == pytest.approx(1, abs=1e-12)


def test_how_it_starts():
    torch.manual_seed(0)
    layer = MultiHead(96, MoELayer(MHMoETopK(24, 4), SwiGLUExperts(4, 24, 8)), heads=4, head_layers=2, merge_layers=3)
    assert [type(part).__name__ for part in layer.head] == ["Linear", "ReLU", "Linear"]
    assert [type(part).__name__ for part in layer.merge] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    bound = math.sqrt(6 / (96 + 96))  # of Xavier's uniform
    for side, gain in ((layer.head, 2**-0.5), (layer.merge, 1.0)):
        for one in side[::2]:
            assert one.weight.abs().max().item() == pytest.approx(gain * bound, rel=0.01)
            assert one.weight.std().item() == pytest.approx(gain * bound / math.sqrt(3), rel=0.05)
    assert all(0 < one.bias.abs().max() <= 96**-0.5 for one in layer.head[::2])
    assert not any(one.bias.any() for one in layer.merge[::2])


def test_shared_experts_see_whole_tokens():
    shared = SwiGLUExperts(2, D, 9)
    with_shared, without, x = multi_head(shared=shared), multi_head(), states(2, 9)
    without.load_state_dict({key: value for key, value in with_shared.state_dict().items() if not key.startswith("shared.")})
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    (y, aux), (alone, _) = with_shared(x, mask), without(x, mask)
    both = sum((F.silu(x @ shared.gate_weight[i].T) * (x @ shared.up_weight[i].T)) @ shared.down_weight[i].T for i in range(2))
    torch.testing.assert_close(y[mask] - alone[mask], both[mask])
    assert not y[~mask].any()
    assert aux.load.sum() == 2 * 3 * 13 - aux.dropped  # of the routed ones


def test_operations():
    layer = multi_head(3, head_layers=2, merge_layers=1)
    assert layer.flops_per_row == 2 * 3 * 8 * INNER
    assert layer.overhead(10, 2) == 2 * 10 * (3 * D**2 + 3 * 8 * E)  # three maps, and the router once a sub-token
    smear = MultiHead(D, build_layer("smear", 8, SwiGLUExperts(E, 8, INNER), {}), heads=3, head_layers=0, merge_layers=0)
    assert smear.overhead(10, 2) == smear.inner.overhead(30, 2)  # whose cost is a sequence's
    aoe = MultiHead(D, AoE(8, FactorisedExperts(E, 8, 4, INNER)), heads=3)
    assert aoe.flops_per_row == 2 * (4 * INNER + 2 * 8 * INNER)
    assert aoe.overhead(10, 2) == 2 * 10 * (2 * D**2 + 3 * E * 4 * 8)
    assert not hasattr(aoe, "router")
    assert aoe.losses == ("balance", "entropy")
    assert aoe.experts is aoe.inner.experts


def test_sub_tokens_draw_apart_at_random():
    torch.manual_seed(0)
    router = Random(6, 5, granularity="token").eval()
    layer = MultiHead(D, MoELayer(router, SwiGLUExperts(5, 6, 4)).eval(), heads=4).eval()
    x, ids = states(40, 5).float(), torch.arange(200).view(40, 5)
    expert = layer(x, None, ids)[1].routing.expert.view(200, 4)
    assert torch.equal(expert, layer(x, None, ids)[1].routing.expert.view(200, 4))
    same = sum((expert[:, i] == expert[:, j]).double().mean() for i in range(4) for j in range(i)) / 6
    assert same.item() == pytest.approx(1 / 5, abs=0.06)
    alone = layer(x[7:8], None, ids[7:8])[1].routing.expert.view(5, 4)
    assert torch.equal(alone, expert[35:40])


@pytest.mark.parametrize("importance", ["query", "key", "entropy"])
def test_sub_tokens_are_as_important_as_their_token(importance):
    torch.manual_seed(0)
    router = DAMoE(8, E, importance=importance)
    layer, whole = MultiHead(D, MoELayer(router, SwiGLUExperts(E, 8, 4)), heads=3), DAMoE(D, E, importance=importance)
    x, mask = states(2, 6).float(), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    attention = (5 * torch.rand(2, 2, 6, 6)).masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    expected = MoELayer(whole, SwiGLUExperts(E, D, 4))(x, mask, None, attention)[1].routing.token.bincount()
    assert len(set(expected.tolist())) > 1
    found = layer(x, mask, None, attention)[1].routing.token.bincount()
    assert torch.equal(found, expected.repeat_interleave(3))


def decoder(k, eval_capacity, seed):
    torch.manual_seed(seed)
    shape = shapes.Decoder(layers=2, width=D, heads=2, inner=8, context=16)

    def layer(block):
        return MultiHead(D, MoELayer(MHMoETopK(D // 3, E, k=k, eval_capacity_factor=eval_capacity), SwiGLUExperts(E, D // 3, 8)), heads=3)

    made = Decoder(shape, 50, layer)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@torch.no_grad()
def leaks(k, eval_capacity):
    """In how many of ten decoders the last of 16 tokens changes what stands before it."""
    count = 0
    for seed in range(10):
        made, ids = decoder(k, eval_capacity, seed), torch.randint(50, (1, 16), generator=torch.Generator().manual_seed(seed))
        other = ids.clone()
        other[0, -1] = (ids[0, -1] + 1) % 50
        before, after = made(ids)[0][0, :-1], made(other)[0][0, :-1]
        count += (before - after).abs().max().item() > 1e-4
        assert all(layer.causal == (eval_capacity is None) for layer in made.layers)
    return count


def test_the_public_capacity_in_evaluation_looks_ahead_with_more_than_one_choice():
    """All first choices queue before all second ones, so a later token takes an earlier one's place; nothing of this without a limit."""
    assert leaks(1, 1.0) == 0
    assert leaks(2, 1.0) > 5
    assert leaks(3, 1.0) > 5
    assert leaks(1, None) == leaks(2, None) == leaks(3, None) == 0


def test_a_step_of_training_and_its_hook():
    layer = multi_head(3, dim=6).float()
    start = copy.deepcopy(layer.state_dict())
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.05)
    y, aux = layer(states(2, 9).float())
    (y.square().mean() + aux.losses["balance"]).backward()
    optimiser.step()
    layer.after_optimizer_step()
    torch.testing.assert_close(layer.router.embedding.norm(dim=1), torch.full((E,), 1.5))
    assert all(not torch.equal(value, start[key]) for key, value in layer.state_dict().items())


def test_what_does_not_fit_is_refused():
    def inner(width, shared=None):
        return MoELayer(MHMoETopK(width, E), SwiGLUExperts(E, width, INNER), shared=shared)

    with pytest.raises(ValueError, match="heads 5: should be at least 1 and divide the width, 24"):
        MultiHead(D, inner(4), heads=5)
    with pytest.raises(ValueError, match="heads 0"):
        MultiHead(D, inner(4), heads=0)
    with pytest.raises(ValueError, match="head_layers 4: should be at least 0 and at most 3"):
        MultiHead(D, inner(8), heads=3, head_layers=4)
    with pytest.raises(ValueError, match="merge_layers -1"):
        MultiHead(D, inner(8), heads=3, merge_layers=-1)
    with pytest.raises(ValueError, match="heads 3: the inner layer is of width 24, and should be of width 24 / 3"):
        MultiHead(D, inner(D), heads=3)
    with pytest.raises(ValueError, match="the inner layer has shared experts"):
        MultiHead(D, inner(8, SwiGLUExperts(1, 8, INNER)), heads=3)
    layer = MultiHead(D, MoELayer(MHMoETopK(8, E), SwiGLUExperts(E, 8, INNER), "inside"), heads=3)
    with pytest.raises(FloatingPointError, match="inside"):
        layer(torch.full((1, 2, D), torch.nan))
    with pytest.raises(ValueError, match="without subln"):
        AoE(D, SwiGLUExperts(E, D, INNER, subln=True), node="output")
