"""The dot-product router against numpy, and the paper's account of why it collapses."""

import numpy as np
import pytest
import torch

from moebench.moe import RouterInputs
from moebench.moe.routers.dot import Dot

T, D, E = 7, 10, 4


def router(gate="softmax"):
    torch.manual_seed(0)
    module = Dot(D, E, gate=gate).double()
    torch.nn.init.normal_(module.embedding)
    return module, torch.randn(T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_equals_numpy(gate):
    module, x = router(gate)
    routing = module(RouterInputs(x))
    scores = x.numpy() @ module.embedding.detach().numpy().T
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    best = scores.argmax(1)
    weight = probs.max(1) if gate == "softmax" else 1 / (1 + np.exp(-scores.max(1)))
    share = np.bincount(best, minlength=E) / T
    assert routing.expert.tolist() == best.tolist()
    np.testing.assert_allclose(routing.scores.numpy(), scores, atol=1e-12)
    np.testing.assert_allclose(routing.weight.detach().numpy(), weight, atol=1e-12)
    assert routing.losses["balance"].item() == pytest.approx(E * (share * probs.mean(0)).sum(), abs=1e-12)


def test_the_routing_gradient_lies_in_the_span_of_the_embeddings():
    """Equation 5 of X-MoE: the part of dL/dh that goes through the gate is Σ_j S_k (δ_kj − S_j) (FFNᵀ dL/dh') e_j."""
    module, x = router()
    x.requires_grad_()
    output, upstream = torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    routing = module(RouterInputs(x))
    (gradient,) = torch.autograd.grad((routing.weight[:, None] * output * upstream).sum(), x)
    embedding = module.embedding.detach().numpy()
    for t in range(T):
        score = embedding @ x[t].detach().numpy()
        S = np.exp(score) / np.exp(score).sum()
        k = S.argmax()
        c = S[k] * ((np.arange(E) == k) - S) * (output[t] @ upstream[t]).item()
        np.testing.assert_allclose(gradient[t].numpy(), c @ embedding, atol=1e-12)
    assert torch.linalg.matrix_rank(gradient) <= E - 1  # the coefficients c sum to 0


def test_embeddings_start_small():
    torch.manual_seed(0)
    assert Dot(64, 64).embedding.std().item() == pytest.approx(0.02, rel=0.03)
