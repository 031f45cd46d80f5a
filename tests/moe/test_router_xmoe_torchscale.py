"""TorchScale's X-MoE gate against TorchScale's arrays, and against the paper's router."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moebench.moe import RouterInputs
from moebench.moe.routers.xmoe import XMoE
from moebench.moe.routers.xmoe_torchscale import XMoETorchscale

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01", "case02", "case03", "case04")
T, D, E = 23, 10, 6


def golden(case):
    with np.load(GOLDEN / "xmoe_torchscale_gate.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def loaded(data, **options):
    module = XMoETorchscale(int(data["d"]), int(data["E"]), **options).train(bool(data["train"]))
    with torch.no_grad():
        module.projection.weight.copy_(data["wg_reduction"])
        module.embedding.copy_(data["wg"])
    return module


def router(**options):
    torch.manual_seed(0)
    module = XMoETorchscale(D, E, **options).double()
    module.after_optimizer_step()  # norm 1.5 to the last bit of fp64
    return module, torch.randn(T, D, dtype=torch.float64)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_torchscale(case, held):
    """There padding counts among the tokens of the capacity and of the loss; here it is gone before the router.

    So the factor is set to give the same capacity, and where a case has padding, the loss and its gradient are rebuilt from all rows.
    Its arrays are of embeddings that the forward pass has put to norm 1.5; without that gradients are 1.5 / norm as large.
    """
    data = golden(case)
    real, tokens, experts = ~data["pad_mask"], int(data["T"]), int(data["E"])
    factor = (data["capacity"].item() + 0.5) / math.ceil(int(real.sum()) / experts)
    module = loaded(data, capacity_factor=factor, eval_capacity_factor=factor)
    ratio = torch.ones(())
    if held:
        module.after_optimizer_step()
        torch.testing.assert_close(module.embedding.detach(), data["wg_after"], rtol=0, atol=1e-6)
    else:
        ratio = 1.5 / data["wg"].norm(dim=1, keepdim=True)
        assert (ratio > 2).any()
    x = data["x"].requires_grad_()
    routing = module(RouterInputs(x[real]))

    kept = data["kept"][real]
    assert torch.equal(routing.token, kept.nonzero()[:, 0])
    assert torch.equal(routing.expert, data["argmax"][real][kept])
    assert routing.dropped == (~kept).sum()
    torch.testing.assert_close(routing.scores, data["logits"][real], rtol=0, atol=1e-5)
    torch.testing.assert_close(routing.weight.detach(), data["gate"][real][kept], rtol=0, atol=1e-6)

    chosen = torch.bincount(data["argmax"][real], minlength=experts) / tokens
    all_TE = (x @ module.projection.weight.T @ F.normalize(module.embedding, dim=1).T).softmax(-1)
    balance = experts * (chosen * all_TE.mean(0)).sum() if (~real).any() else routing.losses["balance"]
    assert balance.item() == pytest.approx(data["l_aux"].item(), abs=1e-5)
    (balance + (routing.weight * data["upstream"][real][routing.token, routing.expert]).sum()).backward()
    torch.testing.assert_close(x.grad, data["grad_x"], rtol=0, atol=1e-5)
    torch.testing.assert_close(module.projection.weight.grad, data["grad_wg_reduction"], rtol=0, atol=1e-5)
    torch.testing.assert_close(module.embedding.grad / ratio, data["grad_wg"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["case00", "case02", "case04"])
def test_torchscales_capacity_is_ours_where_its_options_have_a_counterpart(case):
    data = golden(case)
    assert not data["pad_mask"].any()
    # in evaluation it takes a quarter of the tokens
    module = loaded(data, capacity_factor=data["capacity_factor"].item(), eval_capacity_factor=data["E"].item() / 4)
    assert torch.equal(module(RouterInputs(data["x"])).token, data["kept"].nonzero()[:, 0])


def test_the_same_experts_as_the_papers_router():
    ours, x = router(capacity_factor=None)
    paper = XMoE(D, E, dim=16).double()
    with torch.no_grad():
        paper.projection.copy_(ours.projection.weight)
        paper.embedding.copy_(ours.embedding)
    assert torch.equal(ours(RouterInputs(x)).expert, paper(RouterInputs(x)).expert)
    lengths = (x @ ours.projection.weight.T).norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours(RouterInputs(x)).scores, lengths.detach() * paper(RouterInputs(x)).scores)


@pytest.mark.parametrize("experts", [4, 40])  # 40 exceeds the width: rows cannot be orthogonal, and start at different norms
def test_embeddings_are_held_at_norm_one_and_a_half(experts):
    torch.manual_seed(0)
    module, held = XMoETorchscale(D, experts), torch.full((experts,), 1.5)
    torch.testing.assert_close(module.embedding.norm(dim=1), held)
    before = module.embedding.detach().clone()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05)
    routing = module(RouterInputs(torch.randn(50, D)))
    (routing.weight.sum() + routing.losses["balance"]).backward()
    radial = (module.embedding.grad * module.embedding).sum(1)
    torch.testing.assert_close(radial, torch.zeros(experts), rtol=0, atol=1e-6)  # gradients change angles only
    optimiser.step()
    assert (module.embedding.norm(dim=1) - held).abs().max() > 1e-3
    module.after_optimizer_step()
    torch.testing.assert_close(module.embedding.norm(dim=1), held)
    assert torch.cosine_similarity(module.embedding, before).min() < 0.9999


def test_training_in_steps_is_torchscales():
    """Rescaling at the start of every forward pass, as there, or after every step: the same embeddings."""
    ours, x = router(capacity_factor=None)
    theirs, _ = router(capacity_factor=None)
    start = ours.embedding.detach().clone()
    optimisers = [torch.optim.AdamW(module.parameters(), lr=0.05) for module in (ours, theirs)]
    for step in range(5):
        for module, optimiser in zip((ours, theirs), optimisers, strict=True):
            if module is theirs:
                module.after_optimizer_step()
            optimiser.zero_grad()
            routing = module(RouterInputs(x + step))
            (routing.weight.sum() + routing.losses["balance"]).backward()
            optimiser.step()
            if module is ours:
                module.after_optimizer_step()
    theirs.after_optimizer_step()
    torch.testing.assert_close(ours.embedding, theirs.embedding, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.projection.weight, theirs.projection.weight, rtol=0, atol=1e-9)
    assert (ours.embedding - start).abs().max() > 0.01


def test_frozen_and_evaluated_nothing_changes():
    module, x = router()
    with torch.no_grad():
        module.embedding.mul_(0.3)
    before = module.embedding.detach().clone()
    module.eval()(RouterInputs(x))
    assert torch.equal(module.embedding, before)
    module.requires_grad_(False).after_optimizer_step()
    assert torch.equal(module.embedding, before)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
def test_capacity_is_first_come_first_served(factor):
    module, x = router(capacity_factor=factor)
    routing = module(RouterInputs(x))
    limit, taken, expected = max(math.floor(factor * math.ceil(T / E)), 1), [0] * E, []
    for token, expert in enumerate(routing.scores.argmax(1).tolist()):
        if taken[expert] < limit:
            taken[expert] += 1
            expected.append(token)
    assert routing.token.tolist() == expected
    assert routing.dropped == T - len(expected) > 0
    assert module.eval()(RouterInputs(x)).dropped == 0


def test_losses():
    module, x = router(capacity_factor=0.5)
    routing = module(RouterInputs(x))
    chosen = torch.bincount(routing.scores.argmax(1), minlength=E).double() / T
    assert routing.losses["balance"].item() == pytest.approx((E * chosen * routing.scores.softmax(-1).mean(0)).sum().item(), abs=1e-12)
    assert routing.losses["z"].item() == pytest.approx(routing.scores.exp().sum(1).log().square().mean().item(), abs=1e-12)
    uniform = module(RouterInputs(x * 0)).losses
    assert uniform["balance"].item() == pytest.approx(1, abs=1e-12)
    assert uniform["z"].item() == pytest.approx(math.log(E) ** 2, abs=1e-12)
    with torch.no_grad():
        module.projection.weight.mul_(1e4)  # the longer the token the surer
    assert module(RouterInputs(x[:1].expand(T, D))).losses["balance"].item() == pytest.approx(E, abs=1e-9)


def test_no_tokens():
    module, x = router()
    routing = module(RouterInputs(x[:0]))
    assert len(routing.token) == routing.losses["balance"] == routing.losses["z"] == routing.dropped == 0


def test_defaults_are_torchscales():
    module = XMoETorchscale(D, E)
    assert module.projection.weight.shape == (16, D)
    assert module.projection.bias is None
    assert (module.capacity_factor, module.eval_capacity_factor) == (1.0, None)
    gram = module.embedding @ module.embedding.T
    torch.testing.assert_close(gram, 2.25 * torch.eye(E))


@pytest.mark.parametrize("options", [{"dim": 0}, {"capacity_factor": 0.0}, {"eval_capacity_factor": -1.0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        XMoETorchscale(D, E, **options)
