"""The encoder against torch's own Transformer layers, and its invariances."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moebench.experiment import Experiment
from moebench.models import shapes
from moebench.models.build import build_encoder
from moebench.models.encoder import Encoder
from moebench.models.flops import flops_per_token, parameter_counts
from moebench.models.heads import MaskedLMHead
from moebench.protocols.transfer.config import sparse

SPARSE = shapes.Sparse(experts=4, sublayers=3, inner=12)
MOE = {"layer": "moe", "router": "xmoe", "options": {"gate": "softmax", "temperature": 0.3}}


def shape(**changes):
    values = {"layers": 2, "width": 16, "heads": 4, "inner": 24, "norm": "pre", "positions": "learned"} | changes
    return shapes.Encoder(**values)


def inputs(rows=3, length=7):
    ids = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length)[None] < torch.tensor([length, 4, 1])[:rows, None]
    return ids, mask


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_weights_start_with_the_spread_that_the_shape_states(std):
    torch.manual_seed(0)
    encoder = Encoder(shape(width=64, inner=128, initial_std=std), 500)
    head = MaskedLMHead(64, 500, 1e-5, std)
    matrices = [module.weight for module in (*encoder.modules(), head.dense) if isinstance(module, nn.Linear | nn.Embedding)]
    assert len(matrices) == 2 + 4 * 2 + 1  # words, positions, four a block, the head
    for weight in matrices:
        assert weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_blocks_equal_torchs_transformer_layer(norm):
    torch.manual_seed(0)
    encoder = Encoder(shape(norm=norm), 50).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids, mask = inputs()
    x = encoder.embedding(ids) + encoder.positions.weight[: ids.shape[1]]
    if norm == "post":
        x = encoder.norm(x)
    for block in encoder.blocks:
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre").eval()
        state = {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.inner.weight,
            "linear1.bias": block.inner.bias,
            "linear2.weight": block.outer.weight,
            "linear2.bias": block.outer.bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.feed_forward_norm.weight,
            "norm2.bias": block.feed_forward_norm.bias,
        }
        layer.load_state_dict({name: value.detach() for name, value in state.items()})
        layer.train()  # torch's fused evaluation path returns zeros on padding; the plain one does not
        x = layer(x, src_key_padding_mask=~mask)
    expected = encoder.norm(x) if norm == "pre" else x
    got, aux = encoder(ids, mask)
    assert aux is None
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_relative_bias_equals_a_loop_over_pairs_of_positions():
    torch.manual_seed(0)
    encoder = Encoder(shape(positions="relative"), 50)
    nn.init.normal_(encoder.bias.table)
    bias = encoder.bias(80)[0]
    for head, query, key in [(0, 0, 0), (1, 3, 9), (2, 79, 1), (3, 0, 79)]:
        distance = min(max(key - query, -64), 64)
        assert bias[head, query, key] == encoder.bias.table[head, 64 + distance]


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("method", [{"layer": "none"}, MOE], ids=["dense", "moe"])
def test_padding_and_batch_mates_change_nothing(norm, method):
    torch.manual_seed(0)
    encoder = build_encoder(shape(norm=norm), None if method["layer"] == "none" else SPARSE, method, 50).eval()
    ids, mask = inputs()
    together, _ = encoder(ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone, _ = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_probs_are_the_blocks_own_attention(norm):
    torch.manual_seed(0)
    encoder = Encoder(shape(norm=norm), 50).eval()
    block, (_, mask) = encoder.blocks[0], inputs()
    x, bias = torch.randn(3, 7, 16), torch.zeros(3, 1, 1, 7).masked_fill(~mask[:, None, None], -math.inf)
    probs = block.attention_of(x, bias)
    inner = block.attention_norm(x) if norm == "pre" else x
    value = block.qkv(inner)[..., 32:].view(3, 7, 4, 4).transpose(1, 2)
    expected = block.attention(inner, bias)
    torch.testing.assert_close(block.out((probs @ value).transpose(1, 2).reshape(3, 7, 16)), expected, atol=1e-6, rtol=1e-5)
    assert (probs[~mask[:, None, None].expand_as(probs)] == 0).all()


def test_a_router_that_needs_attention_is_given_the_block_befores():
    torch.manual_seed(0)
    encoder = build_encoder(shape(), SPARSE, {"layer": "moe", "router": "damoe", "options": {}}, 50).eval()
    seen = {}
    encoder.sparse.router.register_forward_pre_hook(lambda module, inputs: seen.update(inputs=inputs[0]))
    ids, mask = inputs()
    encoder(ids, mask)
    assert seen["inputs"].attention.shape == (mask.sum(), 4, 7)
    torch.testing.assert_close(seen["inputs"].attention.sum(-1), torch.ones(int(mask.sum()), 4))


def test_flops_of_a_sparse_encoder_count_what_its_rows_cost():
    encoder = build_encoder(shape(positions="relative"), SPARSE, MOE, 50)  # its bias takes the attention that the counter sees
    dense, router = flops_per_token(encoder, None, 7), encoder.sparse.router.flops_per_token
    expert = SPARSE.sublayers * 4 * 16 * SPARSE.inner
    encoder.sparse.experts.backend = "loop"  # torch's counter sees its products
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(3, 7, dtype=torch.long), torch.ones(3, 7, dtype=torch.bool))
    assert counter.get_total_flops() == pytest.approx(21 * flops_per_token(encoder, SPARSE, 7))
    assert flops_per_token(encoder, SPARSE, 7, rows=1.5) == pytest.approx(dense + 1.5 * expert + router)
    assert router == 2 * sum(parameter.numel() for parameter in encoder.sparse.router.parameters() if parameter.ndim == 2)


def test_identity_insertion_is_exact():
    """An inserted layer that starts as identity leaves every output bit as it was."""
    torch.manual_seed(0)
    dense = Encoder(shape(norm="post"), 50).eval()
    sparse = build_encoder(shape(norm="post"), SPARSE.model_copy(update={"identity": True}), MOE, 50).eval()
    sparse.load_state_dict(dense.state_dict(), strict=False)
    ids, mask = inputs()
    assert torch.equal(sparse(ids, mask)[0], dense(ids, mask)[0])


def test_same_seed_gives_every_method_the_same_trunk():
    torch.manual_seed(3)
    dense = build_encoder(shape(), None, {"layer": "none"}, 50).state_dict()
    torch.manual_seed(3)
    sparse = build_encoder(shape(), SPARSE, MOE, 50).state_dict()
    assert all(torch.equal(value, sparse[name]) for name, value in dense.items())


def test_too_long_a_sequence_is_refused_with_both_lengths():
    encoder = Encoder(shape(max_positions=4), 50)
    with pytest.raises(ValueError, match=r"7 tokens .* 4"):
        encoder(*inputs())


def test_analytic_flops_equal_torchs_counter_on_the_dense_path():
    form = shape(layers=3, width=32, inner=48, positions="relative")
    encoder = Encoder(form, 50)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(2, 10, dtype=torch.long), torch.ones(2, 10, dtype=torch.bool))
    assert counter.get_total_flops() == 20 * flops_per_token(encoder, None, 10)


def test_published_sizes_on_the_meta_device(project):
    """X-MoE's dense and sparse models: 278.3M and 731.8M parameters, 12,801 of them in the router."""
    experiment = Experiment(project, "xmoe", "paper")
    sizes = {}
    with torch.device("meta"):
        for name, router_size in (("dense", 0), ("smoe_softmax", 24_576), ("xmoe_softmax", 12_801)):
            method = experiment.method(name)
            encoder = build_encoder(experiment.setting.encoder, sparse(experiment.setting, method), method.model_dump(), 250002)
            router = encoder.sparse.router.parameters() if encoder.sparse else ()
            assert sum(parameter.numel() for parameter in router) == router_size
            head = sum(parameter.numel() for parameter in MaskedLMHead(768, 250002, 1e-5, 0.02).parameters())
            sizes[name] = [count + head for count in parameter_counts(encoder)]
    assert sizes["dense"][0] == pytest.approx(278.3e6, abs=0.05e6)
    assert sizes["xmoe_softmax"][0] == pytest.approx(731.8e6, abs=0.05e6)
    assert sizes["xmoe_softmax"][1] - sizes["dense"][1] == pytest.approx(14.2e6, abs=0.05e6)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_a_frozen_lower_part_gets_no_gradient_and_the_rest_gets_what_it_got(norm, positions):
    torch.manual_seed(0)
    encoder = Encoder(shape(layers=4, norm=norm, positions=positions, token_types=2), 50)

    def gradients():
        encoder.zero_grad()
        encoder(*inputs())[0].square().mean().backward()
        return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}

    whole = gradients()
    encoder.freeze(embedding=False, blocks=2)
    part = gradients()
    above = ("blocks.2", "blocks.3") + (("norm",) if norm == "pre" else ())
    assert set(part) == {name for name in whole if name.startswith(above)}
    for name in part:  # attention without a learned bias takes another path: equal up to rounding
        torch.testing.assert_close(part[name], whole[name])
    encoder.freeze(embedding=True, blocks=0)
    assert not encoder.embedding.weight.requires_grad
