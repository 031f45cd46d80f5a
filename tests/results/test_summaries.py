"""How many seeds would decide a difference, against scipy's t test."""

import numpy as np
import pytest
from scipy import stats

from moebench.results.summaries import MOST_SEEDS, seeds_needed


@pytest.mark.parametrize(("centre", "spread", "n"), [(0.5, 1.0, 3), (0.2, 0.3, 3), (1.0, 0.9, 5), (3.0, 0.5, 3), (0.01, 1.0, 3)])
def test_seeds_needed_are_those_at_which_a_t_test_decides(centre, spread, n):
    def sample(size):
        values = np.linspace(-1, 1, size)
        return (values - values.mean()) / values.std(ddof=1) * spread + centre

    found = seeds_needed(list(sample(n)))
    if found is None:
        assert stats.ttest_1samp(sample(n), 0).pvalue < 0.05
    elif found > MOST_SEEDS:
        assert stats.ttest_1samp(sample(MOST_SEEDS), 0).pvalue > 0.05
    else:
        assert stats.ttest_1samp(sample(found - 1), 0).pvalue > 0.05 > stats.ttest_1samp(sample(found), 0).pvalue
