"""DA-MoE has neither public code nor numbers: its formulas by loops, and what must follow from them."""

import math

import pytest
import torch

from moebench.moe import MoELayer, ResidualExperts, RouterInputs
from moebench.moe.routers.damoe import DAMoE
from moebench.moe.routers.topk import TopK

D, E, H = 6, 8, 3
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
B, S = MASK.shape


def router(experts=E, **options):
    torch.manual_seed(0)
    module = DAMoE(D, experts, **options).double()
    torch.nn.init.normal_(module.embedding)
    return module


def attention(mask=MASK, heads=H, sharpness=2.0):
    """(B, H, S, S) random probabilities, 0 at padding."""
    generator = torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(len(mask), heads, mask.shape[1], mask.shape[1], dtype=torch.float64, generator=generator)
    probs = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return probs * mask[:, None, :, None]


def inputs(attention_BHSS, mask=MASK):
    sequence_T, position_T = mask.nonzero(as_tuple=True)
    tokens = torch.randn(int(mask.sum()), D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return RouterInputs(tokens, None, sequence_T, position_T, attention_BHSS.transpose(1, 2)[mask])


def counts(module, given):
    return module(given).token.bincount(minlength=len(given.tokens)).tolist()


@pytest.mark.parametrize("importance", ["query", "key", "entropy"])
def test_equals_a_loop(importance):
    module, weights = router(importance=importance), attention()
    given = inputs(weights)
    routing = module(given)
    expected, place = [], 0
    for b in range(B):
        for s in range(S):
            if not MASK[b, s]:
                continue
            per_head = []
            for h in range(H):
                row, column = weights[b, h, s].tolist(), weights[b, h, :, s].tolist()
                entropy = -sum(a * math.log(a) for a in row if a > 0) / math.log(MASK[b].sum())
                per_head.append({"query": max(row), "key": max(column), "entropy": entropy}[importance])
            k = min(max(math.ceil(sum(per_head) / H * E - 1e-6), 1), E)
            logits = module.embedding @ given.tokens[place]
            p = logits.exp() / logits.exp().sum()
            expected += sorted((place, e, p[e].item()) for e in logits.argsort(descending=True)[:k].tolist())
            place += 1
    assert list(zip(routing.token.tolist(), routing.expert.tolist(), strict=True)) == [triple[:2] for triple in expected]
    torch.testing.assert_close(routing.weight, torch.tensor([w for *_, w in expected], dtype=torch.float64), rtol=0, atol=1e-12)
    assert len(set(counts(module, given))) > 2  # the example is not a trivial one
    share = routing.load.double() / len(expected)
    balance = E * (share * routing.scores.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(routing.losses["balance"].detach(), balance, rtol=0, atol=1e-12)
    torch.testing.assert_close(routing.losses["z"].detach(), routing.scores.logsumexp(-1).square().mean(), rtol=0, atol=1e-12)


def test_attention_to_one_position_gives_the_dense_mixture():
    module, mask = router(), torch.ones(2, 4, dtype=torch.bool)
    experts = ResidualExperts(E, D, 5, 1).double()
    x = torch.randn(2, 4, D, dtype=torch.float64)
    y, aux = MoELayer(module, experts)(x, mask, None, torch.eye(4, dtype=torch.float64).expand(2, H, 4, 4))
    assert aux.load.tolist() == [8] * E
    everything = experts(x.view(8, D).repeat(E, 1), torch.full((E,), 8)).view(E, 8, D)
    mixture = torch.einsum("te,etd->td", (x.view(8, D) @ module.embedding.T).softmax(-1), everything)
    torch.testing.assert_close(y.view(8, D), mixture, rtol=0, atol=1e-12)


@pytest.mark.parametrize("importance", ["query", "key"])
@pytest.mark.parametrize("positions", [E, E + 5])
def test_uniform_attention_over_enough_positions_is_top1(importance, positions):
    mask = torch.ones(2, positions, dtype=torch.bool)
    given = inputs(torch.full((2, H, positions, positions), 1 / positions, dtype=torch.float64), mask)
    module, top1 = router(importance=importance), TopK(D, E, k=1, normalise=False).double()
    top1.load_state_dict(module.state_dict())
    ours, theirs = module(given), top1(given)
    assert torch.equal(ours.expert, theirs.expert)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-15)


def test_uniform_attention_is_the_most_undecided():
    mask = torch.ones(1, 5, dtype=torch.bool)
    uniform, pointed = torch.full((1, H, 5, 5), 0.2, dtype=torch.float64), torch.eye(5, dtype=torch.float64).expand(1, H, 5, 5)
    module = router(importance="entropy")
    assert counts(module, inputs(uniform, mask)) == [E] * 5
    assert counts(module, inputs(pointed, mask)) == [1] * 5
    alone = torch.ones(1, 1, dtype=torch.bool)
    assert counts(module, inputs(torch.ones(1, H, 1, 1, dtype=torch.float64), alone)) == [1]  # nothing to be undecided between


@pytest.mark.parametrize(("experts", "expected"), [(4, [2, 2, 2, 3, 3]), (8, [3, 3, 3, 6, 6]), (16, [5, 5, 5, 12, 12])])
def test_a_sentence_with_importances_of_three_and_seven_tenths(experts, expected):
    rows = torch.tensor([[0.3, 0.3, 0.2, 0.1, 0.1]] * 3 + [[0.7, 0.1, 0.1, 0.1, 0.0]] * 2)
    given = inputs(rows.expand(1, H, 5, 5), torch.ones(1, 5, dtype=torch.bool))
    assert counts(router(experts), given) == expected


def alone(row_HS):
    """One token with the given rows of attention."""
    return RouterInputs(torch.zeros(1, D, dtype=torch.float64), None, *torch.zeros(2, 1, dtype=torch.long), row_HS[None])


@pytest.mark.parametrize("experts", [3, 7, 49, 200])
def test_rounding_buys_no_expert(experts):
    """In fp32 E · (1 / E) may come out a little above 1, and 3 / E a little above 3."""
    uniform = torch.zeros(H, experts).softmax(-1)
    assert counts(router(experts), alone(uniform)) == [1]
    assert counts(router(experts), alone(3 * uniform)) == [3]


def test_attention_of_few_digits_is_widened_first():
    heads = torch.tensor([[0.25], [0.25], [0.251953125]]).bfloat16()
    assert heads.mean() == 0.25  # in its own type the mean over heads loses what is above
    assert counts(router(8), alone(heads)) == [3]


@pytest.mark.parametrize("importance", ["query", "key", "entropy"])
def test_neither_the_order_of_heads_nor_that_of_sequences_nor_padding_matters(importance):
    module, weights = router(importance=importance), attention()
    expected = counts(module, inputs(weights))
    assert counts(module, inputs(weights.flip(1))) == expected
    lengths = MASK.sum(1).tolist()
    backwards = torch.tensor(counts(module, inputs(weights.flip(0), MASK.flip(0)))).split(lengths[::-1])
    assert torch.cat(backwards[::-1]).tolist() == expected
    wider = torch.nn.functional.pad(weights, (0, 4, 0, 4))
    assert counts(module, inputs(wider, torch.nn.functional.pad(MASK, (0, 4)))) == expected


def test_dropout_in_the_attention_cannot_ask_for_more_than_all_experts():
    assert max(counts(router(), inputs(3 * attention(sharpness=5.0)))) == E


def test_at_most_k_max():
    full, limited = counts(router(), inputs(attention())), counts(router(k_max=3), inputs(attention()))
    assert max(full) > 3
    assert limited == [min(k, 3) for k in full]


def test_attention_gets_no_gradient():
    weights = attention().requires_grad_()
    module = router()
    routing = module(inputs(weights))
    total = routing.weight.sum() + sum(routing.losses.values())
    assert torch.autograd.grad(total, weights, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(total, module.embedding)[0].abs().max() > 0


@pytest.mark.parametrize("importance", ["query", "key", "entropy"])
def test_no_tokens(importance):
    routing = router(importance=importance)(inputs(attention() * 0, torch.zeros_like(MASK)))
    assert len(routing.expert) == 0
    assert all(loss.item() == 0 for loss in routing.losses.values())


def test_it_says_what_is_missing():
    assert DAMoE.needs_attention
    with pytest.raises(ValueError, match="attention"):
        router()(RouterInputs(torch.zeros(2, D, dtype=torch.float64)))


@pytest.mark.parametrize("k_max", [0, E + 1])
def test_options_that_make_no_sense_are_refused(k_max):
    with pytest.raises(ValueError, match=f"k_max {k_max}: should be at least 1 and at most the number of experts, {E}"):
        DAMoE(D, E, k_max=k_max)
