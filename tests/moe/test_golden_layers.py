"""Whole layers against outputs and gradients of public code: Autonomy-of-Experts, its top-k baseline, and TorchScale's layer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import MoELayer
from moebench.moe.experts import FactorisedExperts, FeedForwardExperts, SwiGLUExperts
from moebench.moe.layers.aoe import AoE
from moebench.moe.routers.gshard import GShard
from moebench.moe.routers.switch import Switch
from moebench.moe.routers.topk import TopK
from moebench.moe.routers.xmoe_torchscale import XMoETorchscale

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(file, case):
    with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def fill(module, values):
    state = module.state_dict()
    module.load_state_dict({key: values.get(key, state[key]) for key in state})
    assert not values.keys() - state.keys()


def close(ours, theirs, atol):
    """Up to ``atol`` as a share of 1 + the largest reference value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol * (1 + theirs.abs().max().item()))


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_topk_with_swiglu_experts(case):
    data = golden("moe_topk_swiglu_layer", case)
    n, d, hidden, k = (int(data[key]) for key in ("n", "d", "d_hidden", "K"))
    layer = MoELayer(TopK(d, n, k=k), SwiGLUExperts(n, d, hidden))
    fill(layer.router, {"embedding": data["gate"]})
    matrices = {"gate_weight": data["W_silu"], "up_weight": data["W_linear"], "down_weight": data["W_out"]}
    fill(layer.experts, {key: value.transpose(1, 2).contiguous() for key, value in matrices.items()})
    x = data["x"].clone().requires_grad_()
    y, aux = layer(x)
    torch.testing.assert_close(aux.routing.scores, data["router_logits"], rtol=0, atol=1e-5)
    chosen = aux.routing.expert.view(-1, k)
    assert torch.equal(chosen.sort(1).values, data["selected"].sort(1).values)
    torch.testing.assert_close(aux.routing.weight.view(-1, k).sort(1).values, data["weights"].sort(1).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(y, data["y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(k * aux.losses["balance"], data["aux"], rtol=0, atol=1e-5)  # there shares are over tokens and sum to K
    ((y * data["upstream"]).sum() + k * aux.losses["balance"]).backward()
    close(x.grad, data["grad_x"], 1e-4)
    close(layer.router.embedding.grad, data["grad_gate"], 1e-4)


@pytest.mark.parametrize("case", ["case00", "case01", "case02"])
def test_autonomy_of_experts(case):
    data = golden("aoe_layer", case)
    n, d, low, inner, k = (int(data[key]) for key in ("n", "d", "d_low", "d_wide", "K"))
    layer = AoE(d, FactorisedExperts(n, d, low, inner), k=k)
    names = {"reduce_weight": "W_down", "gate_weight": "W_up", "up_weight": "W_p", "down_weight": "W_o"}
    fill(layer.experts, {ours: data[theirs].transpose(1, 2).contiguous() for ours, theirs in names.items()})
    x = data["x"].clone().requires_grad_()
    y, aux = layer(x)
    torch.testing.assert_close(aux.routing.scores, data["norms"], rtol=0, atol=1e-5)
    by_expert = data["selected"].sort(1)
    assert torch.equal(aux.routing.expert.view(-1, k), by_expert.values)  # ours rise along a token
    torch.testing.assert_close(aux.routing.weight.view(-1, k), data["weights"].gather(1, by_expert.indices), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, data["y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(k * aux.losses["balance"], data["aux"], rtol=0, atol=1e-5)  # there shares are over tokens and sum to K
    ((y * data["upstream"]).sum() + k * aux.losses["balance"]).backward()
    close(x.grad, data["grad_x"], 1e-4)
    for ours, theirs in names.items():
        close(layer.experts.get_parameter(ours).grad.transpose(1, 2), data[f"grad_{theirs}"], 1e-4)


def torchscale(data):
    """A layer with the weights of a case; in evaluation its capacity is a share of the tokens, which makes a factor of our rule."""
    d, n, inner = (int(data[key]) for key in ("d", "E", "F"))
    tokens = int(data["B"] * data["T"])
    factor, fraction = float(data["capacity_factor"]), float(data["eval_capacity_fraction"])
    limits = {
        "capacity_factor": 2.0 if data["top_k"] == 2 else factor,  # top-2 has a factor of its own
        "eval_capacity_factor": math.ceil(fraction * tokens) / math.ceil(tokens / n),
    }
    if data["top_k"] == 2:
        router = GShard(d, n, second="all", normalise="after", **limits)
    elif data["use_xmoe"]:
        router = XMoETorchscale(d, n, **limits)
    else:
        router = Switch(d, n, jitter=0.0, **limits)
    weights = {"embedding": data["gate/wg"]}
    if data["use_xmoe"]:
        weights |= {"projection.weight": data["gate/wg_reduction"]}
    fill(router, weights)
    activation = "gelu" if data["activation_is_gelu"] else "relu"
    experts = FeedForwardExperts(n, d, inner, activation=activation, subln=bool(data["subln"]))
    names = {key.removeprefix("experts/"): value for key, value in data.items() if key.startswith("experts/")}
    fill(experts, {key.replace("ln_", "norm_"): value for key, value in names.items()})
    return MoELayer(router, experts).train(bool(data["train"]))


@pytest.mark.parametrize("case", ["case00", "case01", "case02", "case03"])
def test_torchscale(case):
    data = golden("xmoe_torchscale_moelayer", case)
    layer, x = torchscale(data), data["x"].clone().requires_grad_()
    y, aux = layer(x)
    torch.testing.assert_close(y, data["y"], rtol=0, atol=1e-5)
    assert torch.equal((y == 0).all(-1).flatten(), data["zero_rows"])  # dropped by every expert
    torch.testing.assert_close(aux.losses["balance"], data["l_aux"], rtol=0, atol=1e-5)
    ((y * data["upstream"]).sum() + aux.losses["balance"]).backward()
    close(x.grad, data["grad_x"], 1e-5)


def test_the_cases_have_dropped_tokens():
    dropped = {case: int(golden("xmoe_torchscale_moelayer", case)["zero_rows"].sum()) for case in ("case00", "case01", "case02", "case03")}
    assert sum(count > 0 for count in dropped.values()) >= 2
