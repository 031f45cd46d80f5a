"""The large router against loops, and against Autonomy-of-Experts with the same matrices."""

import pytest
import torch

from moebench.moe import FactorisedExperts, MoELayer, RouterInputs
from moebench.moe.layers.aoe import AoE
from moebench.moe.routers.norm import Norm

D, E, L = 6, 4, 3


def router(**options):
    torch.manual_seed(0)
    module = Norm(D, E, low=L, **options).double()
    torch.nn.init.normal_(module.reduce_weight, std=0.4)
    return module


@pytest.mark.parametrize("normalise", [True, False])
def test_equals_a_loop(normalise):
    module, x = router(k=2, normalise=normalise), torch.randn(7, D, dtype=torch.float64)
    routing = module(RouterInputs(x))
    for t in range(7):
        norms = torch.stack([(module.reduce_weight[e] @ x[t]).square().sum().sqrt() for e in range(E)])
        best = sorted(range(E), key=lambda e, norms=norms: -norms[e].item())[:2]
        total = norms[best].exp().sum() if normalise else norms.exp().sum()
        mine = routing.token == t
        assert routing.expert[mine].tolist() == best
        torch.testing.assert_close(routing.weight[mine], norms[best].exp() / total)
        torch.testing.assert_close(routing.scores[t], norms.detach())
    assert routing.losses["z"].item() == pytest.approx(routing.scores.exp().sum(1).log().square().mean().item())


@pytest.mark.parametrize(("normalise", "weights"), [(True, "kept"), (False, "all")])
def test_with_the_experts_matrices_it_is_autonomy_of_experts(normalise, weights):
    """What is left between the two is the sharing."""
    experts, module, x = FactorisedExperts(E, D, L, 8).double(), router(normalise=normalise), torch.randn(2, 5, D, dtype=torch.float64)
    with torch.no_grad():
        experts.reduce_weight.copy_(module.reduce_weight)
    (one, aux), (other, other_aux) = MoELayer(module, experts)(x), AoE(D, experts, weights=weights)(x)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    torch.testing.assert_close(aux.losses["balance"], other_aux.losses["balance"], rtol=0, atol=1e-14)


def test_its_size_is_that_of_the_reductions():
    assert sum(parameter.numel() for parameter in router().parameters()) == E * L * D
    assert router().flops_per_token == 2 * E * L * D


@pytest.mark.parametrize(("options", "message"), [({"k": 5, "low": 3}, "k 5: "), ({"k": 0, "low": 3}, "k 0: "), ({"low": 0}, "low 0: ")])
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Norm(D, E, **options)
