"""Attention against torch's fused kernel in fp64 and a loop over positions; both paths agree, also in what they differentiate."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from moebench.models import attention
from moebench.models.attention import attend, attention_probs

B, H, S, D = 2, 3, 7, 4


def heads(dtype=torch.float64, positions=S):
    """Queries, keys and values with the strides they have in the encoder: slices of one projection."""
    qkv = torch.randn(B, positions, 3, H, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype).requires_grad_()
    return qkv, qkv.permute(2, 0, 3, 1, 4)


def padding(positions=S, **options):
    bias = torch.zeros(B, 1, 1, positions, **options)
    bias[1, ..., 4:] = -math.inf
    return bias


def relative(positions=S, **options):
    return torch.randn(1, H, positions, positions, generator=torch.Generator().manual_seed(1), **options)


BIASES = {
    "none": lambda **options: torch.zeros(1, 1, 1, S, **options),
    "padding": padding,
    "relative": relative,
    "both": lambda **options: padding(**options) + relative(**options),
    "causal": lambda **options: torch.full((1, 1, S, S), -math.inf, **options).triu(1),
}


@pytest.fixture(params=["explicit", "fused"])
def path(request, monkeypatch):
    """Take one path whatever the lengths and gradients are; returns how often the fused kernel was called."""
    calls = []

    def fused(*arguments, **options):
        calls.append(1)
        return scaled_dot_product_attention(*arguments, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", fused)
    return request.param, calls


def run(path, query, key, value, bias):
    """Return the output; the explicit path is taken because the bias asks for a gradient."""
    name, calls = path
    bias = bias.detach().requires_grad_(name == "explicit")
    out = attend(query, key, value, bias)
    assert len(calls) == (name == "fused")
    return out, bias


@pytest.mark.parametrize("kind", BIASES)
def test_attention_equals_a_loop_over_positions(kind, path):
    _, (query, key, value) = heads()
    bias = BIASES[kind](dtype=torch.float64)
    out, _ = run(path, query, key, value, bias)
    query, key = query.detach(), key.detach()
    probs = attention_probs(query, key, bias)
    full = bias.expand(B, H, S, S)
    for b in range(B):
        for h in range(H):
            for s in range(S):
                weights = [math.exp(query[b, h, s].dot(key[b, h, j]) / math.sqrt(D) + full[b, h, s, j]) for j in range(S)]
                expected = sum(weight * value[b, h, j] for j, weight in enumerate(weights)) / sum(weights)
                torch.testing.assert_close(out[b, h, s], expected)
                torch.testing.assert_close(probs[b, h, s], torch.tensor(weights, dtype=torch.float64) / sum(weights))


@pytest.mark.parametrize("kind", BIASES)
def test_gradients_equal_those_of_the_fused_kernel(kind, path):
    inputs, (query, key, value) = heads()
    bias = BIASES[kind](dtype=torch.float64)
    out, leaf = run(path, query, key, value, bias)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad((out * weight).sum(), [inputs, leaf][: 1 + leaf.requires_grad])
    reference = bias.requires_grad_()
    expected = torch.autograd.grad(
        (scaled_dot_product_attention(query, key, value, attn_mask=reference) * weight).sum(), [inputs, reference]
    )
    for one, other in zip(got, expected, strict=False):
        torch.testing.assert_close(one, other)
    hidden = torch.isinf(bias)
    if leaf.requires_grad:
        assert not got[1][hidden].any()


def test_gradcheck_of_the_explicit_path():
    _, (query, key, value) = heads()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value, relative(dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *values: attend(*values[:3], values[3] + padding(dtype=torch.float64)), leaves)


def test_a_hidden_position_weighs_exactly_nothing(path):
    _, heads_3 = heads(torch.float32)
    query, key, value = (tensor.detach().clone() for tensor in heads_3)
    before, _ = run(path, query, key, value, padding())
    path[1].clear()
    key[1, :, 4:], value[1, :, 4:] = 1e6, -1e6
    after, _ = run(path, query, key, value, padding())
    assert torch.equal(before, after)
    assert not attention_probs(query, key, padding())[1, ..., 4:].any()


@pytest.mark.parametrize("kind", BIASES)
def test_bf16_is_as_near_to_fp64_as_its_rounding(kind, path):
    _, (query, key, value) = heads(torch.bfloat16)
    bias = BIASES[kind]()
    expected = scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=bias.double())
    path[1].clear()
    out = attend(query, key, value, bias)  # bf16 is explicit by itself; the fused kernel in bf16 for comparison
    fused = scaled_dot_product_attention(query, key, value, attn_mask=bias.bfloat16())
    assert out.dtype == torch.bfloat16
    assert not path[1]
    assert (out.double() - expected).abs().max() < 0.04
    assert (out.double() - expected).abs().mean() < 3 * (fused.double() - expected).abs().mean() + 1e-3


def test_autocast_takes_fp32_heads_as_bf16():
    _, (query, key, value) = heads(torch.float32)
    bias = (padding() + relative()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(query, key, value, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attend(query, key, value, bias), atol=0.04, rtol=0.02)
    out.float().square().sum().backward()
    assert bias.grad.isfinite().all()
    assert bias.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "positions", "learned", "fused"),
    [
        (torch.float32, 8, False, 1),
        (torch.float32, 8, True, 0),
        (torch.bfloat16, 8, False, 0),
        (torch.bfloat16, attention.EXPLICIT_LIMIT + 1, False, 1),
        (torch.bfloat16, attention.EXPLICIT_LIMIT + 1, True, 0),
    ],
)
def test_the_path_follows_from_type_length_and_a_learned_bias(monkeypatch, dtype, positions, learned, fused):
    calls = []
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda query, *_, **__: calls.append(1) or query)
    _, (query, key, value) = heads(dtype, positions)
    attend(query, key, value, padding(positions).requires_grad_(learned))
    assert len(calls) == fused


@pytest.mark.parametrize("size", [(0, H, S), (B, H, 1), (1, 1, 1)])
def test_empty_batches_and_single_positions(size, path):
    query, key, value = (torch.randn(*size, D) for _ in range(3))
    out, _ = run(path, query, key, value, torch.zeros(size[0], 1, 1, size[2]))
    assert out.shape == (*size, D)
    if size[2] == 1:
        torch.testing.assert_close(out, value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", BIASES)
def test_a_gpu_agrees_with_the_cpu(kind):
    _, (query, key, value) = heads(torch.float32)
    bias = BIASES[kind]()
    out = attend(query.cuda(), key.cuda(), value.cuda(), bias.cuda())
    torch.testing.assert_close(out.cpu(), attend(query, key, value, bias), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        attention_probs(query.cuda(), key.cuda(), bias.cuda()).cpu(), attention_probs(query, key, bias), atol=1e-5, rtol=1e-4
    )
