"""MoELayer: padding, precision and errors, with a router that records what it is given."""

import pytest
import torch

from moebench.moe import MoELayer, ResidualExperts, Router, RouterInputs, Routing


class Recorder(Router):
    """Sends token t to expert t mod E with weight 1 and keeps its inputs."""

    def forward(self, inputs):
        self.seen = inputs
        self.product = inputs.tokens @ inputs.tokens.T
        expert = torch.arange(len(inputs.tokens)) % self.experts
        scores = torch.nn.functional.one_hot(expert, self.experts).to(inputs.tokens.dtype)
        return Routing.top1(expert, torch.ones_like(scores[:, 0]), scores=scores, losses={"some": scores.sum()})


def layer(name="moe"):
    torch.manual_seed(0)
    return MoELayer(Recorder(4, 3), ResidualExperts(3, 4, 6, 1), name)


MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)


def test_the_router_sees_real_tokens_only():
    module, x, ids = layer(), torch.randn(2, 4, 4), torch.arange(8).reshape(2, 4)
    attention = torch.randn(2, 3, 4, 4)
    _, aux = module(x, MASK, ids, attention)
    seen = module.router.seen
    assert torch.equal(seen.tokens, torch.stack([x[0, 0], x[0, 1], x[1, 0], x[1, 1], x[1, 2]]))
    assert seen.token_ids.tolist() == [0, 1, 4, 5, 6]
    assert seen.sequence_ids.tolist() == [0, 0, 1, 1, 1]
    assert seen.positions.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(seen.attention, torch.stack([attention[0, :, 0], attention[0, :, 1], *(attention[1, :, s] for s in range(3))]))
    assert aux.load.tolist() == [2, 2, 1]
    assert aux.losses["some"].item() == 5


def test_documents_are_counted_over_the_batch_and_places_within_them():
    module, mask = layer(), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)
    documents = torch.tensor([[0, 0, 0, 2, 2], [2, 2, 3, 3, 9], [9, 9, 9, 9, 9], [8, 9, 9, 9, 10]])
    module(torch.randn(4, 5, 4), mask, document_BS=documents)
    seen = module.router.seen
    assert seen.sequence_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert seen.positions.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 2, 0]
    with pytest.raises(ValueError, match="moe: attention is over rows"):
        module(torch.randn(1, 2, 4), None, None, torch.ones(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.long))


def test_operations_of_a_row_are_two_a_parameter_of_an_expert():
    module = layer()
    assert module.flops_per_row == 2 * sum(parameter[0].numel() for parameter in module.experts.parameters())


def test_a_layer_is_as_causal_as_its_router(monkeypatch):
    assert layer().causal
    monkeypatch.setattr(Recorder, "causal", False)
    assert not layer().causal


def test_padding_may_hold_anything_and_gets_zero_rows_and_zero_gradients():
    module, x = layer(), torch.randn(2, 4, 4)
    clean, _ = module(x, MASK)
    dirty = torch.where(MASK[..., None], x, torch.nan).requires_grad_()
    y, _ = module(dirty, MASK)
    y.sum().backward()
    assert torch.equal(y, clean)
    assert y[~MASK].abs().max() == 0
    assert y[MASK].abs().amax(-1).min() > 0
    assert dirty.grad[~MASK].abs().max() == 0
    assert dirty.grad[MASK].isfinite().all()


def test_a_mask_of_integers_means_the_same():
    module, x = layer(), torch.randn(2, 4, 4)
    assert torch.equal(module(x, MASK.long())[0], module(x, MASK)[0])


def test_no_mask_means_all_are_real():
    module, x = layer(), torch.randn(2, 4, 4)
    assert torch.equal(module(x)[0], module(x, torch.ones(2, 4, dtype=torch.bool))[0])
    assert module.router.seen.token_ids is None


def test_a_batch_of_padding_alone():
    y, aux = layer()(torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(y, torch.zeros(2, 4, 4))
    assert aux.load.tolist() == [0, 0, 0]


def test_the_router_runs_in_fp32_under_autocast():
    module, x = layer(), torch.randn(2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x.bfloat16())
    assert module.router.seen.tokens.dtype == module.router.product.dtype == torch.float32
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["scores", "weight"])
def test_a_value_that_is_not_finite_raises_with_the_layers_name(what, value, monkeypatch):
    module = layer("sparse layer after block 2")

    def broken(inputs):
        routing = Recorder.forward(module.router, inputs)
        getattr(routing, what)[1] = value
        return routing

    monkeypatch.setattr(module.router, "forward", broken)
    with pytest.raises(FloatingPointError, match=f"sparse layer after block 2: .* {what}.* not finite"):
        module(torch.randn(2, 4, 4))


def test_the_hook_reaches_the_router(monkeypatch):
    module, calls = layer(), []
    monkeypatch.setattr(module.router, "after_optimizer_step", lambda: calls.append(1))
    module.after_optimizer_step()
    assert calls == [1]
    module.requires_grad_(False).after_optimizer_step()  # frozen
    assert calls == [1]


def test_shared_experts_see_every_real_token_with_weight_1():
    torch.manual_seed(3)
    routed, shared = ResidualExperts(3, 4, 6, 1), ResidualExperts(2, 4, 6, 1)
    module, x = MoELayer(Recorder(4, 3), routed, shared=shared), torch.randn(2, 4, 4)
    y, aux = module(x, MASK)
    alone, _ = MoELayer(module.router, routed)(x, MASK)
    both = sum(shared(x[MASK], torch.tensor([5 * (e == 0), 5 * (e == 1)])) for e in range(2))
    torch.testing.assert_close(y[MASK] - alone[MASK], both)
    assert y[~MASK].abs().max() == 0
    assert aux.load.tolist() == [2, 2, 1]  # of the routed ones


def test_a_field_that_a_router_needs_is_named():
    with pytest.raises(ValueError, match="needs token_ids"):
        RouterInputs(torch.zeros(1, 2)).require("token_ids")
