"""SMEAR against a loop over sequences that builds each merged expert."""

import pytest
import torch
import torch.nn.functional as F

from moebench.moe import ResidualExperts, build_layer
from moebench.moe.layers.smear import SMEAR

D, E, INNER = 6, 4, 5
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)


def build(experts=E, **options):
    torch.manual_seed(0)
    layer = build_layer("smear", D, ResidualExperts(experts, D, INNER, 2), options, "the layer").double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer, torch.randn(*MASK.shape, D, dtype=torch.float64)


def probabilities(layer, tokens):
    def norm(x, weight, shift):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * weight + shift

    z = norm(sum(tokens) / len(tokens), layer.token_norm.weight, layer.token_norm.bias)
    logits = [z @ norm(row, layer.embedding_norm.weight, 0) + shift for row, shift in zip(layer.embedding, layer.bias, strict=True)]
    exps = torch.stack(logits).exp()
    return exps / exps.sum()


def one_by_one(layer, x, mask):
    """One merged expert a sequence, run on one token after the other."""
    rows = torch.zeros_like(x)
    for b in range(len(x)):
        places = mask[b].nonzero()[:, 0].tolist()
        if not places:
            continue
        p = probabilities(layer, [x[b, s] for s in places])
        merged = {key: sum(p[e] * value[e] for e in range(E)) for key, value in layer.experts.named_parameters()}
        for s in places:
            h = x[b, s]
            for index in range(2):
                part = {key: value[index] for key, value in merged.items()}
                normed = F.layer_norm(h, (D,), part["norm_weight"], part["norm_bias"])
                h = h + part["fc2_weight"] @ F.gelu(part["fc1_weight"] @ normed + part["fc1_bias"]) + part["fc2_bias"]
            rows = rows.index_put((torch.tensor(b), torch.tensor(s)), h - x[b, s])
    return rows


def test_equals_a_loop_with_gradients():
    layer, x = build(dropout=0.0)
    x.requires_grad_()
    inputs = {"x": x, **dict(layer.named_parameters())}
    y, expected = layer(x, MASK)[0], one_by_one(layer, x, MASK)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad((out * upstream).sum(), list(inputs.values())) for out in (y, expected))
    for key, one, other in zip(inputs, ours, theirs, strict=True):
        assert one.abs().max() > 1e-6, key
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def test_what_it_reports():
    layer, x = build()
    _, aux = layer.eval()(x, MASK)
    assert aux.losses == {}
    assert SMEAR.causal is False
    expected = torch.stack([probabilities(layer, list(x[b][MASK[b]])) for b in (0, 2, 3)]).detach()
    torch.testing.assert_close(aux.probs, expected.repeat_interleave(torch.tensor([4, 2, 2]), 0), rtol=0, atol=1e-12)
    torch.testing.assert_close(aux.load, aux.probs.sum(0), rtol=0, atol=1e-12)
    assert aux.load.sum().item() == pytest.approx(8)
    assert not aux.probs.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_sequences_without_tokens_make_no_nan(training):
    layer, x = build()
    layer.train(training)
    x[~MASK] = torch.nan
    for mask in (MASK, torch.zeros_like(MASK)):
        layer.zero_grad()
        y, aux = layer(x.where(MASK[..., None], torch.nan), mask)
        y.sum().backward()
        assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
        assert y.isfinite().all()
        assert aux.load.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert aux.probs.shape == (0, E)
    assert layer(x[:0], MASK[:0])[0].shape == (0, 4, D)


def test_expert_dropout():
    layer, x = build(dropout=0.5)
    _, whole = layer.eval()(x, MASK)
    layer.train()
    torch.manual_seed(3)
    dropped = torch.rand(4, E, dtype=torch.float64) < 0.5  # one draw for each sequence up to the last with tokens
    torch.manual_seed(3)
    _, aux = layer(x, MASK)
    sequence = MASK.nonzero()[:, 0]
    kept = whole.probs.masked_fill(dropped[sequence], 0) + 1e-10
    torch.testing.assert_close(aux.probs, kept / kept.sum(1, keepdim=True), rtol=1e-12, atol=0)
    assert 0 < (aux.probs < 1e-6).double().mean() < 1
    torch.testing.assert_close(aux.probs.sum(1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_where_all_experts_are_dropped_they_are_merged_alike(monkeypatch):
    layer, x = build()
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    _, aux = layer(x, MASK)
    torch.testing.assert_close(aux.probs, torch.full_like(aux.probs, 1 / E))


def test_one_expert_is_that_expert():
    layer, x = build(experts=1)
    y, _ = layer(x, MASK)
    torch.testing.assert_close(y[MASK], layer.experts(x[MASK], torch.tensor([8])), rtol=0, atol=1e-12)


def test_start():
    torch.manual_seed(0)
    layer = SMEAR(64, ResidualExperts(32, 64, 4, 1))
    assert layer.embedding.std().item() == pytest.approx(0.01, rel=0.05)
    assert layer.embedding_norm.weight.tolist() == pytest.approx([0.01] * 64)
    _, aux = layer.eval()(torch.randn(2, 3, 64))
    torch.testing.assert_close(aux.probs, torch.full_like(aux.probs, 1 / 32), rtol=0.5, atol=0)


def test_scores_are_exact_in_bf16():
    layer, x = build()
    layer, x = layer.float().eval(), x.float()
    _, exact = layer(x, MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, aux = layer(x, MASK)
    assert torch.equal(aux.probs, exact.probs)
    assert y.dtype == torch.float32


def test_nan_raises_with_the_layers_name():
    layer, x = build()
    x[0, 1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="the layer"):
        layer(x, MASK)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_options_that_make_no_sense_are_refused(dropout):
    with pytest.raises(ValueError, match="dropout"):
        build(dropout=dropout)
