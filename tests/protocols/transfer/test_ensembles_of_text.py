"""MC dropout and BatchEnsemble around the text classifiers, against loops and models without them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from moebench.data.catalogue import task
from moebench.ensembles.batch_ensemble import BatchEnsembleLinear
from moebench.models import shapes
from moebench.models.build import build_encoder
from moebench.protocols.transfer.config import Finetuning
from moebench.protocols.transfer.features import LONGEST_ANSWER
from moebench.protocols.transfer.finetuning import FinetuningModule

SHAPE = shapes.Encoder(layers=4, width=16, heads=4, inner=32, dropout=0.2)
SPARSE = shapes.Sparse(experts=4, inner=8)
OPTIONS = Finetuning(steps=1, batch=4, rate=1e-3)
KINDS = {"pair": "xnli", "tagging": "udpos", "qa": "xquad"}
EXTRA = {"pair": "segment", "tagging": "first", "qa": "allowed"}


def module_of(kind, ensemble=None, members=1, sparse=None):
    torch.manual_seed(0)
    method = {"layer": "moe", "router": "xmoe", "options": {}} if sparse else {"layer": "none"}
    encoder = build_encoder(SHAPE, sparse, method, 50)
    losses = {"balance": 0.01} if sparse else {}
    return FinetuningModule(encoder, OPTIONS, losses, 0.0, 0, task(KINDS[kind]), False, ensemble, members).eval()


def batch_of(kind):
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(7) < torch.tensor([7, 5, 7, 5])[:, None]
    batch = {"ids": torch.randint(0, 50, (4, 7), generator=generator), "mask": mask}
    if kind == "pair":
        return batch | {"segment": torch.tensor([0, 1, 1, 2, 2, 0, 0]) * mask, "labels": torch.tensor([0, 1, 2, 0])}
    if kind == "tagging":
        return batch | {"first": torch.tensor([[1, 2]] * 4), "labels": torch.tensor([[0, 1], [2, -100], [1, 1], [0, 2]])}
    allowed = torch.tensor([1, 0, 0, 1, 1, 1, 1]).bool() & mask
    return batch | {"allowed": allowed, "labels": torch.tensor([[3, 4], [0, 0], [4, 6], [3, 3]])}


def plain(module, kind, batch):
    return module.head(module.encoder(batch["ids"], batch["mask"])[0], batch[EXTRA[kind]])


@torch.no_grad()
def predicted(module, batch, number):
    return module.predict_step(batch, number)


@torch.no_grad()
def passes(module, kind, batch, seed, count):
    """The loop that MC dropout is: the same seed, dropout alone in training, one pass after another; members first."""
    for part in module.modules():
        part.training = isinstance(part, nn.Dropout)
    torch.manual_seed(seed)
    logits = [plain(module, kind, batch) for _ in range(count)]
    module.eval()
    return torch.stack(logits)


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", ["pair", "tagging"])
def test_mc_dropout_is_a_loop_over_passes(kind, sparse):
    module, batch = module_of(kind, "mc_dropout", 3, sparse), batch_of(kind)
    found = predicted(module, batch, 5)
    expected = passes(module, kind, batch, 5, 3).softmax(-1)
    np.testing.assert_array_equal(found, expected.transpose(0, 1).numpy())
    np.testing.assert_array_equal(found, predicted(module, batch, 5))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[:, one] - found[:, other]).max() > 1e-4
    assert np.abs(found - predicted(module, batch, 6)).max() > 1e-4
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_ensemble_without_vectors_of_its_own_is_the_plain_model(kind, sparse):
    single, module, batch = module_of(kind, sparse=sparse), module_of(kind, "batch_ensemble", 3, sparse), batch_of(kind)
    converted = [name for name, part in module.named_modules() if isinstance(part, BatchEnsembleLinear)]
    assert converted == [f"encoder.blocks.{index}.{part}" for index in (2, 3) for part in ("inner", "outer")]
    assert torch.equal(single.head.linear.weight, module.head.linear.weight)
    apart = module._member_scores(batch, 0)
    assert (apart[:, 0] - apart[:, 1]).nan_to_num().abs().max() > 1e-4
    for name in converted:
        part = module.get_submodule(name)
        for vector in (part.fast_input, part.fast_output):
            nn.init.ones_(vector)
    expected, found = predicted(single, batch, 0), predicted(module, batch, 0)
    if kind == "qa":
        np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])
    else:
        np.testing.assert_allclose(found, np.stack([expected] * 3, axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_batch_ensemble_is_the_mean_of_its_members(kind):
    module, batch = module_of(kind, "batch_ensemble", 3), batch_of(kind)
    logits, targets, _ = module.outputs(batch)
    losses = []
    for scores in module._member_scores(batch, 0).unbind(1):
        each = scores.transpose(1, 2) if kind == "qa" else scores
        losses.append(functional.cross_entropy(each.flatten(0, -2), batch["labels"].flatten()))
    torch.testing.assert_close(functional.cross_entropy(logits, targets), sum(losses) / 3)
    assert max(losses) - min(losses) > 1e-4


def test_fast_weights_are_not_decayed():
    module = module_of("pair", "batch_ensemble", 3)
    decay = {id(one): group["weight_decay"] for group in module.configure_optimizers()["optimizer"].param_groups for one in group["params"]}
    inner = module.encoder.blocks[3].inner
    assert [decay[id(one)] for one in (inner.fast_input, inner.fast_output, inner.bias, inner.weight)] == [0, 0, 0, OPTIONS.weight_decay]


@pytest.mark.parametrize("ensemble", ["mc_dropout", "batch_ensemble"])
def test_a_span_is_the_best_under_the_mean_of_the_members_probabilities(ensemble):
    module, batch = module_of("qa", ensemble, 3), batch_of("qa")
    nn.init.normal_(module.head.linear.weight)  # members whose favourites differ
    members = passes(module, "qa", batch, 5, 3) if ensemble == "mc_dropout" else module._member_scores(batch, 5).detach().transpose(0, 1)
    found = predicted(module, batch, 5)
    for row in range(4):
        chances = np.exp(members[:, row].double().numpy())  # (M, S, 2), 0 where no answer may stand
        mean = (chances / chances.sum(axis=1, keepdims=True)).mean(axis=0)
        places = [place for place in range(1, 7) if batch["allowed"][row, place]]
        spans = {(a, b): mean[a, 0] * mean[b, 1] for a in places for b in places if a <= b < a + LONGEST_ANSWER}
        best = max(spans, key=spans.get)
        assert tuple(found[row, 1:]) == best
        assert found[row, 0] == pytest.approx(np.log(spans[best]) + 2 * np.log(3), abs=1e-4)  # but for the constant, the sum over members
