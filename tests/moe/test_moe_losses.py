"""load_balance against closed forms."""

import pytest
import torch

from moebench.moe import load_balance


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
