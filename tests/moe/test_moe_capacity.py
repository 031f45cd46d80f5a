"""queue_position against counters."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.moe.capacity import queue_position


def counted(experts):
    taken, positions = {}, []
    for expert in experts:
        positions.append(taken.get(expert, 0))
        taken[expert] = positions[-1] + 1
    return positions


def test_by_hand():
    assert queue_position(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]


def test_nobody_queues():
    position = queue_position(torch.zeros(0, dtype=torch.long))
    assert position.shape == (0,)
    assert position.dtype == torch.long


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60))
def test_equals_a_loop_with_counters(experts):
    assert queue_position(torch.tensor(experts, dtype=torch.long)).tolist() == counted(experts)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 8))
def test_a_filter_on_positions_is_a_capacity(experts, capacity):
    """No expert takes more than its capacity; it refuses only when it is full, and takes the earliest."""
    expert_A = torch.tensor(experts, dtype=torch.long)
    kept_A = queue_position(expert_A) < capacity
    chosen, taken = torch.bincount(expert_A, minlength=5), torch.bincount(expert_A[kept_A], minlength=5)
    assert torch.equal(taken, chosen.clamp(max=capacity))
    for expert in range(5):
        kept = kept_A[expert_A == expert].tolist()
        assert kept == sorted(kept, reverse=True)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30), st.permutations(range(5)))
def test_the_numbering_of_experts_does_not_matter(experts, names):
    expert_A = torch.tensor(experts, dtype=torch.long)
    assert torch.equal(queue_position(expert_A), queue_position(torch.tensor(names)[expert_A]))


def test_who_comes_later_changes_nothing():
    expert_A = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(queue_position(expert_A[:120]), queue_position(expert_A)[:120])
