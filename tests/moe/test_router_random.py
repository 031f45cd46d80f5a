"""Random routing: uniform draws of the right granularity, and evaluation that repeats and never looks at batch mates."""

import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.random import Random, mix

E, D = 4, 8


def batch(*lengths, seed=0):
    ids = [torch.randint(1000, (length,), generator=torch.Generator().manual_seed(seed + i)) for i, length in enumerate(lengths)]
    return joined(ids)


def joined(sequences):
    """Sequences of token ids as a router sees them; an empty one leaves a gap in the numbers."""
    lengths = [len(ids) for ids in sequences]
    return RouterInputs(
        torch.zeros(sum(lengths), D),
        token_ids=torch.cat(sequences),
        sequence_ids=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        positions=torch.cat([torch.arange(length) for length in lengths]),
    )


def seeded(**options):
    torch.manual_seed(0)
    return Random(D, E, **options)


def test_the_hash_is_that_of_unbounded_integers():
    def plain(x):
        x &= 0xFFFFFFFF
        for _ in range(2):
            x = (((x >> 16) ^ x) * 0x45D9F3B) % 2**32
        return (x >> 16) ^ x

    values = [0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5]
    assert mix(torch.tensor(values)).tolist() == [plain(value) for value in values]


def chi_square(experts):
    load = torch.bincount(experts, minlength=E).double()
    return ((load - load.mean()).square() / load.mean()).sum().item()


@pytest.mark.parametrize("granularity", ["batch", "sequence", "token"])
def test_training_draws_uniformly_once_for_what_shares_a_draw(granularity):
    module, inputs = seeded(granularity=granularity), batch(5, 0, 3, 4)
    draws = torch.stack([module(inputs).expert for _ in range(2000)])
    groups = {"batch": [0] * 12, "sequence": [0] * 5 + [1] * 3 + [2] * 4, "token": list(range(12))}[granularity]
    for t, group in enumerate(groups):
        assert torch.equal(draws[:, t], draws[:, groups.index(group)])
    firsts = [groups.index(group) for group in sorted(set(groups))]
    for t in firsts:
        assert chi_square(draws[:, t]) < 16.3  # 3 degrees of freedom, p = 0.001
    if len(firsts) > 1:  # what shares no draw is independent
        assert (draws[:, firsts[0]] == draws[:, firsts[1]]).double().mean().item() == pytest.approx(1 / E, abs=0.05)
    torch.manual_seed(5)
    first = module(inputs).expert
    torch.manual_seed(5)
    assert torch.equal(module(inputs).expert, first)


@pytest.mark.parametrize("training", [True, False])
def test_weights_are_1_and_probabilities_uniform(training):
    routing = seeded().train(training)(batch(5, 3))
    assert routing.weight.tolist() == [1] * 8
    assert routing.scores.unique().tolist() == routing.probs.unique().tolist() == [1 / E]
    assert routing.losses == {}
    assert not list(seeded().parameters())


@pytest.mark.parametrize("granularity", ["batch", "sequence", "token"])
def test_evaluation_repeats_and_depends_on_no_batch_mate(granularity):
    module = seeded(granularity=granularity).eval()
    sequences = [torch.randint(1000, (n,), generator=torch.Generator().manual_seed(n)) for n in range(1, 9)]
    together = module(joined(sequences)).expert.split([len(ids) for ids in sequences])
    torch.manual_seed(7)
    for ids, expert in zip(sequences, together, strict=True):
        assert torch.equal(module(joined([ids])).expert, expert)
        assert torch.equal(module(joined([torch.arange(3), ids])).expert[3:], expert)
    if granularity != "token":
        assert all(len(set(expert.tolist())) == 1 for expert in together)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_evaluation_is_as_uniform_as_a_draw(granularity):
    module = seeded(granularity=granularity).eval()
    experts = module(batch(*[3] * 3000)).expert
    assert chi_square(experts if granularity == "token" else experts[::3]) < 16.3
    alike = module(joined([torch.tensor([5] * 3000)])).expert  # one piece, many positions
    assert len(set(alike.tolist())) == (E if granularity == "token" else 1)


def test_the_order_of_a_sequence_counts():
    module = seeded(granularity="sequence").eval()
    orders = [torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert len(set(module(joined(orders)).expert.tolist())) == E


def test_layers_draw_independently_and_a_saved_one_draws_the_same():
    first, second = Random(D, E, granularity="token").eval(), Random(D, E, granularity="token").eval()
    inputs = batch(2000)
    assert (first(inputs).expert == second(inputs).expert).double().mean().item() == pytest.approx(1 / E, abs=0.04)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(inputs).expert, second(inputs).expert)


def test_the_mean_sends_every_token_everywhere_in_evaluation_only():
    module, inputs = seeded(evaluation="mean"), batch(2, 1)
    assert len(module(inputs).expert) == 3
    routing = module.eval()(inputs)
    assert routing.token.tolist() == [0] * E + [1] * E + [2] * E
    assert routing.expert.tolist() == list(range(E)) * 3
    assert routing.weight.tolist() == [1 / E] * 12


@pytest.mark.parametrize("options", [{"granularity": g, "evaluation": e} for g in ("batch", "sequence", "token") for e in ("draw", "mean")])
@pytest.mark.parametrize("training", [True, False])
def test_no_tokens(options, training):
    assert len(seeded(**options).train(training)(batch(0, 0)).expert) == 0


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="token_ids"):
        seeded().eval()(RouterInputs(torch.zeros(2, D)))
    assert not Random.causal
