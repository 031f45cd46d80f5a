"""The encoder of images and words: what sees what, whose networks a token uses, packed rows as rows alone, costs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moebench.models import shapes
from moebench.models.vision_language import CLASS, MASK, VisionLanguage, costs, macs_per_token
from moebench.moe.experts import SwiGLUExperts
from moebench.moe.layer import MoELayer, SparseLayer
from moebench.moe.layers.dense import Dense
from moebench.moe.multi_head import MultiHead
from moebench.moe.registry import build_router

V, K, D, F, E = 40, 9, 16, 12, 4
SHAPE = shapes.VisionLanguage(image=6, patch=2, channels=1, layers=4, width=D, heads=2, inner=F, words=8)
T = SHAPE.patches
KINDS = ("dense", "mixture", "multi_head")


def layer_of(kind, sparse_every=2):
    def make(index):
        if kind == "dense" or (index + 1) % sparse_every:
            return Dense(D, SwiGLUExperts(1, D, F), f"block {index}")
        if kind == "multi_head":
            inner = MoELayer(build_router("mhmoe_topk", D // 2, E, {"k": 2}), SwiGLUExperts(E, D // 2, F))
            return MultiHead(D, inner, heads=2, shared=SwiGLUExperts(1, D, 5))
        return MoELayer(build_router("topk", D, E, {}), SwiGLUExperts(E, D, F), f"block {index}")

    return make


def encoder_of(kind="mixture", seed=0, shape=SHAPE, sparse_every=2):
    """An encoder whose weights are large enough for attention and routing to matter."""
    torch.manual_seed(seed)
    encoder = VisionLanguage(shape, V, layer_of(kind, sparse_every), sparse_every)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
    return encoder.eval()


def inputs(rows=3, words=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(rows, T, 4, generator=generator) * 2 - 1
    return patches, torch.randint(5, V, (rows, words), generator=generator)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def differs(one, other):
    return (one - other).abs().amax(-1) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_changes_nothing(kind):
    encoder, (patches, words) = encoder_of(kind), inputs()
    alone = [encoder(patches[[row]], words[[row], :length])[0][0] for row, length in enumerate((7, 2, 4))]
    mask = torch.ones(3, 1 + T + 7, dtype=torch.bool)
    mask[1, 1 + T + 2 :] = mask[2, 1 + T + 4 :] = False
    together, reports = encoder(patches, words.masked_fill(~mask[:, 1 + T :], 0), mask)
    assert together.isfinite().all()
    for row, states in enumerate(alone):
        same(together[row, mask[row]], states)
    assert all(len(aux.probs) == mask.sum() * aux.heads for aux in reports)


@torch.no_grad()
def test_images_alone_and_texts_alone_are_read():
    encoder, (patches, words) = encoder_of(), inputs()
    assert encoder(patches, None)[0].shape == (3, 1 + T, D)
    assert encoder(None, words)[0].shape == (3, 7, D)
    with pytest.raises(ValueError, match="neither images nor texts"):
        encoder(None, None)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_image_and_a_text_that_are_apart_are_as_if_each_were_alone(kind):
    encoder, (patches, words) = encoder_of(kind), inputs(4)
    apart = torch.tensor([False, True, True, True])
    mask = torch.ones(4, 1 + T + 7, dtype=torch.bool)
    mask[2, : 1 + T] = mask[3, 1 + T :] = False  # a text without an image, an image without a text
    states, _ = encoder(patches, words, mask, apart_B=apart)
    assert states.isfinite().all()
    same(states[0], encoder(patches[:1], words[:1])[0][0])
    for row in (1, 3):
        same(states[row, : 1 + T], encoder(patches[[row]], None)[0][0])
    for row in (1, 2):
        same(states[row, 1 + T :], encoder(None, words[[row]])[0][0])


@torch.no_grad()
def test_to_a_router_what_is_apart_is_two_sequences_and_ids_of_patches_stand_behind_the_words():
    class Watching(SparseLayer):
        causal, experts = True, SwiGLUExperts(1, D, F)

        def change(self, tokens_TD, inputs):
            seen.append(inputs)
            return self.experts(tokens_TD, torch.tensor([len(tokens_TD)])), layer_of("dense")(0)(tokens_TD[None])[1]

    seen = []
    encoder = VisionLanguage(SHAPE, V, lambda index: Watching(f"block {index}"), 4)
    patches, words = inputs(2, 3)
    visual, hidden = torch.arange(2 * T).view(2, T) % K, torch.zeros(2, T, dtype=torch.bool)
    hidden[0, 4] = True
    encoder(patches, words, visual_BT=visual, hidden_BT=hidden, apart_B=torch.tensor([False, True]))
    inputs_of_both = seen[-1]
    assert inputs_of_both.sequence_ids.tolist() == [0] * (1 + T + 3) + [1] * (1 + T) + [2] * 3
    assert inputs_of_both.positions.tolist() == [*range(1 + T + 3), *range(1 + T), *range(3)]
    expected = [CLASS, *(V + visual[0]).tolist(), *words[0].tolist(), CLASS, *(V + visual[1]).tolist(), *words[1].tolist()]
    expected[1 + 4] = MASK
    assert inputs_of_both.token_ids.tolist() == expected
    encoder(patches, words)
    assert seen[-1].token_ids is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_words_of_a_caption_see_the_image_and_the_words_before_them_alone(kind):
    encoder, (patches, words) = encoder_of(kind), inputs()
    before = encoder(patches, words, causal=True)[0]
    changed = words.clone()
    changed[:, 4] = (changed[:, 4] + 1) % V
    after = differs(before, encoder(patches, changed, causal=True)[0])
    assert not after[:, : 1 + T + 4].any()
    assert after[:, 1 + T + 4 :].all()
    for patch in (0, T - 1):  # every word sees the whole image
        other = patches.clone()
        other[:, patch] += 1
        assert differs(before, encoder(other, words, causal=True)[0]).all()
    both = differs(encoder(patches, words)[0], encoder(patches, changed)[0])
    assert both.all()  # of a pair every token sees every word


@torch.no_grad()
def test_nothing_is_seen_of_a_masked_patch_but_where_it_is():
    encoder, (patches, words) = encoder_of(), inputs()
    hidden = torch.zeros(3, T, dtype=torch.bool)
    hidden[:, [2, 5]] = True
    before = encoder(patches, words, hidden_BT=hidden)[0]
    other = patches.clone()
    other[hidden] = 100.0
    assert torch.equal(before, encoder(other, words, hidden_BT=hidden)[0])
    assert differs(before, encoder(patches, words)[0]).all()
    assert differs(before[:, 1 + 2], before[:, 1 + 5]).all()


def test_each_modality_has_its_own_networks_between_the_layers_for_both():
    encoder, (patches, words) = encoder_of(), inputs()
    networks = {index: block.layers for index, block in enumerate(encoder.blocks)}
    assert [len(layers) for layers in networks.values()] == [2, 1, 2, 1]
    assert list(encoder.layers) == [1, 3]
    for given, used, other in (((patches, None), 0, 1), ((None, words), 1, 0)):
        encoder.zero_grad()
        encoder(*given)[0].sum().backward()
        for index in (0, 2):
            assert all(parameter.grad.abs().sum() > 0 for parameter in networks[index][used].parameters())
            assert all(parameter.grad is None or parameter.grad.eq(0).all() for parameter in networks[index][other].parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    encoder, (patches, words) = encoder_of(kind).train(), inputs(12, 8)
    hidden = torch.rand(12, T, generator=torch.Generator().manual_seed(1)) < 0.4
    states, reports = encoder(patches, words, hidden_BT=hidden)
    (states.square().sum() + sum(sum(aux.losses.values()) for aux in reports if aux.losses)).backward()
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert reached == {name for name, _ in encoder.named_parameters()}


def test_methods_start_from_one_trunk_and_experts_at_the_standard_deviation_of_the_shape():
    wide = SHAPE.model_copy(update={"initial_std": 0.07})
    trunks = []
    for kind in KINDS:
        torch.manual_seed(3)
        encoder = VisionLanguage(wide, V, layer_of(kind), 2)
        trunks.append({name: value for name, value in encoder.state_dict().items() if ".layers." not in name})
        for layer in encoder.layers.values():
            for name, value in layer.experts.named_parameters():
                assert value.std().item() == pytest.approx(0.07, rel=0.15), name
    assert all(torch.equal(value, trunk[name]) for trunk in trunks[1:] for name, value in trunks[0].items())
    assert trunks[0]["words.weight"].std().item() == pytest.approx(0.07, rel=0.1)


def test_sizes_that_do_not_fit_are_refused():
    encoder, (patches, words) = encoder_of(), inputs(1, 8)
    with pytest.raises(ValueError, match=r"images of \(8, 4\) patches and pixels: should be \(9, 4\)"):
        encoder(patches[:, 1:], words)
    with pytest.raises(ValueError, match="texts of 9 words: should be at most 8"):
        encoder(patches, torch.cat([words, words[:, :1]], 1))
    with pytest.raises(ValueError, match="block 0: its router looks at attention probabilities"):
        VisionLanguage(SHAPE, V, lambda index: MoELayer(build_router("damoe", D, E, {}), SwiGLUExperts(E, D, F), f"block {index}"), 2)


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_operations_are_those_of_torchs_counter(kind):
    encoder, (patches, words) = encoder_of(kind), inputs(2, 8)
    for block in encoder.blocks:
        for layer in block.layers:
            layer.experts.backend = "loop"  # torch's counter sees its products
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        reports = encoder(patches, words)[1]
    tokens = words.numel() + 2 * (1 + T)
    rows = sum(int(aux.load.sum()) for aux in reports) / (len(reports) * tokens)
    assert rows == (1 if kind == "dense" else 2)
    assert counter.get_total_flops() == pytest.approx(2 * tokens * macs_per_token(encoder, rows, 8))


def test_costs_of_experts_heads_and_networks():
    network, S = 3 * D * F, 1 + T + 8
    base = T * 4 * D / S + 4 * (4 * D**2 + 2 * D * S)
    assert macs_per_token(encoder_of("dense"), 1, 8) == pytest.approx(base + 4 * network)
    assert macs_per_token(encoder_of("mixture"), 2, 8) == pytest.approx(base + 2 * network + 2 * (2 * network + E * D))
    inside = 4 * 3 * (D // 2) * F + 2 * D**2 + 2 * E * (D // 2) + 3 * D * 5  # h·k rows, both maps, the router twice, the shared expert
    assert macs_per_token(encoder_of("multi_head"), 4, 8) == pytest.approx(base + 2 * network + 2 * inside)
    for kind, rows, idle in (("dense", 1, 0), ("mixture", 2, 2 * (E - 2) * network), ("multi_head", 3, 2 * (E - 3) * network // 2)):
        encoder = encoder_of(kind)
        found = costs(encoder, rows)
        assert found["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
        assert found["parameters"] - found["active_parameters"] == 2 * network + idle  # of two networks a token uses one
        assert found["flops_per_token"] == round(2 * macs_per_token(encoder, rows, 8))
