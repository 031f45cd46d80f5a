"""Expert choice against the outputs of V-MoE's code and against a loop over sequences and experts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.expert_choice import ExpertChoice

GOLDEN = Path(__file__).parents[1] / "golden" / "vmoe_expert_choice.npz"
D, E = 6, 4


def golden(case):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): arrays[key] for key in arrays.files if key.startswith(f"{case}/")}


def router(experts=E, **options):
    torch.manual_seed(0)
    module = ExpertChoice(D, experts, **options).double()
    torch.nn.init.normal_(module.embedding)
    return module


def batch(*lengths, seed=1):
    tokens = torch.randn(sum(lengths), D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return RouterInputs(tokens, sequence_ids=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)))


def pairs(routing):
    return set(zip(routing.token.tolist(), routing.expert.tolist(), strict=True))


@pytest.mark.parametrize(("multiple", "capacities"), [(1, [3, 1, 5]), (4, [4, 2, 8]), (5, [5, 2, 5]), (100, [10, 2, 17])])
def test_the_capacity_is_rounded_up_to_a_multiple_within_the_group(multiple, capacities):
    module, inputs = router(capacity_factor=1.0, capacity_multiple_of=multiple), batch(10, 2, 17)
    routing = module(inputs)
    for sequence, capacity in enumerate(capacities):
        of_E = torch.bincount(routing.expert[inputs.sequence_ids[routing.token] == sequence], minlength=E)
        assert of_E.tolist() == [capacity] * E
    with pytest.raises(ValueError, match="capacity_multiple_of 0: should be at least 1"):
        router(capacity_multiple_of=0)


def expected(scores, lengths, factor):
    """Pairs of token and expert, one sequence and expert at a time."""
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    chosen, begin = set(), 0
    for length in lengths:
        for expert in range(scores.shape[1]):
            falling = sorted(range(begin, begin + length), key=lambda token, expert=expert: (-probs[token, expert], token))
            chosen |= {(token, expert) for token in falling[: min(length, math.ceil(factor * length / scores.shape[1]))]}
        begin += length
    return chosen, probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["case00", "case01", "case02"])
def test_the_public_code(case, dtype):
    """The groups are the sequences of one batch. The stored noise enters as more inputs: [x, ε] · [W; σ I] = W x + σ ε."""
    data = golden(case)
    G, S, experts = (int(data[key]) for key in ("G", "S", "E"))
    x = np.concatenate([data["x"], data["noise"]], -1).reshape(G * S, -1)
    weights = np.concatenate([data["W"], np.eye(experts, dtype=np.float32) * data["noise_std"] / experts])
    options = {"capacity_factor": data["capacity_factor"].item(), "capacity_multiple_of": int(data["capacity_multiple_of"])}
    module = ExpertChoice(x.shape[1], experts, **options).to(dtype)
    with torch.no_grad():
        module.embedding.copy_(torch.from_numpy(weights.T))
    routing = module(RouterInputs(torch.from_numpy(x).to(dtype), sequence_ids=torch.arange(G).repeat_interleave(S)))
    combine = torch.zeros(G, S, experts, dtype=dtype)
    combine[routing.token // S, routing.token % S, routing.expert] = routing.weight.detach()
    np.testing.assert_allclose(combine, data["combine"], rtol=0, atol=1e-6)
    # (G, E, C): each expert's tokens by falling weight
    items = combine.transpose(1, 2).sort(descending=True, stable=True).indices[..., : int(data["capacity"])]
    np.testing.assert_array_equal(items, data["items"])
    assert routing.load.tolist() == [G * int(data["capacity"])] * experts


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.7, 2.0, 9.0])
@pytest.mark.parametrize("lengths", [(7, 3, 1, 12), (5,), (1, 1)])
def test_equals_a_loop_over_sequences_and_experts(lengths, factor):
    routing = router(capacity_factor=factor)(batch(*lengths))
    chosen, probs = expected(routing.scores.numpy(), lengths, factor)
    assert pairs(routing) == chosen
    np.testing.assert_allclose(routing.weight.detach(), probs[routing.token, routing.expert], atol=1e-12)
    assert routing.losses["z"].item() == pytest.approx(np.square(np.log(np.exp(routing.scores.numpy()).sum(1))).mean(), abs=1e-12)
    assert (routing.load == routing.load[0]).all()
    assert routing.dropped == 0


def test_the_batch_is_the_group_in_training_only():
    module, inputs = router(group="batch"), batch(7, 3, 1, 12)
    scores = module(inputs).scores.numpy()
    assert pairs(module(inputs)) == expected(scores, (23,), 2.0)[0]
    assert pairs(module.eval()(inputs)) == expected(scores, (7, 3, 1, 12), 2.0)[0]


def test_a_sequence_is_routed_as_if_alone():
    module, inputs = router(), batch(7, 3, 12)
    together = pairs(module(inputs))
    alone = pairs(module(RouterInputs(inputs.tokens[7:10], sequence_ids=torch.tensor([5, 5, 5]))))
    assert {(token - 7, expert) for token, expert in together if 7 <= token < 10} == alone


def test_earlier_tokens_win_ties():
    inputs = batch(4, 8)
    alike = RouterInputs(inputs.tokens[:1].expand(12, D), sequence_ids=inputs.sequence_ids)
    routing = router(capacity_factor=1.0)(alike)
    assert pairs(routing) == {(token, expert) for token in (0, 4, 5) for expert in range(E)}


def test_later_tokens_decide_about_earlier_ones():
    """What `causal = False` says."""
    module, inputs = router(capacity_factor=1.0).eval(), batch(8)
    first = pairs(module(RouterInputs(inputs.tokens[:4], sequence_ids=inputs.sequence_ids[:4])))
    assert first != {pair for pair in pairs(module(inputs)) if pair[0] < 4}
    assert not ExpertChoice.causal


def test_the_weight_is_the_softmax_and_carries_the_gradient():
    module, inputs = router(), batch(5, 3)
    routing = module(inputs)
    (gradient,) = torch.autograd.grad(routing.weight.sum(), module.embedding, retain_graph=True)
    probs = (inputs.tokens @ module.embedding.T).softmax(-1)
    (direct,) = torch.autograd.grad(probs[routing.token, routing.expert].sum(), module.embedding)
    torch.testing.assert_close(gradient, direct, rtol=0, atol=1e-12)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("group", ["sequence", "batch"])
@pytest.mark.parametrize("lengths", [(0,), (1,)])
@pytest.mark.parametrize("experts", [1, 4])
def test_few_tokens_and_experts(experts, lengths, group):
    routing = router(experts, group=group)(batch(*lengths))
    assert routing.load.tolist() == [sum(lengths)] * experts  # at least one token an expert, at most all
    assert routing.losses["z"].isfinite()
    assert (routing.weight.sum() + routing.losses["z"]).requires_grad


def test_it_says_what_it_needs_and_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="sequence_ids"):
        router()(RouterInputs(torch.zeros(2, D, dtype=torch.float64)))
    with pytest.raises(ValueError, match="capacity_factor 0"):
        ExpertChoice(D, E, capacity_factor=0.0)
