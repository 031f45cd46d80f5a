"""Vision transformers: the outputs of the public code, E³ as separate members, its ablations, checkpoints, sizes and costs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from moebench.errors import MoebenchError
from moebench.models.vit import (
    FeedForward,
    Mixture,
    Vision,
    ViT,
    ensemble_log_probs,
    flops_per_image,
    load_pretrained,
    mean_cross_entropy,
    placement,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = Vision(image=8, patch=4, layers=4, width=16, heads=4, inner=32)
EVEN = {"capacity_factor": None}
SIZES = {
    "S/32": (32, 8, 512, 2048, 8),
    "B/32": (32, 12, 768, 3072, 12),
    "B/16": (16, 12, 768, 3072, 12),
    "L/32": (32, 24, 1024, 4096, 16),
    "L/16": (16, 24, 1024, 4096, 16),
    "H/14": (14, 32, 1280, 5120, 16),
}


def vit(variant, members=2, seed=0, shape=SHAPE, classes=5, experts=4, dtype=torch.float64, **options):
    """A model whose experts and routers differ, so that members do."""
    torch.manual_seed(seed)
    mixture = None if variant == "dense" else Mixture(variant=variant, experts=experts, members=members, options=options, alike=False)
    return ViT(shape, classes, mixture).to(dtype).eval()


def images(count=6, seed=0, shape=SHAPE):
    return torch.randn(count, shape.channels, shape.image, shape.image, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def golden(name):
    with np.load(GOLDEN / name, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def from_flax(data):
    """The public code's parameters by our names and layouts."""

    def get(name):
        return torch.from_numpy(data[f"p/{name}"])

    yield "patches.weight", get("embedding/kernel").permute(3, 2, 0, 1)
    yield "patches.bias", get("embedding/bias")
    yield "token", get("cls")[0, 0]
    yield "positions", get("Encoder/posembed_input/pos_embedding")[0]
    yield "norm.weight", get("Encoder/encoder_norm/scale")
    yield "norm.bias", get("Encoder/encoder_norm/bias")
    yield "head.weight", get("head/kernel").T
    yield "head.bias", get("head/bias")
    width = int(data["hp/width"])
    for index in range(int(data["hp/num_layers"])):
        theirs, ours = f"Encoder/encoderblock_{index}", f"blocks.{index}"
        for norm, name in (("attention_norm", "LayerNorm_0"), ("layer_norm", "LayerNorm_1")):
            yield f"{ours}.{norm}.weight", get(f"{theirs}/{name}/scale")
            yield f"{ours}.{norm}.bias", get(f"{theirs}/{name}/bias")
        parts = [f"{theirs}/SelfAttention/{part}" for part in ("query", "key", "value")]
        yield f"{ours}.qkv.weight", torch.cat([get(f"{part}/kernel").reshape(width, width).T for part in parts])
        yield f"{ours}.qkv.bias", torch.cat([get(f"{part}/bias").flatten() for part in parts])
        yield f"{ours}.out.weight", get(f"{theirs}/SelfAttention/out/kernel").reshape(width, width).T
        yield f"{ours}.out.bias", get(f"{theirs}/SelfAttention/out/bias")
        if index in data["hp/moe_layers"]:
            yield f"{ours}.layer.router.embedding", get(f"{theirs}/Moe/Router/dense/kernel").flatten(1).T
            for part, name in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
                yield f"{ours}.layer.experts.{part}_weight", get(f"{theirs}/Moe/Mlp/{name}/kernel").transpose(1, 2)
                yield f"{ours}.layer.experts.{part}_bias", get(f"{theirs}/Moe/Mlp/{name}/bias")
        else:
            for part, name in (("inner", "Dense_0"), ("outer", "Dense_1")):
                yield f"{ours}.layer.{part}.weight", get(f"{theirs}/Mlp/{name}/kernel").T
                yield f"{ours}.layer.{part}.bias", get(f"{theirs}/Mlp/{name}/bias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_public_codes_e3(dtype):
    data = golden("e3_vit.npz")
    mixture = Mixture(
        variant="e3",
        experts=int(data["hp/E"]),
        members=int(data["hp/M"]),
        options={
            "k": int(data["hp/K"]),
            "eval_capacity_factor": data["hp/capacity_factor"].item(),
            "batch_priority": bool(data["hp/batch_priority"]),
        },
    )
    shape = Vision(
        image=data["x"].shape[1],
        patch=int(data["hp/patch"]),
        layers=int(data["hp/num_layers"]),
        width=int(data["hp/width"]),
        heads=int(data["hp/heads"]),
        inner=int(data["hp/mlp_dim"]),
    )
    assert placement(shape.layers) == tuple(data["hp/moe_layers"])
    model = ViT(shape, int(data["hp/num_classes"]), mixture).eval()
    model.load_state_dict(dict(from_flax(data)))
    with torch.no_grad():
        logits, reports = model.to(dtype)(torch.from_numpy(data["x"]).to(dtype).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits.flatten(0, 1), data["logits"], rtol=0, atol=1e-5)
    auxiliary = 0.005 * sum(aux.losses["importance"].item() for aux in reports)
    np.testing.assert_allclose(auxiliary, data["aux"].mean(), rtol=0, atol=1e-7)


def test_the_public_codes_losses_and_predictions():
    data = {key.removeprefix("ens/"): value for key, value in golden("e3_router.npz").items() if key.startswith("ens/")}
    logits = torch.from_numpy(data["logits"]).unflatten(0, (-1, int(data["M"])))  # image by image
    labels = torch.from_numpy(data["labels"]).argmax(-1)
    torch.testing.assert_close(mean_cross_entropy(logits, labels), torch.from_numpy(data["softmax_xent_train"]).mean(), rtol=0, atol=1e-6)
    log_probs = ensemble_log_probs(logits)
    nll = functional.nll_loss(log_probs, labels, reduction="none")
    np.testing.assert_allclose(nll, data["softmax_xent_eval"], rtol=0, atol=1e-6)
    assert log_probs.argmax(-1).tolist() == data["label_pred_softmax"].tolist()
    torch.testing.assert_close(log_probs.exp(), logits.softmax(-1).mean(1))


def test_placement_is_that_of_the_public_configurations():
    assert placement(8, 2) == (5, 7)
    assert placement(12, 2) == (9, 11)
    assert placement(24, 2) == (21, 23)
    assert placement(32, 2) == (29, 31)
    assert placement(32, 5) == (23, 25, 27, 29, 31)
    assert placement(12) == (1, 3, 5, 7, 9, 11)
    assert placement(1) == ()
    with pytest.raises(ValueError, match="at most 4"):
        placement(9, 5)
    assert placement(8, 2, (0, 3, 4)) == (0, 3, 4)
    with pytest.raises(ValueError, match=r"blocks \[0, 8\]: 8 should be at least 0 and at most 7"):
        placement(8, None, (0, 8))


def test_experts_stand_in_any_blocks():
    model = ViT(SHAPE, 5, Mixture(variant="e3", experts=4, members=2, blocks=(0, 2))).eval()
    assert [isinstance(block.layer, FeedForward) for block in model.blocks] == [False, True, False, True]
    assert model.tile_before == 0
    assert len(model(images().float())[1]) == 2


@pytest.mark.parametrize("variant", ["vmoe", "e3"])
def test_a_routing_group_is_a_batch_by_itself(variant):
    """One layer, so that groups meet nowhere else; in training, with queues that overflow."""
    members = 1 if variant == "vmoe" else 2
    torch.manual_seed(0)
    options = {"k": 1, "capacity_factor": 0.6, "noise_std": 0.0}
    mixture = Mixture(variant=variant, experts=4, members=members, blocks=(1,), options=options, alike=False)
    model = ViT(SHAPE, 5, mixture).double().train()
    alone = [model(images()[begin : begin + 2]) for begin in (0, 2, 4)]
    whole, (one,) = model(images())
    for block in model.blocks:
        block.group = 2 * model.copies
    grouped, (aux,) = model(images())
    torch.testing.assert_close(grouped, torch.cat([logits for logits, _ in alone]), rtol=0, atol=1e-12)
    assert (grouped - whole).abs().max() > 1e-3
    parts = [aux for _, (aux,) in alone]
    assert torch.equal(aux.load, sum(part.load for part in parts))
    assert aux.dropped == sum(part.dropped for part in parts) > 0
    torch.testing.assert_close(aux.probs, one.probs)
    for name, loss in aux.losses.items():
        torch.testing.assert_close(loss, torch.stack([part.losses[name] for part in parts]).mean())
    mixture = Mixture(variant=variant, experts=4, members=members, group=2)
    assert {block.group for block in ViT(SHAPE, 5, mixture).blocks} == {None, 2 * model.copies}


def lone(model, member, members=2, experts=4):
    """The V-MoE that a member of an E³ is: its own experts and routers, everything else as it is."""
    share = experts // members
    own = slice(member * share, (member + 1) * share)
    alone = vit("vmoe", 1, experts=share, k=1)
    alone.load_state_dict(
        {key: value[own] if ".router." in key or ".experts." in key else value for key, value in model.state_dict().items()}
    )
    return alone


@pytest.mark.parametrize("members", [1, 2, 4])
def test_e3_is_as_many_v_moes_that_share_all_but_experts_and_routers(members):
    model = vit("e3", members)
    logits, reports = model(images())
    assert logits.shape == (6, members, 5)
    assert len(reports) == 2
    for member in range(members):
        alone, own = lone(model, member, members)(images())
        torch.testing.assert_close(logits[:, [member]], alone, rtol=0, atol=1e-12)
        for ours, theirs in zip(reports, own, strict=True):
            share = 4 // members
            assert torch.equal(ours.load[member * share :][:share], theirs.load)
    if members > 1:
        assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


def test_a_member_depends_on_no_other_members_experts_and_routers():
    model = vit("e3")
    before, _ = model(images())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".router." in name or ".experts." in name:
                parameter[2:] = torch.randn_like(parameter[2:])
    after, _ = model(images())
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3


def test_an_image_depends_on_no_other_and_batches_may_be_split():
    for variant in ("e3", "vmoe", "only_tiling", "only_partitioning", "multi_head"):
        model = vit(variant, 1 if variant == "vmoe" else 2)
        together, _ = model(images())
        torch.testing.assert_close(torch.cat([model(images()[i : i + 1])[0] for i in range(6)]), together, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("last", "first"), [(None, 1), (1, 3)])
def test_copies_are_made_before_the_first_block_with_experts(last, first):
    model = ViT(SHAPE, 5, Mixture(variant="e3", experts=4, last=last, members=2)).eval()
    entered = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model(images(3).float())
    assert [len(x) for x in entered] == [3] * first + [6] * (4 - first)  # that block's attention sees the copies too
    assert torch.equal(entered[first][0::2], entered[first][1::2])
    assert [index for index, block in enumerate(model.blocks) if not isinstance(block.layer, FeedForward)] == list(range(first, 4, 2))


def test_a_v_moes_checkpoint_fine_tunes_as_e3():
    pretrained, model = vit("vmoe", 1, k=1, **EVEN), vit("e3", 1, seed=9, **EVEN)
    model.load_state_dict(pretrained.state_dict())
    assert torch.equal(model(images())[0], pretrained(images())[0])
    runs = []
    for each in (model, pretrained):
        torch.manual_seed(4)  # the same noise, too
        runs.append(each.train()(images()))
    (logits, reports), (expected, others) = runs
    assert torch.equal(logits, expected)
    for ours, theirs in zip(reports, others, strict=True):
        for name, loss in theirs.losses.items():
            torch.testing.assert_close(ours.losses[name], loss, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", ["e3", "only_tiling", "only_partitioning", "multi_head"])
def test_every_variant_starts_from_a_v_moe_with_a_head_of_its_own(variant):
    pretrained, model = vit("vmoe", 1, k=1), vit(variant, seed=9, classes=3)
    head = model.head.weight.clone()
    load_pretrained(model, pretrained.state_dict())
    assert torch.equal(model.head.weight, head)
    for name, value in pretrained.state_dict().items():
        assert name.startswith("head.") or torch.equal(model.state_dict()[name], value)


def test_positions_are_interpolated_for_images_of_another_size():
    pretrained, shape = vit("vmoe", 1), SHAPE.model_copy(update={"image": 20})
    model = vit("e3", shape=shape)
    load_pretrained(model, pretrained.state_dict())
    old = pretrained.positions.detach().numpy()
    assert torch.equal(model.positions[0], pretrained.positions[0])
    np.testing.assert_allclose(
        model.positions[1:].detach(), zoom(old[1:].reshape(2, 2, 16), (2.5, 2.5, 1), order=1).reshape(25, 16), rtol=0, atol=1e-12
    )
    assert model(images(shape=shape))[0].shape == (6, 2, 5)


def test_weights_of_another_shape_are_refused():
    for other in (vit("vmoe", 1, experts=8), vit("dense", shape=SHAPE.model_copy(update={"layers": 6})), vit("dense")):
        with pytest.raises(MoebenchError, match="another vision transformer"):
            load_pretrained(vit("e3"), other.state_dict())


def test_members_of_tiling_alone_differ_by_noise_and_drops_alone():
    model = vit("only_tiling", members=3)
    logits, _ = model(images())
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), rtol=0, atol=1e-12)
    noisy, _ = model.train()(images())
    assert (noisy[:, 0] - noisy[:, 1]).abs().max() > 1e-6
    # the same as a partition whose members have all experts in common
    other = vit("e3", members=2, overlap=2, k=2)
    load_pretrained(other, model.state_dict())
    other.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(other(images())[0], logits[:, :2], rtol=0, atol=1e-12)


def test_a_partition_alone_adds_the_mean_of_the_members_changes():
    once, tiled = vit("only_partitioning"), vit("e3")
    load_pretrained(tiled, once.state_dict())
    x = torch.randn(6, 5, 16, dtype=torch.float64)
    change, _ = once.blocks[1].layer(x)
    copies, _ = tiled.blocks[1].layer(x.repeat_interleave(2, 0))
    torch.testing.assert_close(change, copies.unflatten(0, (6, 2)).mean(1), rtol=0, atol=1e-12)
    assert once(images())[0].shape == (6, 1, 5)


def test_several_heads_read_one_v_moe():
    model = vit("multi_head", members=3)
    logits, _ = model(images())
    features, _ = model.features(images())
    assert features.shape == (6, 1, 16)
    for member in range(3):
        rows = slice(5 * member, 5 * member + 5)
        torch.testing.assert_close(logits[:, member], features[:, 0] @ model.head.weight[rows].T + model.head.bias[rows])


@pytest.mark.parametrize(("variant", "k"), [("e3", 2), ("only_tiling", 4), ("only_partitioning", 2), ("multi_head", 4)])
def test_gradients_reach_every_member(variant, k):
    model = vit(variant, k=k, **EVEN).train()  # all experts are chosen: of the last block, only the class tokens' choices matter
    logits, reports = model(images(16))
    labels = torch.arange(16) % 5
    loss = mean_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, sum(functional.cross_entropy(member, labels) for member in logits.unbind(1)) / logits.shape[1])
    (loss + 0.005 * sum(aux.losses["importance"] + aux.losses["load"] for aux in reports)).backward()
    for name, parameter in model.named_parameters():
        each = parameter.grad if ".experts." in name or ".router." in name else parameter.grad[None]
        assert all(gradient.abs().max() > 0 for gradient in each), name
    if variant == "multi_head":
        assert all(gradient.abs().max() > 0 for gradient in model.head.weight.grad.chunk(2))


def test_the_ensemble_is_never_worse_than_its_members_are_on_average():
    logits, _ = vit("e3", members=4)(images())
    labels = torch.arange(6) % 5
    assert functional.nll_loss(ensemble_log_probs(logits), labels) < mean_cross_entropy(logits, labels)


def test_experts_start_alike_or_not():
    for alike in (True, False):
        layer = ViT(SHAPE, 5, Mixture(variant="vmoe", experts=4, alike=alike)).blocks[1].layer
        assert torch.equal(layer.experts.fc1_weight[0], layer.experts.fc1_weight[3]) == alike
        limit = math.sqrt(6 / (16 + 32))
        assert 0.9 * limit < layer.experts.fc1_weight.abs().max() < limit


def test_dropout_stands_where_the_public_code_has_it():
    model, seen = vit("e3", shape=SHAPE.model_copy(update={"dropout": 0.5})), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, tuple(args[0].shape))))
    assert torch.equal(model(images(3))[0], vit("e3")(images(3))[0])  # evaluation drops nothing
    dense, experts, token, wide = 3, 6, (5, 16), (5, 32)
    expected = [("dropout", (dense, *token))]
    for index in range(4):
        rows = dense if index == 0 else experts
        expected.append((f"blocks.{index}.dropout", (rows, *token)))
        expected += [] if index % 2 else [(f"blocks.{index}.layer.dropout", (rows, *wide))]
        expected.append((f"blocks.{index}.dropout", (rows, *token)))
    assert seen == expected
    everything = vit("e3", shape=SHAPE.model_copy(update={"dropout": 1.0})).train()
    with torch.no_grad():
        everything.norm.bias.normal_()
    torch.testing.assert_close(everything(images(3))[0], everything.head(everything.norm.bias).expand(3, 2, -1))


def test_no_dropout_draws_nothing():
    model = vit("dense").train()
    state = torch.get_rng_state()
    logits, _ = model(images())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(logits, model.eval()(images())[0])


def test_an_untrained_model_learns_its_batch():
    model = vit("e3", dtype=torch.float32).train()
    x, labels = images(20).float(), torch.arange(20) % 5
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = mean_cross_entropy(model(x)[0], labels)
        loss.backward()
        optimiser.step()
    assert (ensemble_log_probs(model.eval()(x)[0]).argmax(-1) == labels).all()


def size(name, mixture=None, image=224):
    patch, layers, width, inner, heads = SIZES[name]
    with torch.device("meta"):
        return ViT(Vision(image=image, patch=patch, layers=layers, width=width, heads=heads, inner=inner), 1000, mixture)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("B/32", 88_224_232), ("B/16", 86_567_656), ("L/32", 306_535_400), ("L/16", 304_326_632), ("H/14", 632_045_800)],
)
def test_parameters_are_those_that_torchvision_publishes(name, parameters):
    assert sum(parameter.numel() for parameter in size(name).parameters()) == parameters


def test_e3_has_as_many_parameters_as_v_moe():
    dense, v_moe, e3 = (
        sum(parameter.numel() for parameter in size("S/32", mixture).parameters())
        for mixture in (None, Mixture(variant="vmoe", experts=32, last=2), Mixture(variant="e3", experts=32, last=2, members=2))
    )
    assert e3 == v_moe == dense + 2 * (31 * (2 * 512 * 2048 + 512 + 2048) + 32 * 512)


@pytest.mark.parametrize(
    ("name", "last", "ratio", "fewer", "v_moe"),
    [
        ("S/32", 2, 1.355, 32.2, 1.156),
        ("B/32", 2, 1.244, 37.8, 1.108),
        ("B/16", 2, 1.249, 37.6, 1.106),
        ("L/32", 2, 1.124, 43.8, 1.055),
        ("L/16", 2, 1.125, 43.8, 1.054),
        ("H/14", 2, 1.094, 45.3, 1.040),
        ("H/14", 5, None, 35.9, None),
        ("L/32", 5, None, 31.4, None),
    ],
)
def test_costs_against_a_deep_ensemble(name, last, ratio, fewer, v_moe):
    # derived by hand with 32 experts, K = 1, M = 2: 32 to 45 % fewer operations, the paper says up to 45 %
    dense = flops_per_image(size(name))
    e3 = flops_per_image(size(name, Mixture(variant="e3", experts=32, last=last, members=2)))
    assert 100 * (1 - e3 / (2 * dense)) == pytest.approx(fewer, abs=0.1)
    if ratio:
        assert e3 / dense == pytest.approx(ratio, abs=0.002)  # by hand a member's router has 16 columns; ours has 32, half of them unread
        double = flops_per_image(size(name, Mixture(variant="vmoe", experts=32, last=last)), rows=2)
        assert double / dense == pytest.approx(v_moe, abs=0.0006)


def test_the_dense_formula_is_torchs_count():
    model = vit("dense", dtype=torch.float32)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images(3).float())
    assert counter.get_total_flops() == 3 * flops_per_image(model)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"patch": 3}, "image 8 is not a multiple of patch 3"),
        ({"depth": 1}, "depth"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        Vision(**(SHAPE.model_dump() | change))


def test_mixtures_and_images_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="V-MoE has 1"):
        Mixture(variant="vmoe", experts=4, members=2)
    with pytest.raises(ValueError, match="'tiled'"):
        Mixture(variant="e3", experts=4, members=2, options={"tiled": True})
    with pytest.raises(ValueError, match="divide the number of experts"):
        vit("e3", members=3)
    with pytest.raises(ValueError, match=r"\(3, 9, 9\): should be \(3, 8, 8\)"):
        vit("e3")(torch.zeros(2, 3, 9, 9, dtype=torch.float64))
