"""MIMO: its start from a dense model, its batches and what its members see."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from moebench.ensembles.mimo import mimo_vit, tile, training_batch
from moebench.models.vit import Mixture, Vision, ViT, flops_per_image, load_pretrained

SHAPE = Vision(image=8, patch=4, layers=2, width=16, heads=4, inner=32)


def vit(seed=0, mixture=None):
    torch.manual_seed(seed)
    return ViT(SHAPE, 5, mixture).double().eval()


def mimo(members, apart=0.5, seed=0):
    model = vit(seed)
    mimo_vit(model, members, apart)
    return model


def images(count=6):
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_one_member_is_the_dense_model():
    assert torch.equal(mimo(1)(images())[0], vit()(images())[0])


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("members", [2, 3])
def test_with_the_same_image_it_starts_as_the_dense_model(members, apart):
    expected, _ = vit()(images())
    logits, _ = mimo(members, apart)(tile(images(), members))
    torch.testing.assert_close(logits, expected.expand(-1, members, -1), rtol=0, atol=1e-12)


def test_with_several_images_it_embeds_their_mean_but_for_what_keeps_them_apart():
    pair = torch.cat([images()[:3], images()[3:]], 1)
    expected = vit().patches(images()).unflatten(0, (2, 3)).mean(0)
    torch.testing.assert_close(mimo(2, 0.0).patches(pair), expected, rtol=0, atol=1e-12)
    model = mimo(2)
    swapped = pair.unflatten(1, (2, 3)).flip(1).flatten(1, 2)
    assert (model(pair)[0] - model(swapped)[0]).abs().max() > 1e-2
    kernel, halves = vit().patches.weight, model.patches.weight.unflatten(1, (2, 3))
    torch.testing.assert_close(halves.sum(1), kernel)
    ratio = (2 * halves[:, 0] - kernel).square().mean().sqrt() / kernel.square().mean().sqrt()
    assert ratio.item() == pytest.approx(0.5 * (1 - 1 / 2) ** 0.5, rel=0.1)


def test_it_starts_from_pretrained_weights_and_goes_on_from_its_own():
    pretrained, model = vit(1), vit(2)
    load_pretrained(model, pretrained.state_dict())
    expected, _ = model.features(images())
    mimo_vit(model, 2)
    torch.testing.assert_close(model.features(tile(images(), 2))[0], expected, rtol=0, atol=1e-12)
    again = mimo(2, seed=3)
    again.load_state_dict(model.state_dict())
    pair = images().unflatten(0, (3, 2)).flatten(1, 2)
    assert torch.equal(again(pair)[0], model(pair)[0])


def test_a_batch_keeps_images_and_labels_together_and_uses_all_of_them():
    torch.manual_seed(0)
    labels = torch.arange(10)
    x = labels.double().view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    inputs, own = training_batch(x, labels, 3, repeats=4)
    assert inputs.shape == (40, 9, 8, 8)
    assert own.shape == (40, 3)
    assert torch.equal(inputs, own.double().repeat_interleave(3, 1)[..., None, None].expand_as(inputs))
    for member in own.unbind(1):
        assert torch.equal(member.bincount(), torch.full((10,), 4))
    assert not torch.equal(own[:, 0], own[:, 1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_share_of_repeated_images(share):
    torch.manual_seed(0)
    labels = torch.arange(500)
    _, own = training_batch(torch.zeros(500, 1, 1, 1), labels, 2, share, repeats=2)
    alike = own[:, 0] == own[:, 1]
    assert alike[1000 - round(1000 * share) :].all()
    assert alike.sum() <= 1000 * share + 10  # shuffles agree by chance at two places on average
    assert torch.equal(own[:, 1].bincount(), torch.full((500,), 2))


def test_a_seed_gives_the_same_batch_and_start():
    batches, kernels = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(training_batch(images(), torch.arange(6), 2, 0.5)[1])
        kernels.append(mimo(2, seed=seed).patches.weight)
    for runs in (batches, kernels):
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])


def test_the_loss_is_the_members_mean_and_reaches_every_kernel_and_head():
    model = mimo(2).train()
    torch.manual_seed(0)
    inputs, labels = training_batch(images(), torch.arange(6) % 5, 2)
    logits, _ = model(inputs)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())  # as `Training` has it
    torch.testing.assert_close(loss, sum(functional.cross_entropy(logits[:, m], labels[:, m]) for m in range(2)) / 2)
    loss.backward()
    gradients = [*model.patches.weight.grad.chunk(2, 1), *model.head.weight.grad.chunk(2)]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert not torch.equal(gradients[2], gradients[3])


def test_members_learn_their_own_images():
    torch.manual_seed(0)
    model = ViT(SHAPE, 5)
    mimo_vit(model, 2)
    x, labels = images(20).float(), torch.arange(20) % 5
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        inputs, own = training_batch(x, labels, 2)
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs)[0].flatten(0, 1), own.flatten()).backward()
        optimiser.step()
    inputs, own = training_batch(x, labels, 2, repeats=10)
    right = model(inputs)[0].argmax(-1) == own
    assert right.float().mean(0).min() > 0.9
    assert (model(tile(x, 2))[0].softmax(-1).mean(1).argmax(-1) == labels).all()


def test_costs_are_those_of_one_pass():
    model = mimo(2).float()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tile(images(), 2).float())
    assert counter.get_total_flops() == 6 * flops_per_image(model)
    assert flops_per_image(model) - flops_per_image(vit()) == 2 * 4 * 16 * 3 * 4**2 + 2 * 16 * 5


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="2 members already"):
        mimo_vit(mimo(2), 2)
    with pytest.raises(ValueError, match="2 members already"):
        mimo_vit(vit(mixture=Mixture(variant="e3", experts=4, members=2)), 2)
    with pytest.raises(ValueError, match=r"repetition 1\.5"):
        training_batch(images(), torch.arange(6), 2, 1.5)
    with pytest.raises(ValueError, match=r"should be \(6, 8, 8\)"):
        mimo(2)(images())
