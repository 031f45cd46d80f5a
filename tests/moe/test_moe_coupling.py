"""The coupling loss against a double loop, finite differences and analytic values; and as a loss of `MoELayer`."""

import pytest
import torch

from moebench.moe import FactorisedExperts, MoELayer, ResidualExperts, SwiGLUExperts, build_router
from moebench.moe.coupling import coupling

E, D, F = 4, 6, 5


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(E, D, generator=generator, dtype=torch.float64), torch.randn(E, F, D, generator=generator, dtype=torch.float64)


def by_loop(embedding, gate, alpha):
    total = 0.0
    for i in range(E):
        for j in range(E):
            if i != j:
                own, other, back = ((gate[b] @ embedding[a]).square().sum().sqrt() for a, b in ((i, i), (i, j), (j, i)))
                total = total + max(other - alpha * own, torch.zeros(())) + max(back - alpha * own, torch.zeros(()))
    return total / E**2


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_equals_a_double_loop_with_gradients(alpha):
    ours, theirs = ([value.requires_grad_() for value in drawn()] for _ in range(2))
    loss, expected = coupling(*ours, alpha), by_loop(*theirs, alpha)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)
    for one, other in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda *values: coupling(*values, alpha), ours, fast_mode=True)


def test_noise_stays_within_half_the_way_to_the_nearest_embedding_and_has_no_gradient_of_its_width():
    embedding, gate = drawn()
    embedding.requires_grad_()
    torch.manual_seed(3)
    loss = coupling(embedding, gate, noise=True)
    torch.manual_seed(3)
    uniform = 2 * torch.rand(E, D, dtype=torch.float64) - 1
    factors = torch.ones_like(embedding)
    for i in range(E):
        nearest = min((embedding[i] - embedding[j]).norm() for j in range(E) if j != i).item()
        factors[i] += nearest / (2 * embedding[i].norm().item()) * uniform[i]
        assert ((factors[i] - 1) * embedding[i]).norm() < nearest / 2
    expected = by_loop(embedding * factors, gate, 1.0)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)
    (ours,), (theirs,) = torch.autograd.grad(loss, embedding), torch.autograd.grad(expected, embedding)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_it_is_0_where_every_expert_answers_its_own_and_grows_where_they_are_exchanged():
    embedding = torch.eye(E)
    gate = torch.diag_embed(torch.eye(E)) + 0.01  # expert i has a matrix that passes e_i
    assert coupling(embedding, gate).item() == 0
    exchanged = coupling(embedding, gate.roll(1, 0))
    assert exchanged > 0
    assert coupling(embedding, gate.roll(1, 0), alpha=0.5) > exchanged


def test_it_teaches_an_expert_its_embedding():
    embedding, gate = (value.requires_grad_() for value in drawn(1))
    optimiser = torch.optim.Adam([embedding, gate], lr=0.02)
    before = coupling(embedding, gate)
    for _ in range(60):
        optimiser.zero_grad()
        coupling(embedding, gate).backward()
        optimiser.step()
    assert coupling(embedding, gate) < before / 10


@pytest.mark.parametrize("rows", [torch.zeros(E, D), torch.ones(E, D), torch.randn(1, D)], ids=["zero", "equal", "one"])
def test_embeddings_that_are_zero_or_equal_or_alone(rows):
    rows.requires_grad_()
    loss = coupling(rows, torch.randn(len(rows), F, D), noise=True)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, rows)[0].isfinite().all()
    assert loss == 0 or rows[0].any()


def layer(experts=None, router="topk", **options):
    torch.manual_seed(0)
    return MoELayer(build_router(router, D, E, options), experts or SwiGLUExperts(E, D, F), coupling=0.7)


@pytest.mark.parametrize("experts", [SwiGLUExperts(E, D, F), FactorisedExperts(E, D, 3, F)])
def test_a_layer_reports_it_with_noise_in_training_and_without_in_evaluation(experts):
    module, x = layer(experts).eval(), torch.randn(2, 3, D)
    direct = coupling(module.router.embedding, experts.gate_EFD, 0.7)
    y, aux = module(x)
    assert set(aux.losses) == {*module.router.losses, "coupling"}
    torch.testing.assert_close(aux.losses["coupling"], direct)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(x)[1].losses["coupling"], direct)
    module.train()
    torch.manual_seed(1)
    noisy, noisy_aux = module(x)
    assert torch.equal(noisy, y)
    torch.manual_seed(1)
    assert torch.equal(noisy_aux.losses["coupling"], coupling(module.router.embedding, experts.gate_EFD, 0.7, noise=True))
    assert not torch.equal(noisy_aux.losses["coupling"], direct)
    noisy_aux.losses["coupling"].backward()
    assert module.router.embedding.grad.abs().max() > 0
    assert all((experts.get_parameter(name).grad is None) == name.startswith(("up", "down")) for name, _ in experts.named_parameters())


def test_without_it_the_losses_are_the_routers():
    plain = MoELayer(build_router("topk", D, E, {}), SwiGLUExperts(E, D, F))
    assert set(plain(torch.randn(1, 2, D))[1].losses) == {"balance", "z"}


def test_what_cannot_be_coupled_is_refused():
    for router, options in (("norm", {"low": 3}), ("xmoe", {"dim": 3}), ("random", {})):
        with pytest.raises(ValueError, match=r"coupling 0\.7: \w+ has no embedding"):
            layer(router=router, **options)
    with pytest.raises(ValueError, match=r"coupling 0\.7: ResidualExperts has no gate"):
        layer(ResidualExperts(E, D, F, 1))
    with pytest.raises(ValueError, match=r"coupling 0\.0: should be above 0"):
        MoELayer(build_router("topk", D, E, {}), SwiGLUExperts(E, D, F), coupling=0.0)
