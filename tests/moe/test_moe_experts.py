"""ResidualExperts against stacks of torch modules that are run row by row."""

import pytest
import torch
from torch import nn

from moebench.moe import ResidualExperts


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
    with pytest.raises(ValueError, match="zip"):
        random_experts()(torch.randn(3, 6, dtype=torch.float64), torch.tensor(counts))
