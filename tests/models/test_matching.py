"""Widths at which experts have as many parameters, against the published ones and against counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebench.models.matching import matching_rank, widened


@pytest.mark.parametrize(("low", "width"), [(64, 4393), (128, 4194), (256, 3840), (512, 3264)])
def test_the_papers_small_models(low, width):
    assert widened(768, 3072, low) == width


def test_the_large_model_is_rounded_to_the_nearest():
    assert widened(1280, 5120, 400) == 6469  # exactly 6469.19; the paper writes 6470


def test_the_later_rule():
    assert matching_rank(1536, 768) == 512
    assert matching_rank(768, 3072) == 614


@given(st.integers(1, 2000), st.integers(1, 8000), st.integers(1, 2000))
def test_no_other_width_is_nearer_to_the_size_of_swiglu(d, inner, low):
    if 3 * inner <= low:
        return

    def off(width):
        return abs(low * d + low * width + 2 * d * width - 3 * d * inner)

    width = widened(d, inner, low) if off(1) < off(0) else 1
    assert off(width) <= min(off(width + 1), off(width - 1) if width > 1 else off(width))


@given(st.integers(1, 2000), st.integers(1, 8000))
def test_no_other_rank_is_nearer_to_the_size_of_the_gate(d, inner):
    def off(rank):
        return abs(rank * (d + inner) - d * inner)

    rank = matching_rank(d, inner)
    assert off(rank) <= min(off(rank + 1), off(rank - 1))


@pytest.mark.parametrize("low", [0, 60, 1000])
def test_a_reduction_that_leaves_no_width_is_refused(low):
    with pytest.raises(ValueError, match=f"low {low}: should be at least 1 and below"):
        widened(8, 20, low)
