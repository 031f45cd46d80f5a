"""The auxiliary losses against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.moe.losses import Losses, load_balance, router_z, squared_variation


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_uniform_is_1_whatever_the_choice(experts):
    probs = torch.full((6, experts), 1 / experts, dtype=torch.float64)
    assert load_balance(probs, torch.zeros(6, dtype=torch.long)).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("experts", [2, 8])
def test_collapse_is_the_number_of_experts(experts):
    probs = torch.eye(experts, dtype=torch.float64)[[1] * 5]
    assert load_balance(probs, torch.ones(5, dtype=torch.long)).item() == pytest.approx(experts, abs=1e-12)


def test_hand_computed_with_two_assignments_of_one_token():
    probs = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    # f = (1/3, 2/3), P = (0.55, 0.45)
    assert load_balance(probs, torch.tensor([0, 1, 1])).item() == pytest.approx(2 * (0.55 / 3 + 0.9 / 3), abs=1e-12)


def test_the_gradient_takes_the_shares_as_constants():
    probs = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    load_balance(probs, torch.tensor([2, 2, 0, 2])).backward()
    expected = 3 * torch.tensor([0.25, 0, 0.75], dtype=torch.float64).expand(4, 3) / 4
    torch.testing.assert_close(probs.grad, expected)


def test_no_tokens_give_0():
    probs = torch.zeros(0, 4, requires_grad=True)
    loss = load_balance(probs, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("experts", [1, 2, 8])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.5])
def test_z_of_equal_logits(experts, logit):
    logits = torch.full((6, experts), logit, dtype=torch.float64)
    assert router_z(logits).item() == pytest.approx((logit + math.log(experts)) ** 2, abs=1e-12)


def test_z_is_the_mean_of_squares_over_tokens_not_the_square_of_a_mean():
    logits = torch.tensor([[1.0], [-2.0], [4.0]], dtype=torch.float64)
    assert router_z(logits).item() == pytest.approx((1 + 4 + 16) / 3, abs=1e-12)


def test_z_vanishes_where_the_logits_are_normalised():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert router_z(logits).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_z_is_the_softmax_times_twice_the_logarithm():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    router_z(logits).backward()
    weights = logits.detach().exp()
    total = weights.sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, 2 * total.log() * weights / total / 5)


def test_z_of_huge_logits_does_not_overflow():
    assert router_z(torch.tensor([[1e4, -1e4]])).item() == pytest.approx(1e8)


def test_z_of_no_tokens_is_0():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = router_z(logits)
    loss.backward()
    assert loss.item() == 0


def test_variation_by_hand():
    assert squared_variation(torch.tensor([1.0, 3.0])).item() == pytest.approx(0.25)  # σ = 1, μ = 2
    rows = torch.tensor([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0], [8.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(squared_variation(rows), torch.tensor([0.25, 0.0, 3.0]))


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_variation_is_0_when_balanced_and_one_less_than_the_experts_when_collapsed(experts):
    values = torch.full((experts,), 0.7, dtype=torch.float64, requires_grad=True)
    loss = squared_variation(values)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(values.grad, torch.zeros_like(values), rtol=0, atol=1e-6)  # a minimum, and not NaN
    one = torch.eye(experts, dtype=torch.float64)[0]
    assert squared_variation(one).item() == pytest.approx(experts - 1, abs=1e-12)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.floats(0.01, 100))
def test_variation_equals_numpy_and_knows_no_unit(values, unit):
    expected = (np.std(values) / np.mean(values)) ** 2
    assert squared_variation(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)
    assert squared_variation(unit * torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_losses_are_computed_when_read_and_once():
    asked = []

    def square():
        asked.append("square")
        return weight.square()

    weight = torch.tensor(3.0, requires_grad=True)
    losses = Losses(square=square, never=lambda: asked.append("never"))
    assert list(losses) == ["square", "never"]
    assert len(losses) == 2
    assert not asked
    assert losses["square"] is losses["square"]
    assert asked == ["square"]
    losses["square"].backward()
    assert weight.grad == 6


def test_losses_are_computed_outside_autocast():
    losses = Losses(product=lambda: (torch.ones(2, 2) @ torch.ones(2, 2)).sum())
    with torch.autocast("cpu", torch.bfloat16):
        assert losses["product"].dtype == torch.float32
