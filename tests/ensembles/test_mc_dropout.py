"""MC dropout: what is random and what is not, and the mean over many passes."""

import pytest
import torch
from torch import nn

from moebench.ensembles.mc_dropout import dropout_on, mc_dropout
from moebench.models import shapes
from moebench.models.encoder import Encoder
from moebench.models.heads import PairHead, TagHead
from moebench.models.vit import Mixture, Vision, ViT

VISION = Vision(image=8, patch=4, layers=2, width=16, heads=4, inner=32, dropout=0.2)
TEXT = shapes.Encoder(layers=2, width=16, heads=4, inner=32, dropout=0.2)


def vit(mixture=None, **change):
    torch.manual_seed(0)
    return ViT(VISION.model_copy(update=change), 5, mixture).eval()


def images(count=6):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_only_dropout_is_random_and_modes_are_restored():
    model = vit(Mixture(variant="vmoe", experts=4)).train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    with dropout_on(model):
        assert {type(module) for module in model.modules() if module.training} == {nn.Dropout}
    assert [module.training for module in model.modules()] == before

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        mc_dropout(model, fails, 2)
    assert [module.training for module in model.modules()] == before


def test_without_a_rate_every_pass_is_the_plain_one():
    model = vit(Mixture(variant="vmoe", experts=4), dropout=0.0)  # its router's noise is off, too
    plain = model(images())[0][:, 0]
    state = torch.get_rng_state()
    passes = mc_dropout(model.train(), lambda: model(images())[0][:, 0], 3)
    assert torch.equal(state, torch.get_rng_state())
    assert passes.shape == (6, 3, 5)
    assert not passes.requires_grad
    assert all(torch.equal(each, plain) for each in passes.unbind(1))


def test_a_seed_gives_the_same_passes_which_differ_from_one_another():
    model = vit()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(mc_dropout(model, lambda: model(images())[0], 3).flatten(1, 2))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (runs[0][:, one] - runs[0][:, other]).abs().amax(-1).min() > 1e-3


def test_an_ensembles_members_are_multiplied():
    model = vit(Mixture(variant="e3", experts=4, members=2))
    assert mc_dropout(model, lambda: model(images())[0], 3).flatten(1, 2).shape == (6, 6, 5)


def test_the_mean_of_many_passes_is_the_expectation():
    class Tiny(nn.Module):
        """A unit is kept with 3/4; logits are a fixed function of four of them, so that the expectation is a sum over 16 cases."""

        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.25)

        def forward(self, x):
            return torch.tanh(self.dropout(x)) @ weight

    torch.manual_seed(0)
    weight, x, model = torch.randn(4, 3), torch.randn(2, 4), Tiny()
    expected = torch.zeros(2, 3)
    for case in range(16):
        kept = torch.tensor([case >> unit & 1 for unit in range(4)])
        chance = 0.75 ** kept.sum() * 0.25 ** (4 - kept.sum())
        expected += chance * (torch.tanh(x * kept / 0.75) @ weight).softmax(-1)
    errors = [(mc_dropout(model, lambda: model(x), passes).softmax(-1).mean(1) - expected).abs().max() for passes in (4, 4000)]
    assert errors[1] < 0.015  # five standard errors of a probability
    assert errors[1] < errors[0]


@pytest.mark.parametrize("head", ["pair", "tagging"])
def test_text(head):
    torch.manual_seed(0)
    module = nn.ModuleDict({"encoder": Encoder(TEXT, 50), "head": PairHead(16, 3) if head == "pair" else TagHead(16, 3)}).eval()
    ids = torch.randint(0, 50, (4, 7))
    mask = torch.arange(7) < torch.tensor([7, 5, 7, 3])[:, None]
    extra = torch.tensor([0, 1, 1, 2, 2, 0, 0]) * mask if head == "pair" else torch.tensor([[1, 2]] * 4)

    def predict():
        return module["head"](module["encoder"](ids, mask)[0], extra)

    logits = mc_dropout(module, predict, 5)
    assert logits.shape == ((4, 5, 3) if head == "pair" else (4, 5, 2, 3))
    assert logits.std(1).min() > 0
    assert torch.equal(predict(), predict())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="Linear has no dropout"):
        mc_dropout(nn.Linear(2, 2), lambda: torch.zeros(1), 2)
    with pytest.raises(ValueError, match="passes 0"):
        mc_dropout(vit(), lambda: torch.zeros(1), 0)
