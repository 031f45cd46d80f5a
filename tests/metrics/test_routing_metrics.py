"""Routing metrics against golden arrays, loops, scipy and properties."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, pearsonr

from moebench.metrics import routing

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_routing.npz", allow_pickle=False)
loads = st.lists(st.integers(0, 50), min_size=2, max_size=8)


def loop_collapse(hidden, expert):
    used = sorted(set(expert.tolist()))
    means = {k: hidden[expert == k].mean(axis=0) for k in used}
    within = sum(np.outer(h - means[k], h - means[k]) for h, k in zip(hidden, expert.tolist(), strict=True)) / len(hidden)
    between = sum(np.outer(means[k] - hidden.mean(axis=0), means[k] - hidden.mean(axis=0)) for k in used) / len(used)
    value, vector = np.linalg.eigh(between)
    keep = value > 1e-10 * value.max()
    return sum(v @ within @ v / w for w, v in zip(value[keep], vector.T[keep], strict=True))


def test_collapse_closed_form():
    value = routing.representation_collapse(GOLDEN["rc_analytic/h"], GOLDEN["rc_analytic/expert"])
    assert value == pytest.approx(0.02125, abs=1e-12)
    assert value == pytest.approx(float(GOLDEN["rc_analytic/rc"]), abs=1e-9)


@pytest.mark.parametrize("case", ["rc_random0", "rc_random1"])
def test_collapse_golden_with_unequal_and_empty_experts(case):
    value = routing.representation_collapse(GOLDEN[f"{case}/h"], GOLDEN[f"{case}/expert"])
    assert value == pytest.approx(float(GOLDEN[f"{case}/rc_sample_mean"]), rel=1e-6)
    assert value == pytest.approx(loop_collapse(GOLDEN[f"{case}/h"], GOLDEN[f"{case}/expert"]), rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.integers(2, 5))
def test_collapse_ignores_scale_place_rotation_and_names(seed, scale, experts):
    rng = np.random.default_rng(seed)
    hidden, expert = rng.normal(size=(40, 6)), np.arange(40) % experts
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    moved = scale * (hidden @ rotation) + rng.normal(size=6)
    expected = routing.representation_collapse(hidden, expert)
    assert routing.representation_collapse(moved, 7 - expert) == pytest.approx(expected, rel=1e-6)


def test_collapse_falls_as_tokens_gather_at_their_expert():
    rng = np.random.default_rng(0)
    expert = np.arange(60) % 3
    centre, noise = np.eye(3)[expert], rng.normal(size=(60, 3))
    tight, loose = (routing.representation_collapse(centre + size * noise, expert) for size in (0.01, 0.1))
    assert 0 < tight < loose


def test_collapse_guards():
    assert math.isnan(routing.representation_collapse(np.ones((4, 2)), np.zeros(4, dtype=int)))
    with pytest.raises(ValueError, match="do not match"):
        routing.representation_collapse(np.ones((4, 2)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="finite"):
        routing.representation_collapse(np.full((2, 2), np.nan), np.arange(2))


def test_fluctuation():
    before, after = GOLDEN["rf/prev"], GOLDEN["rf/cur"]
    assert routing.router_fluctuation(before, after) == float(GOLDEN["rf/rf"])
    assert routing.router_fluctuation(before, before) == 0
    assert math.isnan(routing.router_fluctuation([], []))
    with pytest.raises(ValueError, match="before and after"):
        routing.router_fluctuation([1, 2], [1])


@pytest.mark.parametrize("case", ["ic_small", "ic_random"])
def test_consistency_golden(case):
    load = GOLDEN[f"{case}/loads"]
    value = routing.inter_run_consistency(load)
    assert value == pytest.approx(float(GOLDEN[f"{case}/ic"]), abs=1e-9)
    assert value == pytest.approx(np.mean([[pearsonr(a, b)[0] for a in load] for b in load]), abs=1e-9)


def test_consistency_is_one_for_proportional_and_near_one_over_m_for_unrelated_loads():
    load = np.array([3.0, 1, 2, 4])
    assert routing.inter_run_consistency([load, 2 * load, 3 * load + 1]) == pytest.approx(1)
    unrelated = np.random.default_rng(0).random((12, 4096))
    assert routing.inter_run_consistency(unrelated) == pytest.approx(1 / 12, abs=0.01)


@pytest.mark.filterwarnings("error")
def test_consistency_guards():
    assert math.isnan(routing.inter_run_consistency([[1, 2, 3], [2, 2, 2]]))
    assert math.isnan(routing.inter_run_consistency([[1, 2, 3]]))
    with pytest.raises(ValueError, match="loads must be"):
        routing.inter_run_consistency([1, 2, 3])


def test_load_golden():
    load = np.bincount(GOLDEN["load/top2"].ravel(), minlength=8)
    assert (load == GOLDEN["load/counts"]).all()
    assert routing.max_violation(load) == pytest.approx(float(GOLDEN["load/max_violation"]), abs=1e-9)
    assert routing.load_entropy(load) == pytest.approx(float(GOLDEN["load/load_entropy_nats"]), abs=1e-9)


@pytest.mark.filterwarnings("error")
@given(loads)
def test_load_bounds_and_scipy(load):
    if not any(load):
        assert math.isnan(routing.max_violation(load))
        assert math.isnan(routing.load_entropy(load))
        return
    assert -1e-12 <= routing.max_violation(load) <= len(load) - 1 + 1e-12
    assert routing.load_entropy(load) == pytest.approx(entropy(load), abs=1e-12)
    assert (routing.max_violation(load) == pytest.approx(0)) == (len(set(load)) == 1)


def test_load_extremes():
    assert routing.max_violation([0, 0, 9]) == 2
    assert routing.load_entropy([0, 0, 9]) == 0
    assert routing.load_entropy([5, 5, 5, 5]) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="finite number"):
        routing.max_violation([1, -1])


def test_activation_of_a_routing_made_by_hand():
    count = [[6, 2, 0, 0], [2, 2, 2, 2]]  # two layers, four experts, eight assignments each, of four tokens
    found = {share: routing.activation_ratio(count, [8, 8], share / 4) for share in (0, 0.5, 1, 2)}
    assert found == {0: 6 / 8, 0.5: 6 / 8, 1: 1 / 8, 2: 1 / 8}  # an equal share is not above it
    assert routing.activation_ratio(count, 4, 1 / 4) == 6 / 8  # two selections of four tokens
    assert routing.activation_ratio(count, [8, 80], 0.05) == 2 / 8
    # 16 of 192 cells, as published; the other published value is none of these
    sparse = np.zeros((6, 32))
    sparse.flat[:16] = 1
    assert f"{100 * routing.activation_ratio(sparse, 16, 0):.2f}" == "8.33"
    assert "90.71" not in {f"{100 * cells / 192:.2f}" for cells in range(193)}


def test_activation_guards():
    assert math.isnan(routing.activation_ratio([[0, 0]], 0, 0))
    assert math.isnan(routing.activation_ratio(np.zeros((0, 3)), 5, 0))
    with pytest.raises(ValueError, match="selections must be"):
        routing.activation_ratio([1, 2], 3, 0)
    with pytest.raises(ValueError, match="selections must be"):
        routing.activation_ratio([[1, -2]], 3, 0)
    with pytest.raises(ValueError, match="units must be one number or one a layer"):
        routing.activation_ratio([[1, 2]], [3, 3], 0)


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_activation_falls_as_the_threshold_rises_and_counts_cells(count, one, other):
    low, high = sorted((one, other))
    assert routing.activation_ratio(count, 10, low) >= routing.activation_ratio(count, 10, high)
    cells = [value / 10 > low for row in count for value in row]
    assert routing.activation_ratio(count, 10, low) == pytest.approx(sum(cells) / len(cells))


def test_diversity_of_a_routing_made_by_hand():
    # three tokens of two sub-tokens, two experts each: {0 1} {1 2} reach three, {3 4} {3 4} two, and the last has one assignment
    unit, expert = [0, 0, 1, 1, 2, 2, 3, 3, 5], [0, 1, 1, 2, 3, 4, 4, 3, 2]
    assert routing.assignment_diversity(unit, expert, tokens=3, experts=5, heads=2).tolist() == [3, 2, 1]
    assert routing.assignment_diversity([], np.array([], dtype=int), tokens=2, experts=5).tolist() == [0, 0]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_diversity_is_that_of_a_loop_and_that_of_one_sub_token_is_k(experts, heads, tokens, seed):
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(experts)[: rng.integers(0, experts + 1)] for _ in range(tokens * heads)]
    unit = np.repeat(np.arange(tokens * heads), [len(mine) for mine in chosen])
    order = rng.permutation(len(unit))
    found = routing.assignment_diversity(unit[order], np.concatenate(chosen)[order], tokens, experts, heads)
    assert found.tolist() == [len(set().union(*chosen[heads * token : heads * (token + 1)])) for token in range(tokens)]
    counts = np.array([len(mine) for mine in chosen]).reshape(tokens, heads)
    assert (counts.max(axis=1) <= found).all()
    if heads == 1:
        assert found.tolist() == counts[:, 0].tolist()
        assert routing.random_diversity(counts, experts).tolist() == counts[:, 0].tolist()


@pytest.mark.parametrize(("experts", "heads"), [(8, 4), (32, 8), (5, 1), (1, 3)])
def test_random_diversity_of_one_expert_a_sub_token_is_the_known_formula(experts, heads):
    found = routing.random_diversity(np.ones((2, heads)), experts)
    assert found == pytest.approx(2 * [experts * (1 - (1 - 1 / experts) ** heads)])


@pytest.mark.parametrize(("experts", "heads", "k"), [(41, 2, 2), (93, 3, 3), (6, 3, 4), (8, 4, 1)])
def test_random_routing_has_the_diversity_that_is_expected_of_it(experts, heads, k):
    rng, tokens = np.random.default_rng(0), 40_000
    expert = rng.random((tokens * heads, experts)).argpartition(k - 1, axis=1)[:, :k]
    found = routing.assignment_diversity(np.arange(tokens * heads).repeat(k), expert.ravel(), tokens, experts, heads)
    expected = routing.random_diversity(np.full((1, heads), k), experts)[0]
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / tokens**0.5)
