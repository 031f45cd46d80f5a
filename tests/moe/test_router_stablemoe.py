"""StableMoE against the outputs of the authors' code, and its two stages: what learns, what stays, what resumes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moebench.moe import RouterInputs
from moebench.moe.dispatch import dispatch
from moebench.moe.routers.stablemoe import StableMoE

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("case00", "case01")
MODES = ("stage1_train", "stage2_train", "stage1_eval")


def golden(case):
    with np.load(GOLDEN / "stablemoe_layer.npz", allow_pickle=False) as arrays:
        return {key.removeprefix(f"{case}/"): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(f"{case}/")}


def given(data, mode):
    """The router of a golden case in a mode, and the tokens of all workers, worker after worker."""
    experts, width = data["expert_centroids"].shape
    module = StableMoE(width, experts, vocabulary=len(data["routing_emb"]), capacity_factor=data["capacity_factor"].item())
    with torch.no_grad():
        module.embedding.copy_(data["expert_centroids"])
        module.distilled_words.copy_(data["routing_emb"])
        module.distilled_embedding.copy_(data["distill_expert_centroids"])
        module.steps.fill_(module.stage1_steps if mode == "stage2_train" else module.stage1_steps - 1)
    return module.train(mode != "stage1_eval"), RouterInputs(data["x"].reshape(-1, width), token_ids=data["ids"].flatten())


def experts_of(data):
    """The change ff2(relu(ff1(LayerNorm(x)))) of every expert, on rows sorted by expert."""
    weights = [data[f"experts/{name}"] for name in ("norm_weight", "norm_bias", "ff1_weight", "ff1_bias", "ff2_weight", "ff2_bias")]

    def run(rows, counts):
        changes = []
        for x, scale, shift, w1, b1, w2, b2 in zip(rows.split(counts.tolist()), *weights, strict=True):
            changes.append(F.linear(F.linear(F.layer_norm(x, x.shape[1:], scale, shift), w1, b1).relu(), w2, b2))
        return torch.cat(changes)

    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_the_authors_code(case, mode):
    data = golden(case)
    module, inputs = given(data, mode)
    routing = module(inputs)
    expert, processed = data[f"{mode}/expert"].flatten(), data[f"{mode}/processed"].flatten()
    kept = processed if module.training else torch.ones_like(processed)  # the authors' code drops in evaluation too
    assert torch.equal(routing.token, kept.nonzero()[:, 0])
    assert torch.equal(routing.expert, expert[kept])
    assert routing.dropped == (~kept).sum()
    x = inputs.tokens
    y = (x + dispatch(x, routing, experts_of(data))).detach()
    theirs = data[f"{mode}/y"].reshape(y.shape)
    torch.testing.assert_close(y[processed], theirs[processed], rtol=0, atol=1e-5)
    assert torch.equal(theirs[~processed], x[~processed])
    if module.training:
        assert torch.equal(y[~processed], x[~processed])
        for ours, key in (("balance", "balance"), ("distil", "distill")):
            assert routing.losses[ours].item() == pytest.approx(data[f"{mode}/{key}"].double().sum().item() / len(x), rel=1e-5)


V, D, E = 30, 8, 4


def router(**options):
    torch.manual_seed(0)
    module = StableMoE(D, E, vocabulary=V, **{"stage1_steps": 3, **options}).double()
    return module, RouterInputs(torch.randn(50, D, dtype=torch.float64), token_ids=torch.randint(V, (50,)))


def test_losses_token_by_token():
    module, inputs = router(capacity_factor=0.5)
    routing = module(inputs)
    s = (inputs.tokens @ module.embedding.T).detach()
    load = torch.bincount(s.argmax(-1), minlength=E)
    balance = distil = 0.0
    for t, word in enumerate(inputs.token_ids):
        a = s[t].argmax().item()
        balance += (load[a].item() - 50 / E) / (50 / E) / (1 + np.exp(-s[t, a].item()))
        guess = (module.distilled_embedding @ module.distilled_words[word]).detach().numpy()
        distil += np.log(np.exp(guess).sum()) - guess[a]
    assert routing.dropped > 0
    assert routing.losses["balance"].item() == pytest.approx(balance / 50, abs=1e-12)
    assert routing.losses["distil"].item() == pytest.approx(distil / 50, abs=1e-12)
    for key, loss in module.eval()(inputs).losses.items():
        assert loss.item() == routing.losses[key].item()  # evaluation reports what stage 1 would


def test_equal_loads_cost_nothing_and_collapse_costs_most():
    module, _ = router()
    with torch.no_grad():
        module.embedding.copy_(torch.eye(E, D))
    even = RouterInputs(5.0 * torch.eye(D, dtype=torch.float64)[[0, 1, 2, 3]], token_ids=torch.arange(4))
    assert module(even).losses["balance"].item() == pytest.approx(0, abs=1e-12)
    collapsed = RouterInputs(50.0 * torch.eye(D, dtype=torch.float64)[[0] * 4], token_ids=torch.arange(4))
    assert module(collapsed).losses["balance"].item() == pytest.approx(E - 1)
    certain = torch.full((E, module.distilled_embedding.shape[1]), 0.0, dtype=torch.float64)
    with torch.no_grad():
        module.distilled_embedding.copy_(certain)
    assert module(even).losses["distil"].item() == pytest.approx(np.log(E))


def gradients(module, value):
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.abs().max() > 0}


def test_who_learns():
    module, inputs = router()
    routing = module(inputs)
    assert gradients(module, routing.weight.sum()) == {"embedding"}
    assert gradients(module, routing.losses["balance"]) == {"embedding"}
    assert gradients(module, routing.losses["distil"]) == {"distilled_words", "distilled_embedding"}
    module.steps.fill_(3)
    routing = module(inputs)
    assert gradients(module, routing.weight.sum()) == {"embedding"}
    assert [(routing.losses[name].item(), routing.losses[name].requires_grad) for name in ("balance", "distil")] == [(0, False)] * 2


def test_stages_and_evaluation_route_by_different_routers():
    module, inputs = router(capacity_factor=None)
    token = (inputs.tokens @ module.embedding.T).argmax(-1)
    word = (module.distilled_words[inputs.token_ids] @ module.distilled_embedding.T).argmax(-1)
    assert not torch.equal(token, word)
    for step in range(5):
        assert torch.equal(module.train()(inputs).expert, token if step < 3 else word)
        routing = module.eval()(inputs)
        assert torch.equal(routing.expert, word)
        torch.testing.assert_close(routing.weight, (inputs.tokens * module.embedding[word]).sum(-1).sigmoid())
        module.after_optimizer_step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_no_optimiser_moves_the_distilled_router_in_stage_2(set_to_none):
    module, inputs = router()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(6):
        before = copy.deepcopy(dict(module.named_parameters()))
        routing = module(inputs)
        optimiser.zero_grad(set_to_none=set_to_none)
        (routing.weight.sum() + sum(routing.losses.values())).backward()
        optimiser.step()
        module.after_optimizer_step()
        moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved == ({"embedding", "distilled_words", "distilled_embedding"} if step < 3 else {"embedding"})


def test_the_distilled_router_learns_a_routing_that_follows_the_words():
    torch.manual_seed(0)
    module, words = StableMoE(D, E, vocabulary=V), torch.randn(V, D)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    ids = torch.arange(V)
    inputs = RouterInputs(words, token_ids=ids)
    for _ in range(60):
        optimiser.zero_grad()
        module(inputs).losses["distil"].backward()
        optimiser.step()
    assert torch.equal(module.eval()(inputs).expert, (words @ module.embedding.T).argmax(-1))


def test_a_resumed_run_is_in_the_same_stage():
    module, inputs = router()
    for _ in range(3):
        module.after_optimizer_step()
    other, _ = router()
    other.load_state_dict(module.state_dict())
    assert other.stage2
    assert torch.equal(other(inputs).expert, module(inputs).expert)


@pytest.mark.parametrize(("factor", "tokens", "capacity"), [(2.0, 50, 25), (1.25, 21, 6), (0.1, 4, 1), (None, 50, 50)])
def test_capacity_keeps_the_first_tokens_of_an_expert_in_training(factor, tokens, capacity):
    module, _ = router(capacity_factor=factor)
    same = RouterInputs(torch.ones(tokens, D, dtype=torch.float64), token_ids=torch.zeros(tokens, dtype=torch.long))
    routing = module(same)
    assert routing.token.tolist() == list(range(min(capacity, tokens)))
    assert routing.dropped == tokens - len(routing.token)
    assert module.eval()(same).dropped == 0


@pytest.mark.parametrize("training", [True, False])
def test_no_tokens(training):
    module, _ = router()
    routing = module.train(training)(RouterInputs(torch.zeros(0, D, dtype=torch.float64), token_ids=torch.zeros(0, dtype=torch.long)))
    assert len(routing.expert) == 0
    assert [loss.item() for loss in routing.losses.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage1_steps": 0}, "stage1_steps 0"),
        ({"capacity_factor": 0.0}, "capacity_factor 0.0"),
        ({"dim": 0}, "dim 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StableMoE(D, E, vocabulary=V, **options)
    with pytest.raises(ValueError, match="vocabulary 0"):
        StableMoE(D, E, vocabulary=0)


def test_looking_a_word_up_costs_no_operations():
    assert StableMoE(8, 4, vocabulary=1000, dim=5).flops_per_token == 2 * (4 * 8 + 4 * 5)
