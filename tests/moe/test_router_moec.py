"""Clusters of experts: the gate against outputs of the public code, the variance loss by hand, and the life of the dropout mask."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.moec import MoEC

D, E = 6, 12
GOLDEN = Path(__file__).parents[1] / "golden" / "xmoe_moec_sigmoid_gate.npz"


def router(**options):
    torch.manual_seed(0)
    module = MoEC(D, E, **{"cluster_size": 4, "dim": 5, **options}).double()
    return module, torch.randn(40, D, dtype=torch.float64)


@pytest.mark.parametrize("case", ["case00", "case01", "case02"])
def test_the_public_gate(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        data = {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}
    width, experts = data["wg_reduction"].shape[0], int(data["E"])
    module = MoEC(int(data["d"]), experts, dim=width, dropout=0.0)
    with torch.no_grad():
        module.projection.weight.copy_(torch.from_numpy(data["wg_reduction"]))
        module.embedding.copy_(torch.from_numpy(data["wg"]))
        module.temperature.copy_(torch.from_numpy(data["gating_t"]))
    routing = module(RouterInputs(torch.from_numpy(data["x"])))
    np.testing.assert_array_equal(routing.expert, data["argmax"])
    np.testing.assert_array_equal(routing.load, data["load"])
    np.testing.assert_allclose(routing.scores, data["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(routing.weight.detach(), data["alpha"], rtol=0, atol=1e-5)
    # the public code sums over tokens and adds 1e-6 to the share of every expert
    assert routing.losses["balance"].item() == pytest.approx(data["l_aux_sum"].item() / data["T"] - data["E"] * 1e-6, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_variance_loss(dropout):
    """As the public code: the probabilities summed over tokens, their variance in each cluster, the mean of these times N."""
    module, x = router(dropout=dropout)
    routing = module(RouterInputs(x))
    alive = module.alive.nonzero()[:, 0].numpy()
    s = routing.scores.numpy()[:, alive] / 0.07
    p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    each = p.sum(0).reshape(3, -1).var(axis=1, ddof=0)
    assert routing.losses["variance"].item() == pytest.approx(len(alive) * each.mean() / 40**2, rel=1e-10)
    gradients = torch.autograd.grad(routing.losses["variance"], [module.embedding, module.projection.weight])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_the_variance_falls_by_being_alike_within_clusters_not_across_them():
    probs = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]])
    cluster = torch.tensor([0, 0, 1, 1])
    assert MoEC._variance(probs, cluster) == 0
    assert MoEC._variance(probs[:, [0, 2, 1, 3]], cluster).item() == pytest.approx(4 * 0.15**2)
    assert MoEC._variance(probs, torch.tensor([0, 1, 2, 3])) == 0  # clusters of one


@pytest.mark.parametrize(("dropout", "survivors"), [(0.0, 4), (0.5, 2), (0.6, 1), (0.9, 1)])
def test_so_many_of_each_cluster_survive(dropout, survivors):
    module, x = router(dropout=dropout)
    assert module.alive.view(3, 4).sum(1).tolist() == [survivors] * 3
    routing = module(RouterInputs(x))
    assert module.alive[routing.expert].all()
    allowed = routing.scores.masked_fill(~module.alive, -torch.inf)
    assert torch.equal(routing.expert, allowed.argmax(1))


def test_a_last_cluster_may_be_smaller():
    torch.manual_seed(0)
    module = MoEC(D, 7, cluster_size=3)
    assert [int(part.sum()) for part in module.alive.split(3)] == [1, 1, 1]
    assert all(loss.isfinite() for loss in module(RouterInputs(torch.randn(5, D))).losses.values())


def test_evaluation_has_all_experts():
    module, x = router(dropout=0.75)
    routing = module.eval()(RouterInputs(x))
    assert torch.equal(routing.expert, routing.scores.argmax(1))
    assert not module.alive[routing.expert].all()


def test_dropped_experts_get_no_gradient():
    module, x = router()
    routing = module(RouterInputs(x))
    (gradient,) = torch.autograd.grad(routing.weight.sum() + sum(routing.losses.values()), module.embedding)
    assert gradient[~module.alive].abs().max() == 0
    assert gradient[module.alive].abs().amax(1).min() > 0


def test_survivors_change_when_the_interval_is_over_and_only_then():
    module, _ = router(dropout_interval=3)
    masks = [module.alive.clone()]
    for _ in range(9):
        module.after_optimizer_step()
        masks.append(module.alive.clone())
    changed = [not torch.equal(one, other) for one, other in pairwise(masks)]
    assert [step + 1 for step, change in enumerate(changed) if change] == [3, 6, 9]


def test_a_loaded_copy_draws_the_same_survivors():
    module, _ = router(dropout_interval=3)
    module.after_optimizer_step()
    other, _ = router(dropout_interval=3)
    other.load_state_dict(module.state_dict())
    for each in (module, other):
        torch.manual_seed(7)
        each.after_optimizer_step()
        each.after_optimizer_step()
    assert torch.equal(module.alive, other.alive)
    assert module.steps == 3


def test_balance_is_1_when_survivors_are_used_alike():
    module, x = router()
    with torch.no_grad():
        module.embedding.zero_()
    losses = module(RouterInputs(x)).losses
    assert losses["balance"].item() == pytest.approx(1, abs=1e-12)
    assert losses["variance"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_learning_drove_out_of_range_stays_finite(tau):
    module, x = router()
    with torch.no_grad():
        module.temperature.fill_(tau)
    routing = module(RouterInputs(x))
    assert routing.weight.isfinite().all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cluster_size": 0}, "cluster_size"),
        ({"dropout_interval": 0}, "dropout_interval"),
        ({"dim": 0}, "dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        MoEC(D, E, **options)
