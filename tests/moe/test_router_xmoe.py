"""The X-MoE router against the paper's formulas in numpy, and against the outputs of MoEc and Tutel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.dot import Dot
from moebench.moe.routers.xmoe import XMoE

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01", "case02")


def golden(file, case):
    with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def router(W, e, *, gate, tau0, tau=None, dtype=torch.float64):
    """A router with given weights; tau: its learned temperature, tau0 unless told."""
    module = XMoE(W.shape[1], e.shape[0], gate=gate, temperature=tau0, dim=W.shape[0]).to(dtype)
    with torch.no_grad():
        module.projection.copy_(torch.from_numpy(W))
        module.embedding.copy_(torch.from_numpy(e))
        module.temperature.fill_(tau or tau0)
    return module


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("gate", "tau"), [("softmax", 0.3), ("sigmoid", 0.3), ("sigmoid", 0.07)])
def test_the_papers_formulas(gate, tau, dtype, tolerance, case):
    data = golden("xmoe_paper_formulas", case)
    module = router(data["W"], data["e"], gate=gate, tau0=tau, dtype=dtype)
    routing = module(RouterInputs(torch.from_numpy(data["x"]).to(dtype)))
    np.testing.assert_array_equal(routing.expert, data["argmax"])
    np.testing.assert_allclose(routing.scores, data["cos"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(routing.weight.detach(), data[f"{gate}_gate_tau{tau}"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(routing.losses["balance"].item(), data[f"balance_tau0_{tau}"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(routing.load.numpy() / data["T"], data["load_fraction"], rtol=0, atol=1e-6)
    assert XMoE(int(data["d"]), int(data["E"])).projection.shape == data["W"].shape  # R = E / 2 is the default


def test_the_balance_loss_keeps_the_temperature_that_the_gate_leaves():
    data = golden("xmoe_paper_formulas", "case00")
    module = router(data["W"], data["e"], gate="sigmoid", tau0=0.07, tau=0.3)
    routing = module(RouterInputs(torch.from_numpy(data["x"])))
    np.testing.assert_allclose(routing.weight.detach(), data["sigmoid_gate_tau0.3"], rtol=0, atol=1e-9)
    assert routing.losses["balance"].item() == pytest.approx(data["balance_tau0_0.07"].item(), abs=1e-9)
    assert torch.autograd.grad(routing.weight.sum(), module.temperature, retain_graph=True)[0].abs() > 0
    assert torch.autograd.grad(routing.losses["balance"], module.temperature, allow_unused=True) == (None,)


@pytest.mark.parametrize("case", CASES)
def test_moec(case):
    data = golden("xmoe_moec_sigmoid_gate", case)
    module = router(data["wg_reduction"], data["wg"], gate="sigmoid", tau0=0.07, tau=data["gating_t"].item(), dtype=torch.float32)
    routing = module(RouterInputs(torch.from_numpy(data["x"])))
    np.testing.assert_array_equal(routing.expert, data["argmax"])
    np.testing.assert_array_equal(routing.load, data["load"])
    np.testing.assert_allclose(routing.scores, data["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(routing.weight.detach(), data["alpha"], rtol=0, atol=1e-5)
    # MoEc sums over tokens and adds 1e-6 to the share of every expert
    assert routing.losses["balance"].item() == pytest.approx(data["l_aux_sum"].item() / data["T"] - data["E"] * 1e-6, rel=1e-5)


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_tutel_where_its_projection_bias_is_zero(case):
    data = golden("xmoe_tutel_cosine_gate", case)
    assert not data["projector_bias"].any()
    module = router(data["projector_weight"], data["sim_matrix"].T.copy(), gate="softmax", tau0=data["init_t"].item(), dtype=torch.float32)
    routing = module(RouterInputs(torch.from_numpy(data["x"])))
    np.testing.assert_array_equal(routing.expert, data["argmax"])
    np.testing.assert_allclose(routing.scores.numpy() / data["init_t"], data["scaled_logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(routing.weight.detach(), data["softmax"].max(1), rtol=0, atol=1e-5)


def test_waves():
    """Inputs that are sines of a counter; the values were evaluated once from the formulas, independently of this code."""

    def wave(rows, columns, frequency):
        return np.sin(frequency * np.arange(rows * columns) + 0.1).reshape(rows, columns).astype(np.float32)

    x, W, e = wave(12, 24, 0.37), wave(16, 24, 0.11), wave(4, 16, 0.73)
    expected = {
        ("softmax", 0.3): ([0.303781, 0.293191, 0.307626], 1.002405),
        ("sigmoid", 0.07): ([0.537726, 0.804976, 0.617361], 1.043587),
    }
    for (gate, tau), (weights, balance) in expected.items():
        routing = router(W, e, gate=gate, tau0=tau, dtype=torch.float32)(RouterInputs(torch.from_numpy(x)))
        assert routing.expert.tolist() == [3, 1, 3, 0, 2, 3, 1, 3, 1, 3, 0, 1]
        np.testing.assert_allclose(routing.scores[0], [-0.052185, -0.09611, -0.063991, 0.010583], atol=2e-6)
        np.testing.assert_allclose(routing.weight[:3].detach(), weights, atol=2e-6)
        assert routing.losses["balance"].item() == pytest.approx(balance, abs=2e-6)


def test_lengths_do_not_matter_only_angles():
    torch.manual_seed(0)
    module, x = XMoE(8, 6).double(), torch.randn(5, 8, dtype=torch.float64)
    weight = module(RouterInputs(x)).weight
    lengths = torch.tensor([[0.1], [3], [1], [100], [7]], dtype=torch.float64)
    torch.testing.assert_close(module(RouterInputs(x * lengths)).weight, weight, rtol=0, atol=1e-12)
    with torch.no_grad():
        module.embedding.mul_(torch.linspace(0.5, 9, 6, dtype=torch.float64)[:, None])
    torch.testing.assert_close(module(RouterInputs(x)).weight, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [0.1, 1.5])
def test_embeddings_are_held_at_their_norm(norm):
    torch.manual_seed(0)
    module, held = XMoE(8, 6, norm=norm), torch.full((6,), norm)
    torch.testing.assert_close(module.embedding.norm(dim=1), held)
    before = module.embedding.detach().clone()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05)
    module(RouterInputs(torch.randn(20, 8))).losses["balance"].backward()
    optimiser.step()
    assert (module.embedding.norm(dim=1) - held).abs().max() > 1e-3
    module.after_optimizer_step()
    torch.testing.assert_close(module.embedding.norm(dim=1), held)
    assert torch.cosine_similarity(module.embedding, before).min() < 0.9999  # the angles did move


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_without_reduction_and_normalisation_it_is_the_baseline(gate):
    torch.manual_seed(0)
    ours, theirs = XMoE(8, 6, gate=gate, reduce=False, normalise=False), Dot(8, 6, gate=gate)
    theirs.load_state_dict(ours.state_dict())  # the same parameters, no temperature
    x = torch.randn(20, 8) * 30
    first, second = ours(RouterInputs(x)), theirs(RouterInputs(x))
    assert torch.equal(first.expert, second.expert)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.losses["balance"], second.losses["balance"])


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_learning_drove_out_of_range_stays_finite(tau):
    torch.manual_seed(0)
    module, x = XMoE(8, 6), torch.randn(5, 8)
    with torch.no_grad():
        module.temperature.fill_(tau)
    weight = module(RouterInputs(x)).weight
    assert ((weight > 0.5) & (weight <= 1)).all()  # almost a hard choice, and still of the best expert


def test_temperature_defaults_to_the_papers():
    assert XMoE(8, 4).tau0 == 0.3
    assert XMoE(8, 4, gate="sigmoid").tau0 == 0.07
    assert XMoE(8, 4, gate="sigmoid", temperature=0.2).temperature.item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": 0.3, "normalise": False}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"dim": 4, "reduce": False}, "dim"),
        ({"dim": 0}, "dim"),
        ({"norm": 0.0}, "norm"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        XMoE(8, 4, **options)
