"""Deep ensembles: which runs are members, by properties that hold for all sizes; the stack of their predictions."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.ensembles.deep import Run, downstream, stack, total_flops, upstream
from moebench.metrics.diversity import ensemble_mean


def test_examples():
    assert upstream(0, 2, [0, 1, 2]) == (Run(0, 0), Run(1, 1))
    assert [[run.pretraining for run in upstream(index, 2, [0, 1, 2])] for index in range(3)] == [[0, 1], [1, 2], [2, 0]]
    assert [[run.pretraining for run in upstream(index, 2, [0, 1, 2, 3])] for index in range(4)] == [[0, 1], [2, 3], [1, 2], [3, 0]]
    assert [run.pretraining for run in upstream(0, 3, [5, 7, 9])] == [5, 7, 9]
    assert downstream(2, 3) == (Run(2, 2), Run(2, 3), Run(2, 4))


@given(st.integers(1, 12).flatmap(lambda seeds: st.tuples(st.just(seeds), st.integers(1, seeds))))
def test_ensembles_from_separate_pre_training(sizes):
    count, members = sizes
    seeds = list(range(10, 10 + count))
    ensembles = [upstream(index, members, seeds) for index in range(count if members < count else 1)]
    for ensemble in ensembles:
        assert len({run.pretraining for run in ensemble}) == members
        assert all(run.pretraining == run.finetuning and run.pretraining in seeds for run in ensemble)
    assert len({frozenset(ensemble) for ensemble in ensembles}) == len(ensembles)
    for one, other in combinations(ensembles[: count // members], 2):
        assert not set(one) & set(other)
    with pytest.raises(ValueError, match="index"):
        upstream(len(ensembles), members, seeds)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 10))
def test_ensembles_from_one_pre_training(seed, other, members):
    runs = downstream(seed, members)
    assert runs[0] == Run(seed, seed)
    assert len(set(runs)) == members
    assert {run.pretraining for run in runs} == {seed}
    assert seed == other or not set(runs) & set(downstream(other, members))


def test_what_they_predict():
    generator = np.random.default_rng(0)
    probs = {f"run-{seed}": generator.dirichlet(np.ones(4), 6) for seed in range(3)}
    stacked = stack(probs)
    assert stacked.shape == (3, 6, 4)
    mean = ensemble_mean(stacked)
    for n in range(6):
        for c in range(4):
            assert mean[n, c] == pytest.approx(sum(each[n, c] for each in probs.values()) / 3)


def test_what_makes_no_sense_is_refused():
    half = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"b has shape \(2, 2\): should be that of a, \(3, 2\)"):
        stack({"a": half, "b": half[:2]})
    with pytest.raises(ValueError, match=r"b: .*logits"):
        stack({"a": half, "b": half * 2})
    with pytest.raises(ValueError, match="at least one run"):
        stack({})
    with pytest.raises(ValueError, match="members 3"):
        upstream(0, 3, [0, 1])
    with pytest.raises(ValueError, match="different seeds"):
        upstream(0, 2, [1, 1])
    with pytest.raises(ValueError, match="members 0"):
        downstream(0, 0)


def test_costs_add_up():
    assert total_flops([1e9, 1e9, 2e9]) == 4e9
