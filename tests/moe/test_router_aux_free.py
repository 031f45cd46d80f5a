"""Balance by a bias: the paper's rule by hand, what the bias touches and what it does not, and that it does balance."""

import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers import aux_free
from moebench.moe.routers.aux_free import AuxFree

T, D, E = 12, 8, 4


def router(**options):
    torch.manual_seed(0)
    module = AuxFree(D, E, **options).double()
    torch.nn.init.normal_(module.embedding)
    return module, torch.randn(T, D, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        ({"k": 1}, torch.sigmoid),
        ({"k": 2}, torch.sigmoid),
        ({"k": 3, "gate": "softmax"}, lambda logits: logits.softmax(-1)),
        ({"k": 2, "normalise": True, "scale": 2.5}, torch.sigmoid),
    ],
)
def test_equals_a_loop(options, gate):
    module, x = router(**options)
    module.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    routing, k = module(RouterInputs(x)), options["k"]
    for t in range(T):
        s = gate(module.embedding @ x[t])
        chosen = sorted(range(E), key=lambda e: -(s[e] + module.bias[e]).item())[:k]
        weights = torch.stack([s[e] for e in chosen])
        if options.get("normalise"):
            weights = weights / weights.sum() * options["scale"]
        assert routing.expert.view(T, k)[t].tolist() == chosen
        torch.testing.assert_close(routing.weight.view(T, k)[t], weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(routing.scores[t], (s + module.bias).detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(routing.probs[t], (s / s.sum()).detach(), rtol=0, atol=1e-12)
    assert set(routing.losses) == {"z"}


def test_the_bias_moves_choices_and_neither_weights_nor_gradients():
    module, x = router(k=E)
    before = torch.zeros(T, E, dtype=torch.float64)
    routing = module(RouterInputs(x))
    before[routing.token, routing.expert] = routing.weight
    (gradient,) = torch.autograd.grad(routing.weight.sum(), module.embedding)
    module.bias.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    routing = module(RouterInputs(x))
    assert routing.expert.view(T, E).tolist() == [[1, 3, 2, 0]] * T
    torch.testing.assert_close(routing.weight, before[routing.token, routing.expert], rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(routing.weight.sum(), module.embedding)[0], gradient, rtol=0, atol=1e-12)
    assert set(dict(module.named_parameters())) == {"embedding"}


def test_the_rule_of_algorithm_1():
    module, _ = router(k=1, rate=0.01)
    module.counts.copy_(torch.tensor([9, 3, 0, 0]))  # the mean is 3
    module.after_optimizer_step()
    assert module.bias.tolist() == [-0.01, 0.0, 0.01, 0.01]
    assert module.counts.tolist() == [0, 0, 0, 0]
    module.after_optimizer_step()  # nothing was routed since
    assert module.bias.tolist() == [-0.01, 0.0, 0.01, 0.01]


def test_training_passes_between_two_steps_are_counted_together_and_evaluation_is_not():
    module, x = router(k=2)
    loads = [module(RouterInputs(part)).load for part in x.split(5)]
    module.eval()(RouterInputs(x))
    assert torch.equal(module.counts, sum(loads))
    assert module.counts.sum() == 2 * T
    module.after_optimizer_step()
    torch.testing.assert_close(module.bias, 1e-3 * (T * 2 / E - sum(loads)).sign().double(), rtol=0, atol=0)


def test_counts_of_all_ranks_decide(monkeypatch):
    module, _ = router(k=1)
    module.counts.copy_(torch.tensor([4, 0, 0, 0]))
    monkeypatch.setattr(aux_free, "summed_over_ranks", lambda counts: counts + torch.tensor([0, 9, 9, 9]))
    module.after_optimizer_step()
    assert module.bias.sign().tolist() == [1, -1, -1, -1]


def test_frozen_it_does_not_count():
    module, x = router()
    module.requires_grad_(False)(RouterInputs(x))
    assert module.counts.tolist() == [0, 0, 0, 0]


def test_a_copy_made_between_two_passes_of_a_step_goes_on_bit_for_bit():
    module, x = router()
    first, second = x.split(6)
    module(RouterInputs(first))
    other = AuxFree(D, E).double()
    other.load_state_dict(module.state_dict())
    for each in (module, other):
        each(RouterInputs(second))
        each.after_optimizer_step()
    assert torch.equal(module.bias, other.bias)
    assert module.bias.abs().max() > 0


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_a_lopsided_router_becomes_balanced(gate):
    torch.manual_seed(0)
    module = AuxFree(D, E, k=1, gate=gate, rate=0.01)
    torch.nn.init.normal_(module.embedding, std=0.2)
    x = torch.randn(400, D) + 2 * module.embedding[0].detach() / module.embedding[0].norm()
    start = module(RouterInputs(x)).load.max() / 100
    for _ in range(200):
        module(RouterInputs(x))
        module.after_optimizer_step()
    end = module(RouterInputs(x)).load.max() / 100
    assert start > 1.5  # the largest load over the mean
    assert end < 1.15


def test_normalised_weights_are_finite_where_all_sigmoids_vanish():
    module = AuxFree(D, E, normalise=True)
    with torch.no_grad():
        module.embedding.fill_(-100)
    routing = module(RouterInputs(torch.ones(3, D)))
    torch.testing.assert_close(routing.weight, torch.full((6,), 0.5))
    torch.testing.assert_close(routing.probs, torch.full((3, E), 0.25))


@pytest.mark.parametrize(
    ("options", "word"), [({"k": 0}, "k 0"), ({"k": 5}, "experts, 4"), ({"rate": 0.0}, "rate"), ({"scale": -1.0}, "scale")]
)
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        AuxFree(D, E, **options)
