"""Every backend of grouped_linear against the loop, and the loop against torch modules row by row."""

import pytest
import torch
from torch import nn

from moebench.moe import grouped
from moebench.moe.grouped import BACKENDS, grouped_layer_norm, grouped_linear, grouped_swiglu

COUNTS = [[3, 0, 5, 1, 7], [0, 0, 16, 0, 0], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2], [1, 0, 0, 0, 0], [200, 3, 1, 0, 2]]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}
SUPPORTED = [(name, dtype) for name in BACKENDS for dtype in TOLERANCE if (name, dtype) != ("grouped_mm", torch.float64)]


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def leaves(counts, dtype, *, width=8, inner=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (sum(counts), width), (len(counts), inner, width), (len(counts), inner)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def close(ours, theirs, dtype):
    for first, second in zip(ours, theirs, strict=True):
        assert first.dtype == dtype
        assert torch.isfinite(first).all()
        scale = max(second.abs().max().item(), 1.0) if second.numel() else 1.0
        torch.testing.assert_close(first.double(), second.double(), rtol=0, atol=TOLERANCE[dtype] * scale)


def run(backend, tensors, counts, bias=True):
    rows, weight, shift = tensors
    y = grouped_linear(rows, weight, torch.tensor(counts), shift if bias else None, backend)
    return y, *torch.autograd.grad(y.sin().sum(), tensors if bias else tensors[:2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
def test_equals_torch_modules_row_by_row_with_gradients(backend, dtype, counts, bias, threads):
    tensors = leaves(counts, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    linears = []
    for weight, shift in zip(*exact[1:], strict=True):
        linear = nn.Linear(8, 16, bias=bias).double()
        linear.weight = nn.Parameter(weight.detach())
        if bias:
            linear.bias = nn.Parameter(shift.detach())
        linears.append(linear)
    owner = [e for e, count in enumerate(counts) for _ in range(count)]
    y = torch.stack([linears[e](row) for e, row in zip(owner, exact[0], strict=True)]) if owner else exact[0].new_zeros(0, 16)
    parameters = [linear.weight for linear in linears] + ([linear.bias for linear in linears] if bias else [])
    if owner:
        rows_grad, *grads = torch.autograd.grad(y.sin().sum(), [exact[0], *parameters], materialize_grads=True)
    else:
        rows_grad, grads = torch.zeros_like(exact[0]), [torch.zeros_like(parameter) for parameter in parameters]
    stacked = [torch.stack(grads[at : at + len(counts)]) for at in range(0, len(grads), len(counts))]
    close(run(backend, tensors, counts, bias), (y, rows_grad, *stacked), dtype)


@pytest.mark.parametrize("counts", [[2, 0, 1], [1, 1, 1]])
@pytest.mark.parametrize("backend", ["loop", "segments"])
def test_gradients_are_those_of_finite_differences(backend, counts, threads):
    tensors = leaves(counts, torch.float64, width=3, inner=2)
    assert torch.autograd.gradcheck(lambda *given: grouped_linear(*given[:2], torch.tensor(counts), given[2], backend), tensors)
    assert torch.autograd.gradcheck(lambda x, scale, shift: grouped_layer_norm(x, scale[:, 0], shift, torch.tensor(counts)), widths(counts))


def widths(counts):
    rows, weight, _ = leaves(counts, torch.float64, width=3, inner=2)
    return rows, weight, torch.randn(len(counts), 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter_nor_an_expanded_gradient(backend, threads):
    counts = [4, 0, 9, 3]
    rows, weight, shift = leaves(counts, torch.float32)
    strided = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in (rows, weight, shift)]
    ours, theirs = (
        grouped_linear(x, w, torch.tensor(counts), b, name) for (x, w, b), name in ((strided, backend), ((rows, weight, shift), "loop"))
    )
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(ours, theirs)
    for first, second in zip(strided, (rows, weight, shift), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_linear(backend):
    counts = [4, 0, 9, 3]
    tensors = leaves(counts, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = grouped_linear(tensors[0], tensors[1], torch.tensor(counts), tensors[2], backend)
    y.float().sin().sum().backward()
    exact, *grads = run("loop", tensors, counts)
    assert y.dtype == torch.bfloat16
    assert [tensor.grad.dtype for tensor in tensors] == [torch.float32] * 3
    for rough, fine in zip((y, *(tensor.grad for tensor in tensors)), (exact, *grads), strict=True):
        assert 0 < (rough - fine).norm() / fine.norm() < 0.03


def test_autocast_leaves_float64_alone():
    tensors = leaves([2, 3], torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grouped_linear(tensors[0], tensors[1], torch.tensor([2, 3])).dtype == torch.float64


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_frozen_parts_get_no_gradient_and_are_not_kept(frozen):
    counts = [4, 0, 9, 3]
    tensors = leaves(counts, torch.float64)
    _, *expected = run("loop", tensors, counts)
    for index in frozen:
        tensors[index].requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = grouped_linear(tensors[0], tensors[1], torch.tensor(counts), tensors[2], "segments")
    assert any(tensor is tensors[0] for tensor in kept) == (1 not in frozen)
    assert any(tensor is tensors[1] for tensor in kept) == (0 not in frozen)
    y.sin().sum().backward()
    for index, tensor in enumerate(tensors):
        if index in frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, expected[index])


def swiglu_leaves(counts, dtype, low=8):
    sizes = (sum(counts), low), (sum(counts), 16), (len(counts), 24, low), (len(counts), 24, 16), (len(counts), 16, 24)
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, generator=generator, dtype=torch.float64) / 3).to(dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
def test_swiglu_equals_its_formula_row_by_row_with_gradients(backend, dtype, counts, threads):
    tensors = swiglu_leaves(counts, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    gated, rows, gate, up, down = exact
    owner = [e for e, count in enumerate(counts) for _ in range(count)]
    expected = [down[e] @ (nn.functional.silu(gate[e] @ gated[row]) * (up[e] @ rows[row])) for row, e in enumerate(owner)]
    expected = torch.stack(expected) if owner else rows * 0
    expected_grads = torch.autograd.grad(expected.sin().sum(), exact, materialize_grads=True, allow_unused=True)
    y = grouped_swiglu(*tensors, torch.tensor(counts), backend)
    close([y], [expected], dtype)
    for grad, other in zip(torch.autograd.grad(y.sin().sum(), tensors), expected_grads, strict=True):
        scale = max(other.abs().max().item(), 1.0) if other.numel() else 1.0
        torch.testing.assert_close(grad.double(), other, rtol=0, atol=3 * TOLERANCE[dtype] * scale)
    with torch.no_grad():
        torch.testing.assert_close(grouped_swiglu(*tensors, torch.tensor(counts), backend), y.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("learns", range(5))
def test_swiglu_learns_one_part_alone(learns):
    counts = torch.tensor(COUNTS[0])
    tensors = swiglu_leaves(COUNTS[0], torch.float64)
    every = torch.autograd.grad(grouped_swiglu(*tensors, counts).sin().sum(), tensors)
    alone = [tensor.detach().requires_grad_(place == learns) for place, tensor in enumerate(tensors)]
    (one,) = torch.autograd.grad(grouped_swiglu(*alone, counts).sin().sum(), [alone[learns]])
    torch.testing.assert_close(one, every[learns], rtol=0, atol=0)


def test_layer_norm_equals_modules_with_gradients(threads):
    counts = [3, 0, 2]
    rows, scale, shift = torch.randn(5, 4).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    ours = [tensor.clone().requires_grad_() for tensor in (rows, scale, shift)]
    theirs = [tensor.clone().requires_grad_() for tensor in (rows, scale, shift)]
    y = grouped_layer_norm(*ours, torch.tensor(counts))
    expected = torch.stack(
        [nn.functional.layer_norm(theirs[0][a], (4,), theirs[1][e], theirs[2][e]) for a, e in enumerate([0, 0, 0, 2, 2])]
    )
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=1e-12)


def test_repeats_to_the_bit_and_leaves_the_number_of_threads(threads):
    counts = [7, 5, 1, 0, 3, 8, 2, 6]
    first, second = (run("segments", leaves(counts, torch.float32), counts) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.get_num_threads() == threads


def test_inference_mode_and_errors_in_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            tensors = [tensor.detach() for tensor in leaves([2] * 8, torch.float32)]
            y = grouped_linear(tensors[0], tensors[1], torch.tensor([2] * 8), backend="segments")
            torch.testing.assert_close(y, grouped_linear(tensors[0], tensors[1], torch.tensor([2] * 8), backend="loop"))
        with pytest.raises(RuntimeError, match="dtype"):
            grouped_linear(tensors[0].double(), tensors[1], torch.tensor([2] * 8), backend="segments")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_forked_process_has_threads_of_its_own():
    first = grouped._workers(1, 1)
    assert grouped._workers(1, 1) is first
    assert grouped._workers(1, 2) is not first


@pytest.mark.parametrize(
    ("counts", "dtype", "backend", "word"),
    [
        ([2, 3], torch.float32, None, "2 experts, but parameters of 3"),
        ([2, 1, 1], torch.float32, None, "4 rows, but 5 rows"),
        ([2, 2, 1], torch.float16, None, "float16"),
        ([2, 2, 1], torch.float32, "bmm", "loop, segments, grouped_mm"),
    ],
)
def test_what_makes_no_sense_is_refused(counts, dtype, backend, word):
    with pytest.raises(ValueError, match=word):
        grouped_linear(torch.randn(5, 8).to(dtype), torch.randn(3, 16, 8).to(dtype), torch.tensor(counts), backend=backend)
