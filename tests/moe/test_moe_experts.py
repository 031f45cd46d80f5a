"""Modules of experts against torch modules that are run row by row."""

import pytest
import torch
from torch import nn

from moebench.moe.experts import FactorisedExperts, FeedForwardExperts, ResidualExperts, SwiGLUExperts
from moebench.moe.grouped import BACKENDS


class Sublayer(nn.Module):
    def __init__(self, experts, e, layer):
        super().__init__()
        inner, width = experts.fc1_weight.shape[2:]
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)).double()
        pairs = ((0, "norm"), (1, "fc1"), (3, "fc2"))
        for index, name in pairs:
            for kind in ("weight", "bias"):
                setattr(self.body[index], kind, nn.Parameter(getattr(experts, f"{name}_{kind}")[e, layer].detach().clone()))

    def forward(self, x):
        return x + self.body(x)


def random_experts(experts=4, width=6, inner=10, sublayers=3, seed=0):
    torch.manual_seed(seed)
    module = ResidualExperts(experts, width, inner, sublayers).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_equals_torch_modules_row_by_row_with_gradients():
    experts = random_experts()
    stacks = [nn.Sequential(*(Sublayer(experts, e, layer) for layer in range(3))) for e in range(4)]
    rows, upstream = torch.randn(2, 7, 6, dtype=torch.float64)
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    counts = torch.tensor([3, 0, 1, 3])
    change = experts(ours, counts)
    owner = [0, 0, 0, 2, 3, 3, 3]
    expected = torch.stack([stacks[e](theirs[a]) - theirs[a] for a, e in enumerate(owner)])
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-12)
    (change * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)
    for e in (0, 2, 3):
        for layer in range(3):
            body = stacks[e][layer].body
            for index, name in ((0, "norm"), (1, "fc1"), (3, "fc2")):
                for kind in ("weight", "bias"):
                    grad = getattr(experts, f"{name}_{kind}").grad[e, layer]
                    torch.testing.assert_close(grad, getattr(body[index], kind).grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("counts", [[2, 0, 1, 0], [0, 0, 0, 0]])
def test_an_unused_expert_gets_zero_gradients_not_none(counts):
    experts = random_experts()
    experts(torch.randn(sum(counts), 6, dtype=torch.float64), torch.tensor(counts)).square().sum().backward()
    for name, parameter in experts.named_parameters():
        used = parameter.grad.flatten(1).abs().amax(1) > 0
        assert used.tolist() == [count > 0 for count in counts], name


def test_identity_start_changes_nothing_but_can_learn():
    torch.manual_seed(0)
    experts = ResidualExperts(3, 6, 10, 2, identity=True)
    change = experts(torch.randn(5, 6), torch.tensor([1, 2, 2]))
    assert torch.equal(change, torch.zeros(5, 6))
    change.sum().backward()
    assert experts.fc2_weight.grad.abs().amax((1, 2, 3)).min() > 0


def test_default_start():
    torch.manual_seed(0)
    experts = ResidualExperts(8, 32, 64, 3)
    assert torch.equal(experts.norm_weight, torch.ones(8, 3, 32))
    for bias in (experts.norm_bias, experts.fc1_bias, experts.fc2_bias):
        assert torch.equal(bias, torch.zeros_like(bias))
    for weight in (experts.fc1_weight, experts.fc2_weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_bf16_autocast_is_close_to_fp32():
    experts = random_experts().float()
    rows, counts = torch.randn(40, 6), torch.tensor([10, 20, 0, 10])
    exact = experts(rows, counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = experts(rows, counts)
    error = ((rough - exact).norm() / exact.norm()).item()
    assert 0 < error < 0.02


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 1, 1, 0, 0]])
def test_counts_of_another_number_of_experts_are_refused(counts):
    with pytest.raises(ValueError, match="experts, but parameters of 4"):
        random_experts()(torch.randn(3, 6, dtype=torch.float64), torch.tensor(counts))


def sequential(activation, bias, subln):
    """A network that FeedForwardExperts should equal, and where each parameter goes."""
    act = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]()
    return nn.Sequential(
        nn.Linear(8, 16, bias=bias), act, nn.LayerNorm(16) if subln else nn.Identity(), nn.Linear(16, 8, bias=bias)
    ).double()


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class NormedSwiGLU(SwiGLU):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-5)

    def forward(self, x):
        return self.down(self.norm(nn.functional.silu(self.gate(x)) * self.up(x)))


class Factorised(SwiGLU):
    def __init__(self):
        super().__init__()
        self.reduce, self.gate = nn.Linear(8, 3, bias=False), nn.Linear(3, 16, bias=False)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(self.reduce(x))) * self.up(x))


PLACES = {"fc1": "0", "norm": "2", "fc2": "3"}
"""Of the parameters of a sequential module; those of the others have our names."""
PAIRS = {
    "swiglu": (lambda: SwiGLUExperts(4, 8, 16), SwiGLU),
    "normed swiglu": (lambda: SwiGLUExperts(4, 8, 16, subln=True), NormedSwiGLU),
    "factorised": (lambda: FactorisedExperts(4, 8, 3, 16), Factorised),
}
KINDS = [{"activation": a, "bias": b, "subln": s} for a in ("gelu", "relu") for b in (True, False) for s in (True, False)]


@pytest.mark.parametrize("counts", [[3, 0, 1, 3], [0, 0, 0, 7], [0, 0, 0, 0]])
@pytest.mark.parametrize("backend", ["loop", "segments"])
@pytest.mark.parametrize("options", [*PAIRS, *KINDS], ids=str)
def test_feed_forward_experts_equal_torch_modules_row_by_row_with_gradients(options, backend, counts):
    torch.manual_seed(0)
    if isinstance(options, str):
        ours, theirs = PAIRS[options]
        experts, modules = ours().double(), [theirs().double() for _ in range(4)]
    else:
        experts = FeedForwardExperts(4, 8, 16, **options).double()
        modules = [sequential(**options) for _ in range(4)]
    experts.backend = backend
    places = {} if isinstance(options, str) else PLACES
    names = [name for name, _ in experts.named_parameters()]
    for name in names:
        nn.init.normal_(experts.get_parameter(name), std=0.5)
        for e, module in enumerate(modules):
            place, kind = name.split("_")
            with torch.no_grad():
                module.get_submodule(places.get(place, place)).get_parameter(kind).copy_(experts.get_parameter(name)[e])
    rows = torch.randn(sum(counts), 8, dtype=torch.float64)
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    y = experts(ours, torch.tensor(counts))
    owner = [e for e, count in enumerate(counts) for _ in range(count)]
    expected = torch.stack([modules[e](theirs[a]) for a, e in enumerate(owner)]) if owner else theirs * 0
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)
    for name in names:
        place, kind = name.split("_")
        for e, module in enumerate(modules):
            grad = module.get_submodule(places.get(place, place)).get_parameter(kind).grad
            torch.testing.assert_close(
                experts.get_parameter(name).grad[e], torch.zeros_like(experts.get_parameter(name)[e]) if grad is None else grad
            )


MODULES = {
    "residual": lambda count: ResidualExperts(count, 8, 16, 2, activation="relu"),
    "feed-forward": lambda count: FeedForwardExperts(count, 8, 16, subln=True),
    "swiglu": lambda count: SwiGLUExperts(count, 8, 16),
    "normed swiglu": lambda count: SwiGLUExperts(count, 8, 16, subln=True),
    "factorised": lambda count: FactorisedExperts(count, 8, 8, 16),
}


@pytest.mark.parametrize("kind", MODULES)
def test_may_be_called_with_the_parameters_of_more_experts(kind):
    torch.manual_seed(0)
    few, many = MODULES[kind](2), MODULES[kind](5)
    rows, counts = torch.randn(9, 8), torch.tensor([2, 0, 3, 1, 3])
    torch.testing.assert_close(torch.func.functional_call(few, dict(many.named_parameters()), (rows, counts)), many(rows, counts))
    with pytest.raises(ValueError, match="5 experts, but parameters of 2"):
        few(rows, counts)
    assert few.count == 2
    assert all(len(parameter) == 2 for parameter in few.parameters())


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_under_autocast(backend, kind):
    torch.manual_seed(0)
    experts, rows, counts = MODULES[kind](4), torch.randn(40, 8), torch.tensor([10, 20, 0, 10])
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    exact = experts(rows, counts)
    exact.sin().sum().backward()
    fine = {name: parameter.grad.clone() for name, parameter in experts.named_parameters()}
    experts.zero_grad()
    experts.backend = backend
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = experts(rows, counts)
    rough.float().sin().sum().backward()
    assert 0 < (rough - exact).norm() / exact.norm() < 0.02
    for name, parameter in experts.named_parameters():
        assert (parameter.grad - fine[name]).norm() / fine[name].norm() < 0.1, name


def test_the_gate_of_an_expert_as_one_matrix():
    torch.manual_seed(0)
    swiglu, factorised, x = SwiGLUExperts(3, 8, 16).double(), FactorisedExperts(3, 8, 5, 16).double(), torch.randn(8, dtype=torch.float64)
    assert swiglu.gate_EFD is swiglu.gate_weight
    for e in range(3):
        direct = factorised.gate_weight[e] @ (factorised.reduce_weight[e] @ x)
        torch.testing.assert_close(factorised.gate_EFD[e] @ x, direct, rtol=0, atol=1e-15)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="gelu, gelu_tanh, relu"):
        FeedForwardExperts(2, 4, 8, activation="swish")
    with pytest.raises(ValueError, match="gelu, gelu_tanh, relu"):
        ResidualExperts(2, 4, 8, 1, activation="swish")
