"""How wide a factorised expert has to be for as many parameters as a SwiGLU expert: the two rules of the authors.

D model width, F inner width of the SwiGLU expert, L reduced width.
"""

from __future__ import annotations


def widened(d_model: int, inner: int, low: int) -> int:
    """Width of a factorised expert with reduced width L that is as large as a SwiGLU expert: (3 D F − L D) / (L + 2 D), to the nearest.

    Source: Autonomy-of-Experts (arXiv 2501.13074, eq. 5), which does not say how it rounds; of D 1280, F 5120, L 400 it makes 6470, where
    6469 is nearest to 6469.19.

    Args:
        d_model: D.
        inner: F.
        low: L.

    Raises:
        ValueError: ``low`` is below 1, or so large that nothing is left for the width.
    """
    if low < 1 or (width := _nearest(3 * d_model * inner - low * d_model, low + 2 * d_model)) < 1:
        raise ValueError(f"low {low}: should be at least 1 and below 3 times the inner width, {3 * inner}")
    return width


def matching_rank(d_model: int, inner: int) -> int:
    """Reduced width at which the gate's two matrices are as large as the one that they replace, D F / (D + F), to the nearest.

    The expert keeps its inner width. Source: "Coupling Experts and Routers" (arXiv 2512.23447, section 2), by the first author of
    Autonomy-of-Experts: 512 of D 1536, F 768.

    Args:
        d_model: D.
        inner: F.
    """
    return _nearest(d_model * inner, d_model + inner)


def _nearest(dividend: int, divisor: int) -> int:
    return (2 * dividend + divisor) // (2 * divisor)
