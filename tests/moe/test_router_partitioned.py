"""The router of E³ against the outputs of the public code, against V-MoE's router per member, and its ablations by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import FeedForwardExperts, MoELayer, RouterInputs
from moebench.moe.routers.noisy_topk import NoisyTopK, slots
from moebench.moe.routers.partitioned import Partitioned

GOLDEN = Path(__file__).parents[1] / "golden" / "e3_router.npz"
CASES = [f"case{i:02}" for i in range(12)] + ["noisy00", "noisy01"]


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def fixed_noise(patch, noise_TN, members):
    """Give every token its member's noise, (T, E/M); what is outside the member's experts must not matter."""
    noise_TE = torch.from_numpy(noise_TN).double().repeat(1, members)
    patch.setattr(torch, "randn_like", lambda logits: noise_TE.to(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_public_code(case, dtype, monkeypatch):
    data = golden(case)
    M, K, E, S = (int(data[key]) for key in "MKES")
    factor, noisy = data["capacity_factor"].item(), "noise" in data
    module = Partitioned(
        int(data["H"]),
        E,
        members=M,
        k=K,
        capacity_factor=factor,
        eval_capacity_factor=factor,
        batch_priority=bool(data["batch_priority"]),
        noise_std=data["noise_std"].item() if noisy else 1.0,
    )
    with torch.no_grad():
        module.embedding.copy_(torch.from_numpy(data["W"].transpose(1, 2, 0).reshape(E, -1)))
    module.to(dtype).train(noisy)
    dropped = 0
    for group, x in enumerate(torch.from_numpy(data["x"]).to(dtype)):
        with monkeypatch.context() as patch:
            if noisy:
                fixed_noise(patch, data["noise"][group], M)
            routing = module(RouterInputs(x, sequence_ids=torch.arange(S)))  # a row's member is its number mod M
        combine = torch.zeros(S, E, dtype=dtype)
        combine[routing.token, routing.expert] = routing.weight.detach()
        np.testing.assert_allclose(combine, data["combine"][group], rtol=0, atol=1e-6)
        np.testing.assert_allclose(routing.losses["importance"].item(), data["importance_loss"][group].mean(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(routing.losses["balance"].item(), data["gshard_loss"][group].mean(), rtol=0, atol=1e-6)
        if noisy:
            np.testing.assert_allclose(routing.losses["load"].item(), data["load_loss"][group].mean(), rtol=0, atol=1e-6)
            auxiliary = 0.005 * (routing.losses["importance"] + routing.losses["load"])
            np.testing.assert_allclose(auxiliary.item(), data["auxiliary_loss"][group].mean(), rtol=0, atol=1e-6)
        dropped += routing.dropped
    assert slots(S, K, E, factor) == data["capacity"]
    assert dropped == (S * K * 2 - np.count_nonzero(data["combine"]))
    assert dropped > 0 or factor > 0.5


def batch(members, sequences=6, length=5, d_model=6):
    torch.manual_seed(3)
    x = torch.randn(sequences * length, d_model, dtype=torch.float64)
    return RouterInputs(x, sequence_ids=torch.arange(sequences).repeat_interleave(length))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("priority", [True, False])
@pytest.mark.parametrize(("members", "k"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_every_member_routes_as_v_moe_does_among_its_experts(members, k, priority, training, monkeypatch):
    options = {"k": k, "capacity_factor": 0.5, "eval_capacity_factor": 0.5, "batch_priority": priority}
    together, inputs = Partitioned(6, 12, members=members, **options).double().train(training), batch(members)
    share = 12 // members
    noise = torch.randn(len(inputs.tokens), share, dtype=torch.float64).numpy()
    with monkeypatch.context() as patch:
        fixed_noise(patch, noise, members)
        routing = together(inputs)
    got = {(t, e): w for t, e, w in zip(routing.token.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True)}
    expected, losses, dropped = {}, {name: 0.0 for name in Partitioned.losses}, 0
    for member in range(members):
        alone = NoisyTopK(6, share, **options).double().train(training)
        with torch.no_grad():
            alone.embedding.copy_(together.embedding[member * share :][:share])
        (rows,) = (inputs.sequence_ids % members == member).nonzero(as_tuple=True)
        with monkeypatch.context() as patch:
            fixed_noise(patch, noise[rows], 1)
            part = alone(RouterInputs(inputs.tokens[rows]))
        for t, e, w in zip(rows[part.token].tolist(), part.expert.tolist(), part.weight.tolist(), strict=True):
            expected[t, e + member * share] = w
        dropped += part.dropped
        losses = {name: losses[name] + part.losses[name].item() / members for name in losses}
        outside = torch.ones(12, dtype=torch.bool)
        outside[member * share :][:share] = False
        assert routing.probs[rows][:, outside].abs().sum() == 0
    assert got == pytest.approx(expected, abs=1e-12)
    assert routing.dropped == dropped
    assert {name: loss.item() for name, loss in routing.losses.items()} == pytest.approx(losses, abs=1e-10)


def test_the_noise_deviates_by_the_number_of_a_members_experts():
    inputs = batch(4, sequences=400)
    for options, n in (({}, 2), ({"overlap": 3}, 5)):
        module = Partitioned(6, 8, members=4, **options).double()
        clean = module.eval()(inputs).scores
        noise = (module.train()(inputs).scores - clean)[clean > torch.finfo(clean.dtype).min]
        assert noise.numel() == 2000 * n
        assert noise.std().item() == pytest.approx(1 / n, rel=0.05)


def test_overlapping_members_share_the_next_members_first_experts():
    module = Partitioned(6, 6, members=3, overlap=1, k=3).eval()
    assert module.own_ME.int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]]
    inputs = RouterInputs(torch.randn(3, 6), sequence_ids=torch.arange(3))
    assert module(inputs).expert.view(3, 3).sort().values.tolist() == [[0, 1, 2], [2, 3, 4], [0, 4, 5]]


def test_with_all_experts_in_common_it_is_v_moe():
    inputs = batch(2)
    module, plain = Partitioned(6, 4, members=2, overlap=2, k=2).double(), NoisyTopK(6, 4, k=2, capacity_factor=1.5).double()
    plain.load_state_dict(module.state_dict())
    runs = []
    for router in (module, plain):
        torch.manual_seed(0)
        runs.append(router(inputs))
    assert torch.equal(runs[0].scores, runs[1].scores)
    assert torch.equal(runs[0].expert, runs[1].expert)
    assert torch.equal(runs[0].weight, runs[1].weight)


@pytest.mark.parametrize("training", [True, False])
def test_a_partition_without_tiling_averages_the_members(training):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    options = {"members": 3, "k": 2, "capacity_factor": 0.5}
    once, tiled = (Partitioned(6, 6, tiled=value, **options).double().train(training) for value in (False, True))
    tiled.load_state_dict(once.state_dict())
    experts = FeedForwardExperts(6, 6, 8).double()
    torch.nn.init.normal_(experts.fc2_weight)
    torch.manual_seed(1)
    y, aux = MoELayer(once, experts)(x)
    # the copies of a token stand side by side where each token is its own sequence
    torch.manual_seed(1)
    copies, apart = MoELayer(tiled, experts)(x.flatten(0, 1)[:, None].repeat_interleave(3, 0))
    torch.testing.assert_close(y.flatten(0, 1), copies[:, 0].view(10, 3, 6).mean(1), rtol=0, atol=1e-12)
    assert aux.dropped == apart.dropped
    assert (aux.dropped > 0) == training
    assert aux.probs.shape == (10, 6)
    torch.testing.assert_close(aux.probs.sum(-1), torch.ones(10, dtype=torch.float64))
    for name, loss in aux.losses.items():
        torch.testing.assert_close(loss, apart.losses[name])


def test_a_members_choice_gives_no_gradient_to_another_members_router():
    module, inputs = Partitioned(6, 6, members=3).double(), batch(3)
    routing = module(inputs)
    routing.weight[inputs.sequence_ids[routing.token] % 3 == 1].sum().backward()
    assert (module.embedding.grad.abs().sum(1) > 0).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("sequences", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_members_without_tokens(training, sequences):
    module = Partitioned(6, 8, members=4, k=2, eval_capacity_factor=1.0).train(training)
    routing = module(RouterInputs(torch.randn(3 * sequences, 6), sequence_ids=torch.zeros(3 * sequences, dtype=torch.long)))
    assert len(routing.token) == 6 * sequences
    (routing.weight.sum() + sum(routing.losses.values())).backward()
    assert all(loss.isfinite() for loss in routing.losses.values())
    assert module.embedding.grad.isfinite().all()


def test_gradients_of_the_losses_are_those_of_finite_differences():
    module, inputs = Partitioned(6, 6, members=2, k=1, overlap=1).double().eval(), batch(2)
    for name in ("importance", "load", "z"):

        def loss(embedding, name=name):
            return torch.func.functional_call(module, {"embedding": embedding}, (inputs,)).losses[name]

        assert torch.autograd.gradcheck(loss, module.embedding, eps=1e-7, atol=1e-5)


def test_sequence_numbers_are_needed():
    with pytest.raises(ValueError, match="sequence_ids"):
        Partitioned(6, 4, members=2)(RouterInputs(torch.randn(3, 6)))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"members": 3}, "divide the number of experts, 8"),
        ({"members": 0}, "members 0"),
        ({"members": 4, "k": 3}, "member's experts, 2"),
        ({"members": 4, "overlap": 7}, "at most 6"),
        ({"overlap": -1}, "overlap -1"),
        ({"k": 0}, "k 0"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"capacity_factor": 0.0}, "^capacity_factor"),
        ({"eval_capacity_factor": -1.0}, "eval_capacity_factor"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Partitioned(6, 8, **options)
