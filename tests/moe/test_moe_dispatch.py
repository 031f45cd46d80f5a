"""dispatch against a loop over assignments, in fp64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.moe import Routing, dispatch


def matrices(weight_EDD):
    """Experts that are one matrix each."""

    def run(rows_AD, counts_E):
        return torch.cat([rows @ weight for rows, weight in zip(rows_AD.split(counts_E.tolist()), weight_EDD.unbind(), strict=True)])

    return run


def leaves(*shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def routing(pairs, weight_A, tokens, experts):
    token, expert = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return Routing(token, expert, weight_A, torch.zeros(tokens, experts))


@st.composite
def assignments(draw):
    """Any list of pairs: tokens with several, one or no expert, repeated pairs, unused experts, no tokens at all."""
    tokens, experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, max(tokens - 1, 0)), st.integers(0, experts - 1))
    return tokens, experts, draw(st.lists(pair, max_size=12)) if tokens else []


@settings(derandomize=True, deadline=None, max_examples=60)
@given(assignments(), st.integers(1, 3))
def test_equals_a_loop_over_assignments_with_gradients(drawn, width):
    tokens, experts, pairs = drawn
    x, weight, matrix, upstream = leaves((tokens, width), (len(pairs),), (experts, width, width), (tokens, width), seed=1)
    result = dispatch(x, routing(pairs, weight, tokens, experts), matrices(matrix))
    rows = [torch.zeros(width, dtype=torch.float64) for _ in range(tokens)]
    for a, (t, e) in enumerate(pairs):
        rows[t] = rows[t] + weight[a] * (x[t] @ matrix[e])
    expected = torch.stack(rows) if rows else torch.zeros(0, width, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    if pairs:
        ours = torch.autograd.grad((result * upstream).sum(), (x, weight, matrix))
        theirs = torch.autograd.grad((expected * upstream).sum(), (x, weight, matrix))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    pairs = [(0, 2), (1, 0), (3, 2), (0, 1), (3, 2)]
    x, weight, matrix = leaves((4, 3), (5,), (4, 3, 3), seed=2)
    assert torch.autograd.gradcheck(lambda x, w, m: dispatch(x, routing(pairs, w, 4, 4), matrices(m)), (x, weight, matrix))


def test_a_token_without_assignment_gets_zeros_and_an_expert_without_rows_gets_zero_gradient():
    x, weight, matrix = leaves((3, 2), (2,), (3, 2, 2), seed=3)
    y = dispatch(x, routing([(0, 1), (2, 1)], weight, 3, 3), matrices(matrix))
    y.sum().backward()
    assert y[1].tolist() == [0, 0]
    assert y[0].abs().min() > 0
    assert matrix.grad[[0, 2]].abs().max() == 0
    assert matrix.grad[1].abs().min() > 0


def test_sums_in_fp32_whatever_the_tokens_are():
    pairs, weight = [(0, e) for e in range(4)], torch.tensor([1.0, 2**-9, 2**-9, 2**-9])
    y = dispatch(torch.ones(1, 1, dtype=torch.bfloat16), routing(pairs, weight, 1, 4), matrices(torch.ones(4, 1, 1, dtype=torch.bfloat16)))
    assert y.dtype == torch.bfloat16
    assert y.item() == 1 + 2**-7  # added one by one in bfloat16, 1 + 2^-9 stays 1


def test_load_counts_assignments_of_every_expert():
    assert routing([(0, 3), (1, 3), (2, 0)], torch.ones(3), 3, 5).load.tolist() == [1, 0, 0, 2, 0]


def test_top1_assigns_tokens_in_order_and_detaches_the_scores():
    scores = torch.rand(3, 2, requires_grad=True)
    result = Routing.top1(torch.tensor([1, 0, 1]), scores.amax(1), scores=scores, losses={})
    assert result.token.tolist() == [0, 1, 2]
    assert result.weight.requires_grad
    assert not result.scores.requires_grad


def test_one_expert_a_token_in_token_order_is_the_general_case():
    experts = [2, 0, 2, 1, 3, 0]
    x, weight, matrix, upstream = leaves((6, 3), (6,), (4, 3, 3), (6, 3), seed=4)
    results = []
    for order in (range(6), [5, 0, 3, 1, 4, 2]):  # in token order rows are permuted, otherwise added up
        decision = routing([(t, experts[t]) for t in order], weight[list(order)], 6, 4)
        y = dispatch(x, decision, matrices(matrix))
        results.append((y, *torch.autograd.grad((y * upstream).sum(), (x, weight, matrix))))
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(
        lambda x, w, m: dispatch(x, routing(list(enumerate(experts)), w, 6, 4), matrices(m)), (x, weight, matrix)
    )
