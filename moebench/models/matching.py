"""How wide experts have to be, and how many, for as many parameters or operations as other experts: the rules of their authors.

D model width, F inner width of the experts to match, L reduced width, E experts, K chosen, h heads of `moebench.moe.multi_head`, M matrices
of an expert: 3 of SwiGLU, 2 of a feed-forward network.
"""

from __future__ import annotations

from typing import Literal


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


def fine_grained(inner: int, experts: int, k: int, parts: int) -> tuple[int, int, int]:
    """Inner width, number and chosen number of experts that are each split into ``parts``: as many parameters, and operations a token.

    Source: DeepSeekMoE (arXiv 2401.06066); with 2 parts the control of arXiv 2411.16205, which does not print its K.

    Raises:
        ValueError: ``parts`` does not divide ``inner``.
    """
    if parts < 1 or inner % parts:
        raise ValueError(f"parts {parts}: should be at least 1 and divide the inner width, {inner}")
    return inner // parts, experts * parts, k * parts


def multi_head_inner_by_parameters(
    d_model: int, inner: int, experts: int, heads: int, kind: Literal["swiglu", "xmoe"] = "swiglu", maps: int = 2
) -> int:
    """Inner width of E multi-head experts that have, with head and merge maps, the parameters of E experts of width D; to the nearest.

    The rule of MH-MoE (arXiv 2404.15045): equal parameters, at about h times the operations of an expert: 67 D² a token against 16 D² for
    F = 4 D, h = 4. Its appendix D prints F' = 4 β D, with β at least 63/64. That leaves out a factor h: F' = 4 β h D, which
    arXiv 2411.16205 (section 2.2) states, gives the 898M and 1797M of its table 11 (32 and 64 experts), the printed one a quarter. Also
    there, the sum of all parameters lacks the 2 D² of head and merge layer and has N / h where its parts give N; and the table's 8 and 16
    experts have β of 0.933 to 0.944. So the width is solved for here; the table's layers are smaller than those they are compared
    with, by 3 % at 8 experts.

    Args:
        d_model: D.
        inner: F.
        experts: E.
        heads: h.
        kind: of the experts: ``swiglu``, three matrices; ``xmoe``, two maps with biases and a LayerNorm between them, those of the paper.
        maps: linear maps with biases of head and merge layer together. Routers are not counted.

    Raises:
        ValueError: ``heads`` does not divide ``d_model``, or nothing is left for the experts.
    """
    width = _width_of_head(d_model, heads)
    left = experts * _expert(d_model, inner, kind) - maps * (d_model**2 + d_model) - experts * _expert(width, 0, kind)
    return _positive(_nearest(left, experts * (_expert(width, 1, kind) - _expert(width, 0, kind))), "maps", maps)


def multi_head_inner_by_operations(d_model: int, inner: int, k: int, multi_head_k: int, matrices: int = 3, maps: int = 2) -> int:
    """Inner width F' of multi-head experts with which a token takes as many multiplications, K' F' = K F − maps · D / M; to the nearest.

    Source: arXiv 2411.16205, whose equation 8, F' = F − D / K, is that of two matrices and K' = K. The number of heads does not matter.
    Its models have SwiGLU experts, for which the equation is not printed; this is their F' exactly (768 of K' 2, 512 of K' 3).

    Args:
        d_model: D.
        inner: F.
        k: K.
        multi_head_k: K', experts of a sub-token.
        matrices: M.
        maps: linear maps of head and merge layer together; biases, norms and routers are not counted.

    Raises:
        ValueError: nothing is left for the experts.
    """
    return _positive(_nearest(matrices * k * inner - maps * d_model, matrices * multi_head_k), "maps", maps)


def multi_head_experts(d_model: int, inner: int, experts: int, heads: int, multi_head_inner: int, matrices: int = 3, maps: int = 2) -> int:
    """Number of multi-head experts E' for as many parameters, E' F' = h (E F − maps · D / M); to the nearest.

    Source: arXiv 2411.16205, equation 9, which is that of two matrices. Of its own models, of 41.3 and 93 experts by this, it takes 40 and
    96: 3.1 % fewer parameters with two heads, and 3.1 % more with three.

    Args:
        d_model: D.
        inner: F.
        experts: E.
        heads: h.
        multi_head_inner: F'.
        matrices: M.
        maps: as in `multi_head_inner_by_operations`.

    Raises:
        ValueError: ``heads`` does not divide ``d_model``, or nothing is left for the experts.
    """
    _width_of_head(d_model, heads)
    return _positive(_nearest(heads * (matrices * inner * experts - maps * d_model), matrices * multi_head_inner), "maps", maps)


def layer_parameters(d_model: int, inner: int, experts: int, heads: int = 1, matrices: int = 3, maps: int = 0) -> int:
    """Parameters of a layer's experts, of width D / h, and of its D to D maps; without biases, norms and router."""
    return maps * d_model**2 + experts * matrices * _width_of_head(d_model, heads) * inner


def layer_multiplications(d_model: int, inner: int, k: int, matrices: int = 3, maps: int = 0) -> int:
    """Multiplications a token in the experts and D to D maps: h sub-tokens take K experts each, of width D / h, so h does not matter."""
    return maps * d_model**2 + k * matrices * d_model * inner


def _expert(width: int, inner: int, kind: str) -> int:
    """Parameters of one expert."""
    return 3 * width * inner if kind == "swiglu" else 2 * width * inner + inner + width + 2 * inner


def _width_of_head(d_model: int, heads: int) -> int:
    if heads < 1 or d_model % heads:
        raise ValueError(f"heads {heads}: should be at least 1 and divide the width, {d_model}")
    return d_model // heads


def _positive(value: int, name: str, given: int) -> int:
    if value < 1:
        raise ValueError(f"{name} {given}: head and merge maps are as large as the experts to match, and leave nothing for their own")
    return value


def _nearest(dividend: int, divisor: int) -> int:
    return (2 * dividend + divisor) // (2 * divisor)
