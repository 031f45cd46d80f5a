"""Linear maps and layer norms of many experts at once: rows sorted by expert, parameters with a leading axis of experts.

A rows, E experts, D input width, F output width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW_ROWS = 64
"""Up to so many, as in generating a token, one call takes less time on a CPU than a loop over the experts."""


def grouped_linear(
    rows_AD: Tensor, weight_EFD: Tensor, counts_E: Tensor, bias_EF: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Map row a of expert e to rows[a] @ weight[e].T + bias[e].

    Under autocast everything is cast as `torch.nn.functional.linear` does. An expert without rows gets zero gradients.

    Args:
        rows_AD: (A, D), sorted by expert.
        weight_EFD: (E, F, D).
        counts_E: (E,) number of rows of each expert.
        bias_EF: (E, F); none: no biases.
        backend: ``loop``, plain autograd, the reference; ``segments``, an autograd function that writes each expert's results in place;
            ``grouped_mm``, `torch.nn.functional.grouped_mm` (no fp64; D and F multiples of 16 bytes). None: ``grouped_mm`` for such
            bf16 on a GPU and for a few fp32 rows without gradients on a CPU, ``segments`` otherwise.

    Returns:
        (A, F).

    Raises:
        ValueError: ``counts_E`` is for other experts or rows, there is no such backend, or the type is fp16 on a CPU.
    """
    counts = _checked(counts_E, weight_EFD, rows_AD)
    rows_AD, weight_EFD, *bias = _cast(rows_AD, weight_EFD, *(() if bias_EF is None else (bias_EF,)))
    return BACKENDS[_backend(rows_AD, (weight_EFD,), backend)](rows_AD, weight_EFD, counts, bias[0] if bias else None)


def grouped_swiglu(
    gated_AL: Tensor,
    rows_AD: Tensor,
    gate_EFL: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    counts_E: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Map row a of expert e to down[e] @ (silu(gate[e] @ gated[a]) · (up[e] @ rows[a])).

    As three of `grouped_linear`. The backend ``segments`` does all of an expert's work while its rows are in the processor's cache, and
    takes one exponential a number, none in the backward pass.

    Args:
        gated_AL: (A, L), sorted by expert: what the gate sees, ``rows_AD`` itself unless the gate is factorised.
        rows_AD: (A, D), sorted by expert.
        gate_EFL: (E, F, L).
        up_EFD: (E, F, D).
        down_EDF: (E, D, F).
        counts_E: (E,) number of rows of each expert.
        backend: as of `grouped_linear`.

    Returns:
        (A, D).

    Raises:
        ValueError: as `grouped_linear` does.
    """
    counts = _checked(counts_E, up_EFD, rows_AD)
    gated_AL, rows_AD, gate_EFL, up_EFD, down_EDF = _cast(gated_AL, rows_AD, gate_EFL, up_EFD, down_EDF)
    backend = _backend(rows_AD, (gate_EFL, up_EFD, down_EDF), backend)
    if backend == "segments":
        return cast(Tensor, _SwiGLUSegments.apply(gated_AL, rows_AD, gate_EFL, up_EFD, down_EDF, counts))
    product = BACKENDS[backend]
    activated_AF = F.silu(product(gated_AL, gate_EFL, counts, None)) * product(rows_AD, up_EFD, counts, None)
    return product(activated_AF, down_EDF, counts, None)


def grouped_layer_norm(rows_AD: Tensor, weight_ED: Tensor, bias_ED: Tensor, counts_E: Tensor) -> Tensor:
    """Norm every row, then scale and shift it by its expert's vectors: (A, D), in the rows' type.

    Raises:
        ValueError: ``counts_E`` is for other experts or rows.
    """
    counts = _checked(counts_E, weight_ED, rows_AD)
    normed_AD = F.layer_norm(rows_AD, rows_AD.shape[1:])
    return torch.addcmul(_per_row(bias_ED, counts), normed_AD, _per_row(weight_ED, counts)).to(rows_AD.dtype)


def grouped_rms_norm(rows_AD: Tensor, weight_ED: Tensor, counts_E: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Divide every row by its root mean square (arXiv 1910.07467), then scale it by its expert's vector: (A, D), in the rows' type.

    Raises:
        ValueError: ``counts_E`` is for other experts or rows.
    """
    counts = _checked(counts_E, weight_ED, rows_AD)
    return (F.rms_norm(rows_AD, rows_AD.shape[1:], eps=epsilon) * _per_row(weight_ED, counts)).to(rows_AD.dtype)


def _checked(counts_E: Tensor, parameter: Tensor, rows: Tensor) -> list[int]:
    counts: list[int] = counts_E.tolist()
    if len(counts) != len(parameter):
        raise ValueError(f"counts of {len(counts)} experts, but parameters of {len(parameter)}")
    if sum(counts) != len(rows):
        raise ValueError(f"counts of {sum(counts)} rows, but {len(rows)} rows")
    return counts


def _cast(*values: Tensor) -> tuple[Tensor, ...]:
    device = values[0].device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        values = tuple(one if one.dtype == torch.float64 else one.to(kind) for one in values)
    if device == "cpu" and values[0].dtype == torch.float16:
        raise ValueError("float16 on a CPU: torch multiplies it a thousand times slower than bfloat16; take that or float32")
    return values


def _backend(rows_AD: Tensor, weights: Sequence[Tensor], backend: str | None) -> str:
    if backend is None:
        aligned = all(size % 8 == 0 for weight in weights for size in weight.shape[1:])
        few = len(rows_AD) <= FEW_ROWS and rows_AD.dtype == torch.float32 and not torch.is_grad_enabled()
        backend = "grouped_mm" if aligned and (few if rows_AD.device.type == "cpu" else rows_AD.dtype == torch.bfloat16) else "segments"
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: should be one of {', '.join(BACKENDS)}")
    return backend


def _by_loop(rows_AD: Tensor, weight_EFD: Tensor, counts: list[int], bias_EF: Tensor | None) -> Tensor:
    # unbind, not [e]: the backward pass of indexing fills a gradient of all experts for each expert
    bias = [None] * len(counts) if bias_EF is None else bias_EF.unbind()
    return torch.cat([F.linear(*expert) for expert in zip(rows_AD.split(counts), weight_EFD.unbind(), bias, strict=True)])


def _by_segments(rows_AD: Tensor, weight_EFD: Tensor, counts: list[int], bias_EF: Tensor | None) -> Tensor:
    return _Segments.apply(rows_AD, weight_EFD, bias_EF, counts)


def _by_grouped_mm(rows_AD: Tensor, weight_EFD: Tensor, counts: list[int], bias_EF: Tensor | None) -> Tensor:
    ends_E = torch.tensor(counts, dtype=torch.int32, device=rows_AD.device).cumsum(0, dtype=torch.int32)
    out_AF: Tensor = F.grouped_mm(rows_AD, weight_EFD.transpose(1, 2), offs=ends_E)
    if out_AF.requires_grad:
        out_AF.register_hook(Tensor.contiguous)  # it refuses the expanded gradient of a sum
    return out_AF if bias_EF is None else out_AF + _per_row(bias_EF, counts)


BACKENDS: dict[str, Callable[[Tensor, Tensor, list[int], Tensor | None], Tensor]] = {
    "loop": _by_loop,
    "segments": _by_segments,
    "grouped_mm": _by_grouped_mm,
}


class _Segments(torch.autograd.Function):
    """All experts write into one tensor each pass; gradients of weights are not zeroed before they are written."""

    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, weight_EFD: Tensor, bias_EF: Tensor | None, counts: list[int]) -> Tensor:
        ctx.save_for_backward(rows_AD if ctx.needs_input_grad[1] else None, weight_EFD if ctx.needs_input_grad[0] else None)
        ctx.counts = counts
        out_AF = rows_AD.new_empty(len(rows_AD), weight_EFD.shape[1])
        rows, weight, out = rows_AD.split(counts), weight_EFD.mT.unbind(), out_AF.split(counts)
        if bias_EF is None:
            _for_each(counts, lambda e: torch.mm(rows[e], weight[e], out=out[e]), out_AF.device)
        else:
            bias = bias_EF.unbind()
            _for_each(counts, lambda e: torch.addmm(bias[e], rows[e], weight[e], out=out[e]), out_AF.device)
        return out_AF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AF: Tensor) -> tuple[Tensor | None, ...]:
        rows_AD, weight_EFD = ctx.saved_tensors
        grad_AF = grad_AF.contiguous()  # that of a sum is expanded
        experts, width = len(ctx.counts), grad_AF.shape[1]
        grad_rows_AD = None if weight_EFD is None else grad_AF.new_empty(len(grad_AF), weight_EFD.shape[2])
        grad_weight_EFD = None if rows_AD is None else grad_AF.new_empty(experts, width, rows_AD.shape[1])
        grad_bias_EF = grad_AF.new_empty(experts, width) if ctx.needs_input_grad[2] else None
        # the products of each expert, on views that are made all at once: that is cheaper than one by one
        grad = grad_AF.split(ctx.counts)
        products: list[Callable[[int], object]] = []
        if grad_rows_AD is not None:
            weight, grad_rows = weight_EFD.unbind(), grad_rows_AD.split(ctx.counts)
            products.append(lambda e: torch.mm(grad[e], weight[e], out=grad_rows[e]))
        if grad_weight_EFD is not None:
            rows, grad_weight = rows_AD.split(ctx.counts), grad_weight_EFD.unbind()
            products.append(lambda e: torch.mm(grad[e].T, rows[e], out=grad_weight[e]))
        if grad_bias_EF is not None:
            grad_bias = grad_bias_EF.unbind()
            products.append(lambda e: torch.sum(grad[e], 0, out=grad_bias[e]))
        _for_each(ctx.counts, lambda e: [product(e) for product in products], grad_AF.device)
        for grad in (grad_weight_EFD, grad_bias_EF):
            _zero_without_rows(grad, ctx.counts)
        return grad_rows_AD, grad_weight_EFD, grad_bias_EF, None


class _SwiGLUSegments(torch.autograd.Function):
    """All that an expert does with its rows, then the next expert. With s = σ(g): silu(g) = g s, and its slope is s + g s (1 − s)."""

    @staticmethod
    def forward(
        ctx: Any, gated_AL: Tensor, rows_AD: Tensor, gate_EFL: Tensor, up_EFD: Tensor, down_EDF: Tensor, counts: list[int]
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        kept = [rows_AD.new_empty(len(rows_AD) if learns else 0, up_EFD.shape[1]) for _ in range(3)]
        out_AD = rows_AD.new_empty(len(rows_AD), down_EDF.shape[1])
        gated, rows, out = (values.split(counts) for values in (gated_AL, rows_AD, out_AD))
        gate, up, down = (weight.mT.unbind() for weight in (gate_EFL, up_EFD, down_EDF))
        parts = [values.split(counts) for values in kept] if learns else None

        def work(e: int) -> None:
            activated, share, linear = [None] * 3 if parts is None else [values[e] for values in parts]
            activated = torch.mm(gated[e], gate[e], out=activated)
            activated.mul_(torch.sigmoid(activated, out=share))
            torch.mm(activated * torch.mm(rows[e], up[e], out=linear), down[e], out=out[e])

        _for_each(counts, work, out_AD.device)
        ctx.save_for_backward(gated_AL, rows_AD, gate_EFL, up_EFD, down_EDF, *kept)
        ctx.counts = counts
        return out_AD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        gated_AL, rows_AD, *weights, activated_AF, share_AF, linear_AF = ctx.saved_tensors
        grad_AD = grad_AD.contiguous()  # that of a sum is expanded
        activated, share, linear, grad = (values.split(ctx.counts) for values in (activated_AF, share_AF, linear_AF, grad_AD))
        gated, rows = gated_AL.split(ctx.counts), rows_AD.split(ctx.counts)
        gate, up, down = (weight.unbind() for weight in weights)
        inputs = (gated_AL, rows_AD, *weights)
        grads = [torch.empty_like(one) if needed else None for one, needed in zip(inputs, ctx.needs_input_grad, strict=False)]
        to_gated, to_rows = (None if one is None else one.split(ctx.counts) for one in grads[:2])
        to_gate, to_up, to_down = (None if one is None else one.unbind() for one in grads[2:])

        def work(e: int) -> None:
            if to_down is not None:
                torch.mm(grad[e].T, activated[e] * linear[e], out=to_down[e])
            product = torch.mm(grad[e], down[e])
            slope = torch.addcmul(share[e], activated[e], 1 - share[e])
            for back, weight, seen, sent, learned in (
                (product * activated[e], up, rows, to_rows, to_up),
                (slope.mul_(linear[e]).mul_(product), gate, gated, to_gated, to_gate),
            ):
                if sent is not None:
                    torch.mm(back, weight[e], out=sent[e])
                if learned is not None:
                    torch.mm(back.T, seen[e], out=learned[e])

        _for_each(ctx.counts, work, grad_AD.device)
        for weight_grad in grads[2:]:
            _zero_without_rows(weight_grad, ctx.counts)
        return *grads, None


class _PerRow(torch.autograd.Function):
    """Gives each row of expert e a copy of values[e]; the gradient is a sum per expert, not one addition per row."""

    @staticmethod
    def forward(ctx: Any, values_EF: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return values_EF.repeat_interleave(torch.tensor(counts, device=values_EF.device), 0, output_size=sum(counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AF: Tensor) -> tuple[Tensor, None]:
        sums_EF = grad_AF.new_empty(len(ctx.counts), grad_AF.shape[1])
        grad, sums = grad_AF.split(ctx.counts), sums_EF.unbind()
        _for_each(ctx.counts, lambda e: torch.sum(grad[e], 0, out=sums[e]), grad_AF.device)
        _zero_without_rows(sums_EF, ctx.counts)
        return sums_EF, None


def _per_row(values_EF: Tensor, counts: list[int]) -> Tensor:
    return _PerRow.apply(values_EF, counts)


def _zero_without_rows(grad: Tensor | None, counts: list[int]) -> None:
    """Fill what no segment has written."""
    for expert, count in enumerate(counts):
        if grad is not None and not count:
            grad[expert].zero_()


def _for_each(counts: list[int], work: Callable[[int], object], device: torch.device) -> None:
    """Call ``work`` for each expert that has rows.

    On a CPU, threads take one expert after the other, the largest first. If all threads shared every product, they would wait for each
    other after each: for small products a fifth of the time on an idle machine, several times it on a busy one. Only the product of an
    expert with more than half of a thread's part of the rows is shared.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    share = sum(counts) / threads
    busy = [expert for expert, count in enumerate(counts) if count]
    alone = [] if threads == 1 else sorted((e for e in busy if 2 * counts[e] <= share), key=lambda e: -counts[e])
    for expert in busy:
        if threads == 1 or 2 * counts[expert] > share:
            work(expert)
    if not alone:
        return
    queue = iter(alone)

    def run() -> None:
        with torch.inference_mode():  # a thread starts with gradients on
            for expert in queue:
                work(expert)

    torch.set_num_threads(1)
    try:
        others = [_workers(threads - 1, os.getpid()).submit(run) for _ in range(threads - 1)]
        run()
        for other in others:
            other.result()
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Keep threads that do not share their products out; a forked process needs its own."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
