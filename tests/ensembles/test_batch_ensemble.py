"""BatchEnsemble against separate layers and models with the members' own matrices."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from moebench.ensembles.batch_ensemble import BatchEnsembleLinear, batch_ensemble_encoder, batch_ensemble_vit, convert, fast_weights, tile
from moebench.errors import MoebenchError
from moebench.models import shapes
from moebench.models.encoder import Encoder
from moebench.models.heads import PairHead, TagHead
from moebench.models.vit import Mixture, Vision, ViT, flops_per_image, load_pretrained, mean_cross_entropy

VISION = Vision(image=8, patch=4, layers=4, width=16, heads=4, inner=32)
TEXT = shapes.Encoder(layers=3, width=16, heads=4, inner=32)


def vit(mixture=None, seed=0):
    torch.manual_seed(seed)
    return ViT(VISION, 5, mixture).double().eval()


def images(count=6):
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def lone(make, converted, member):
    """The dense model that a member is: W_m = W ∘ s_m r_mᵀ and its bias where a layer was converted, everything else as it is."""
    dense, state = make(), dict(converted.state_dict())
    for name, module in converted.named_modules():
        if isinstance(module, BatchEnsembleLinear):
            state[f"{name}.weight"] = module.weight * torch.outer(module.fast_output[member], module.fast_input[member])
            state[f"{name}.bias"] = module.bias[member]
            del state[f"{name}.fast_input"], state[f"{name}.fast_output"]
    dense.load_state_dict(state)
    return dense


def scatter_biases(model):
    """Members start with the same biases; let them differ."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchEnsembleLinear):
                module.bias.normal_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 2, 5, 4)])
@pytest.mark.parametrize("fast", [0.5, "signs"])
def test_a_layer_is_as_many_layers_as_members(shape, bias, fast):
    torch.manual_seed(0)
    dense = nn.Linear(4, 3, bias=bias).double()
    layer = BatchEnsembleLinear(dense, 2, fast)
    if bias:
        scatter_biases(layer)
    x = torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    for row in range(6):
        m = row % 2
        own = dense.weight * torch.outer(layer.fast_output[m], layer.fast_input[m])
        torch.testing.assert_close(y[row], x[row] @ own.T + (layer.bias[m] if bias else 0), rtol=0, atol=1e-12)


def test_fast_weights_start_as_signs_or_around_one():
    torch.manual_seed(0)
    signs = BatchEnsembleLinear(nn.Linear(400, 300), 4, "signs")
    for parameter in (signs.fast_input, signs.fast_output):
        assert parameter.unique().tolist() == [-1, 1]
        assert parameter.mean().abs() < 0.1
    normal = BatchEnsembleLinear(nn.Linear(400, 300), 4)
    assert normal.fast_input.mean().item() == pytest.approx(1, abs=0.05)
    assert normal.fast_output.std().item() == pytest.approx(0.5, abs=0.05)


def test_members_of_a_vision_transformer():
    model = vit()
    batch_ensemble_vit(model, 3, (1, 3))
    scatter_biases(model)
    logits, _ = model(images())
    assert logits.shape == (6, 3, 5)
    for member in range(3):
        torch.testing.assert_close(logits[:, [member]], lone(vit, model, member)(images())[0], rtol=0, atol=1e-12)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 0.1


def test_identical_fast_weights_leave_the_dense_model():
    dense = vit()
    expected = dense(images())[0]
    for members in (1, 2):
        model = vit()
        batch_ensemble_vit(model, members, (2, 3), fast=0)
        torch.testing.assert_close(model(images())[0], expected.expand(-1, members, -1), rtol=0, atol=1e-14)


def test_slow_weights_are_those_that_were_pretrained():
    pretrained, model = vit(), vit(seed=1)
    load_pretrained(model, pretrained.state_dict())
    slow = model.blocks[3].layer.inner.weight
    batch_ensemble_vit(model, 2, (3,))
    assert model.blocks[3].layer.inner.weight is slow
    assert torch.equal(slow, pretrained.blocks[3].layer.inner.weight)
    assert torch.equal(model.blocks[3].layer.inner.bias, pretrained.blocks[3].layer.inner.bias.expand(2, -1))
    again = vit(seed=2)
    batch_ensemble_vit(again, 2, (3,))
    again.load_state_dict(model.state_dict())  # a run goes on
    assert torch.equal(again(images())[0], model(images())[0])
    with pytest.raises(MoebenchError, match="another vision transformer"):
        load_pretrained(again, pretrained.state_dict())


def test_blocks_below_run_once_and_the_cost_is_that_of_copies():
    model, rows = vit(), []
    dense = flops_per_image(model)
    batch_ensemble_vit(model, 2, (2,))
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model(images())
    assert rows == [6, 6, 12, 12]
    block = 8 * 5 * 16**2 + 4 * 5**2 * 16 + 4 * 5 * 16 * 32
    assert flops_per_image(model) - dense == 2 * block + 2 * 16 * 5


@pytest.mark.parametrize("fast", [0.5, "signs"])
def test_gradients_reach_all_fast_weights_and_the_mean_of_the_members_the_slow(fast):
    model = vit()
    batch_ensemble_vit(model, 2, (1, 3), fast)
    labels = torch.arange(6) % 5
    mean_cross_entropy(model(images())[0], labels).backward()
    named = dict(model.named_parameters())
    names = fast_weights(model)
    assert set(names) == {name for name in named if "fast" in name}
    assert len(names) == 2 * 5
    for name in [*names, "blocks.1.layer.inner.bias", "head.bias"]:
        assert all(gradient.abs().max() > 0 for gradient in named[name].grad), name
    total = 0
    for member in range(2):
        alone = lone(vit, model, member)
        functional.cross_entropy(alone(images())[0][:, 0], labels).backward()
        layer = model.blocks[3].layer.outer
        total = total + alone.blocks[3].layer.outer.weight.grad * torch.outer(layer.fast_output[member], layer.fast_input[member])
    torch.testing.assert_close(named["blocks.3.layer.outer.weight"].grad, total / 2, rtol=0, atol=1e-12)


def text(kind):
    """An encoder and a head in one module, called with a batch."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder(TEXT, 50)
            self.head = (PairHead if kind == "pair" else TagHead)(16, 3)

        def forward(self, batch):
            return self.head(self.encoder(batch["ids"], batch["mask"])[0], batch["extra"])

    torch.manual_seed(0)
    return Classifier().double().eval()


def batch_of(kind):
    mask = torch.arange(7) < torch.tensor([7, 5, 7, 5])[:, None]
    ids = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))
    if kind == "pair":
        return {"ids": ids, "mask": mask, "extra": torch.tensor([0, 1, 1, 2, 2, 0, 0]) * mask, "labels": torch.tensor([0, 1, 2, 0])}
    return {"ids": ids, "mask": mask, "extra": torch.tensor([[1, 2]] * 4), "labels": torch.tensor([[0, 1], [2, -100], [1, 1], [0, 2]])}


@pytest.mark.parametrize("kind", ["pair", "tagging"])
def test_members_of_a_text_encoder(kind):
    model, batch = text(kind), batch_of(kind)
    batch_ensemble_encoder(model.encoder, 3, (1, 2))
    scatter_biases(model)
    tiled = tile(batch, 3)
    outputs = model(tiled)
    logits = outputs.unflatten(0, (-1, 3))
    assert logits.shape == ((4, 3, 3) if kind == "pair" else (4, 3, 2, 3))
    losses = []
    for member in range(3):
        alone = lone(lambda: text(kind), model, member)(batch)
        torch.testing.assert_close(logits[:, member], alone, rtol=0, atol=1e-12)
        losses.append(functional.cross_entropy(alone.flatten(0, -2), batch["labels"].flatten()))
    loss = functional.cross_entropy(outputs.flatten(0, -2), tiled["labels"].flatten())
    torch.testing.assert_close(loss, sum(losses) / 3)
    loss.backward()
    for name in fast_weights(model):
        assert name.startswith("encoder.blocks.")
        assert all(gradient.abs().max() > 0 for gradient in model.get_parameter(name).grad), name


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="5 rows are not 2 copies"):
        BatchEnsembleLinear(nn.Linear(4, 3), 2)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"blocks\.0 is of type Block"):
        convert(vit(), ["head", "blocks.0"], 2)
    with pytest.raises(ValueError, match="2 members already"):
        batch_ensemble_vit(vit(Mixture(variant="e3", experts=4, members=2)), 2, (0,))
    with pytest.raises(ValueError, match=r"one or more of \[0, 2\]"):
        batch_ensemble_vit(vit(Mixture(variant="vmoe", experts=4)), 2, (1,))
    for blocks in ((), (3,)):
        with pytest.raises(ValueError, match="one or more of 0 to 2"):
            batch_ensemble_encoder(Encoder(TEXT, 50), 2, blocks)
