"""Soft MoE against the outputs of the public code and against a loop over sequences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moebench.moe import ResidualExperts, RouterInputs, build_layer
from moebench.moe.layers.soft_moe import SoftMoE

GOLDEN = Path(__file__).parents[1] / "golden" / "vmoe_soft_moe.npz"
D, E = 6, 3
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


class Linear(nn.Module):
    """Expert e multiplies its rows by weight[e], (D, D')."""

    def __init__(self, weight):
        super().__init__()
        self.count = len(weight)
        self.weight = nn.Parameter(weight)

    def forward(self, rows, counts):
        self.rows = rows
        return torch.cat([part @ weight for part, weight in zip(rows.split(counts.tolist()), self.weight, strict=True)])


def layer(slots=2, dtype=torch.float64):
    torch.manual_seed(0)
    module = SoftMoE(D, ResidualExperts(E, D, 8, 2), "the layer", slots=slots).to(dtype)
    for parameter in (*module.experts.parameters(), module.embedding):
        nn.init.normal_(parameter, std=0.5)
    nn.init.constant_(module.scale, 4.0)  # far from uniform mixtures
    return module


def states(*shape, seed=1):
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(module, x_BSD, mask_BS):
    """The definition, a sequence, a slot and a token at a time."""
    y = torch.zeros_like(x_BSD)
    for b in range(len(x_BSD)):
        places = mask_BS[b].nonzero()[:, 0]
        x = x_BSD[b, places]
        if not len(x):
            continue
        outputs, scores = [], []
        for e in range(E):
            for mu in module.embedding[e]:
                lengths = (x.pow(2).sum(1) + 1e-6).sqrt() * (mu.pow(2).sum() + 1e-6).sqrt()
                s = module.scale * (x @ mu) / lengths
                row = (s.exp() / s.exp().sum()) @ x
                counts = torch.tensor([int(e == other) for other in range(E)])
                outputs.append(module.experts(row[None], counts)[0])
                scores.append(s)
        s = torch.stack(scores, 1)
        y[b] = y[b].index_add(0, places, s.exp() / s.exp().sum(1, keepdim=True) @ torch.stack(outputs))
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["case00", "case01"])
def test_the_public_code(case, dtype):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        data = {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}
    G, S, H, P = (int(data[key]) for key in ("G", "S", "H", "P"))
    experts = Linear(torch.from_numpy(data["expert_W"]))
    module = build_layer("soft_moe", H, experts, {"slots": P}).to(dtype)
    with torch.no_grad():
        module.embedding.copy_(torch.from_numpy(data["mu"]).permute(1, 2, 0))
        module.scale.fill_(data["scale"].item())
    tokens = torch.from_numpy(data["x"]).reshape(G * S, H).to(dtype)
    with torch.no_grad():  # the experts' outputs have another width than the tokens
        y, aux = module.change(tokens, RouterInputs(tokens, sequence_ids=torch.arange(G).repeat_interleave(S)))
    np.testing.assert_allclose(experts.rows.reshape(data["slots"].shape), data["slots"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(y.reshape(data["y"].shape), data["y"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(aux.probs.reshape(G, S, -1), data["combine"].sum(-1), rtol=0, atol=1e-6)
    assert aux.load.tolist() == [G * P] * int(data["E"])


@pytest.mark.parametrize("slots", [1, 2])
def test_equals_a_loop_over_sequences_with_gradients(slots):
    module, x = layer(slots), states(*MASK.shape).requires_grad_()
    upstream = states(*MASK.shape, seed=2)
    inputs = (x, *module.parameters())
    y, aux = module(x, MASK)
    ours = torch.autograd.grad((y * upstream).sum(), inputs)
    other = one_by_one(module, x, MASK)
    theirs = torch.autograd.grad((other * upstream).sum(), inputs)
    torch.testing.assert_close(y, other, rtol=0, atol=1e-12)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-11)
        assert gradient.abs().max() > 0
    assert aux.load.tolist() == [3 * slots] * E  # three sequences have tokens
    assert aux.probs.shape == (9, E)
    torch.testing.assert_close(aux.probs.sum(1), torch.ones(9, dtype=torch.float64))
    assert not aux.probs.requires_grad
    assert (aux.losses, aux.dropped, aux.routing) == ({}, 0, None)


def test_gradients_are_those_of_finite_differences():
    module, x = layer(), states(2, 3).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x, *_: module(x, mask)[0], (x, module.embedding, module.scale), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_does_not_feel_its_batch_mates(training):
    module, x = layer().train(training), states(*MASK.shape)
    together, _ = module(x, MASK)
    for b in range(len(MASK)):
        torch.testing.assert_close(module(x[b : b + 1], MASK[b : b + 1])[0], together[b : b + 1], rtol=0, atol=1e-12)


def test_padding_may_hold_anything_and_gets_zero_rows_and_zero_gradients():
    module, x = layer(), states(*MASK.shape)
    y, _ = module(x, MASK)
    spoilt = x.masked_fill(~MASK[..., None], torch.nan).requires_grad_()
    again, _ = module(spoilt, MASK)
    assert torch.equal(again, y)
    assert not y[~MASK].any()
    again.sum().backward()
    assert not spoilt.grad[~MASK].any()


def test_later_tokens_count():
    """What `causal = False` says."""
    module, x = layer().eval(), states(1, 5)
    assert (module(x[:, :4])[0] - module(x)[0][:, :4]).abs().max() > 1e-3
    assert not SoftMoE.causal


def test_one_token_fills_every_slot():
    module, x = layer(), states(1, 1)
    y, aux = module(x)
    alone = torch.stack([module.experts(x[0], torch.tensor([int(e == other) for other in range(E)]))[0] for e in range(E)])
    torch.testing.assert_close(y[0, 0], aux.probs[0] @ alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_no_tokens(shape):
    module, x = layer(), states(*shape).requires_grad_()
    y, aux = module(x, torch.zeros(shape, dtype=torch.bool))
    assert torch.equal(y, torch.zeros_like(x))
    assert aux.load.tolist() == [0] * E
    assert aux.probs.shape == (0, E)
    y.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


def test_equal_scores_average():
    """With a = 0 every slot is the sequence's mean, and every token gets the mean of the experts' outputs."""
    module, x = layer(), states(1, 4)
    nn.init.zeros_(module.scale)
    y, _ = module(x)
    mean = x.mean(1)
    outputs = [module.experts(mean, torch.tensor([int(e == other) for other in range(E)])) for e in range(E)]
    torch.testing.assert_close(y[0], (sum(outputs) / E).expand(4, D), rtol=0, atol=1e-12)


def test_the_numbering_of_experts_does_not_matter():
    module, x, order = layer(), states(*MASK.shape), torch.tensor([2, 0, 1])
    y, aux = module(x, MASK)
    with torch.no_grad():
        for parameter in (module.embedding, *module.experts.parameters()):
            parameter.copy_(parameter[order].clone())
    again, again_aux = module(x, MASK)
    torch.testing.assert_close(again, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(again_aux.probs, aux.probs[:, order], rtol=0, atol=1e-12)


def test_bf16_is_close_and_mixes_by_the_same_weights():
    module, x = layer(dtype=torch.float32), states(*MASK.shape).float()
    exact, aux = module(x, MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, rough_aux = module(x, MASK)
    assert rough.dtype == torch.float32
    assert torch.equal(aux.probs, rough_aux.probs)
    assert 0 < ((rough - exact).norm() / exact.norm()).item() < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x.bfloat16(), MASK)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_raises_with_the_layers_name(bad):
    x = states(*MASK.shape)
    x[0, 1, 2] = bad
    with pytest.raises(FloatingPointError, match="the layer"):
        layer()(x, MASK)


def test_no_slots_are_refused():
    with pytest.raises(ValueError, match="slots 0"):
        SoftMoE(D, ResidualExperts(E, D, 8, 1), slots=0)


def test_overhead_counts_three_products_with_the_slots():
    layer = build_layer("soft_moe", 8, ResidualExperts(3, 8, 4, 1), {"slots": 2})
    assert layer.overhead(tokens=10, sequences=2) == 3 * 2 * 10 * 8 * 3 * 2
