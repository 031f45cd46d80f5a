"""A training run: what it learns from, that it can be interrupted anywhere, and that damage is noticed."""

import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from moebench.errors import MoebenchError
from moebench.models import shapes
from moebench.models.build import build_encoder
from moebench.models.flops import flops_per_token
from moebench.protocols.transfer.config import Pretraining
from moebench.protocols.transfer.pretraining import (
    MaskedLMBatches,
    PretrainingJob,
    PretrainingModule,
    mask_tokens,
    validate,
    validation_batches,
)
from moebench.training import trainer as trainer_module
from moebench.training.module import symmetric_divergence
from moebench.training.trainer import close_run, fit, is_finished, make_trainer, open_run

TOKENIZER = SimpleNamespace(bos=0, pad=1, eos=2, unk=3, mask=4, size=60)
SCALE = {"precision": "fp32", "devices": 1, "nodes": 1, "threads": 1}
SHAPE = shapes.Encoder(layers=2, width=16, heads=2, inner=16, positions="relative", dropout=0.1)
SPARSE = shapes.Sparse(experts=4, sublayers=2, inner=8)
METHODS = {
    "dense": {"layer": "none"},
    "xmoe": {"layer": "moe", "router": "xmoe", "options": {"gate": "softmax", "temperature": 0.3}},
    "random": {"layer": "moe", "router": "random", "options": {"granularity": "token"}},
}
LOSSES = {"dense": {}, "xmoe": {"balance": 0.01}, "random": {}}


def optimisation(steps=12, **changes):
    options = {"batch": 8, "rate": 3e-3, "mask": 0.3, "translation": 0.25, "checkpoint_every": 5 if steps < 20 else steps}
    return Pretraining(steps=steps, **(options | changes))


def model(method, options):
    torch.manual_seed(0)
    sparse = SPARSE if METHODS[method]["layer"] == "moe" else None
    return PretrainingModule(build_encoder(SHAPE, sparse, METHODS[method], TOKENIZER.size), options, LOSSES[method], 0.0, seed=0)


def run(folder, corpus, method, stop_at=None, steps=12, **changes):
    """Train in ``folder``, raising KeyError at step ``stop_at``; returns the module and its trainer."""
    options = optimisation(steps, **changes)
    open_run(folder, "key")
    module = model(method, options)
    trainer, _ = make_trainer(folder, options, SCALE)

    def batches(part, parts):
        whole = MaskedLMBatches(corpus, TOKENIZER, options, 0, part, parts)

        def make(step):
            if step == stop_at:
                raise KeyError(step)
            return whole(step)

        return make

    fit(trainer, module, batches, folder)
    return module, trainer


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, corpus, method):
    whole, _ = run(tmp_path / "whole", corpus, method)
    with pytest.raises(KeyError):
        run(tmp_path / "broken", corpus, method, stop_at=8)
    resumed, _ = run(tmp_path / "broken", corpus, method, stop_at=4)  # step 4 is behind the checkpoint: it is not asked for again
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_training_learns_and_validation_is_the_same_each_time(tmp_path, corpus):
    module, trainer = run(tmp_path / "run", corpus, "xmoe", steps=800)
    measures = validate(trainer, module, SPARSE, corpus, TOKENIZER, 0.3)
    assert measures == validate(trainer, module, SPARSE, corpus, TOKENIZER, 0.3)
    perplexity = {row["language"]: row["value"] for row in measures if row["metric"] == "perplexity"}
    assert set(perplexity) == {"aa", "bb"}
    assert max(perplexity.values()) < 6  # ten pieces are equally frequent
    value = {row["metric"]: row["value"] for row in measures}
    assert value["experts_per_token"] == 1
    assert value["dropped_share"] == 0
    assert 0 < value["router_entropy"] < np.log(4)
    assert value["flops_per_token"] == flops_per_token(module.encoder, SPARSE, 16, 1.0)
    assert 0 <= value["max_violation"] < 3
    tokens, rows, _ = module.usage.tolist()
    assert tokens == rows > 0
    assert module.rows_per_token() == 1


def test_two_forward_loss_is_thors(tmp_path, corpus):
    """CE of both passes + α · ½ Σ (p − q)(ln p − ln q), with two different random routings of one batch."""
    module, _ = run(tmp_path / "run", corpus, "random", steps=2)
    module.consistency = 5.0
    batch = MaskedLMBatches(corpus, TOKENIZER, optimisation(), 0)(0)
    module.train()
    torch.manual_seed(4)
    loss = module.training_step(batch, 0).item()
    torch.manual_seed(4)
    first, second = (module.outputs(batch)[0].detach().double().softmax(-1).numpy() for _ in range(2))
    targets = batch["targets"].numpy()
    entropies = [-np.log(probs[np.arange(len(targets)), targets]).mean() for probs in (first, second)]
    divergence = 0.5 * (rel_entr(first, second) + rel_entr(second, first)).sum(1).mean()
    assert divergence > 0
    assert loss == pytest.approx(sum(entropies) + 5 * divergence, rel=1e-5)


def test_the_divergence_ignores_classes_that_are_impossible_in_both():
    one, other = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True), torch.tensor([[1.0, 0.0, -torch.inf]])
    divergence = symmetric_divergence(one, other)
    divergence.backward()
    assert divergence.item() == pytest.approx((np.e - 1) / (np.e + 1), rel=1e-6)
    assert one.grad.isfinite().all()


def test_held_norm_survives_the_optimiser(tmp_path, corpus):
    module, _ = run(tmp_path / "run", corpus, "xmoe")
    embeddings = [value for value in module.encoder.sparse.router.parameters() if value.ndim == 2 and value.shape[0] == 4]
    assert any(torch.allclose(value.norm(dim=1), torch.full((4,), 0.1), atol=1e-6) for value in embeddings)


def test_a_damaged_checkpoint_is_named_moved_aside_and_the_next_run_continues(tmp_path, corpus):
    with pytest.raises(KeyError):
        run(tmp_path / "run", corpus, "dense", stop_at=8)
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(MoebenchError, match=r"last\.ckpt: damaged checkpoint"):
        run(tmp_path / "run", corpus, "dense")
    whole, _ = run(tmp_path / "whole", corpus, "dense")
    again, _ = run(tmp_path / "run", corpus, "dense")
    assert all(torch.equal(one, other) for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_checkpoint_that_is_cut_while_it_is_written_leaves_the_one_before(tmp_path, corpus, monkeypatch):
    """It is written where it will be: a temporary folder may be another file system, from which it would be copied."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KeyError):
        run(tmp_path / "run", corpus, "dense", stop_at=8)
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = saved.read_bytes()

    def cut(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(MoebenchError, match=r"last\.ckpt: cannot be written: No space left on device"):
        run(tmp_path / "run", corpus, "dense")
    assert saved.read_bytes() == whole


@pytest.mark.parametrize("wrong", ["foreign", "shapes", "list"])
def test_a_checkpoint_that_does_not_fit_is_moved_aside(tmp_path, corpus, wrong):
    with pytest.raises(KeyError):
        run(tmp_path / "run", corpus, "dense", stop_at=8)
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(saved, weights_only=True)
    if wrong == "shapes":
        name = next(name for name, value in state["state_dict"].items() if value.ndim == 2)
        state["state_dict"][name] = state["state_dict"][name][:1]
    torch.save({"foreign": {"epoch": 1}, "shapes": state, "list": [1]}[wrong], saved)
    with pytest.raises(MoebenchError, match=r"last\.ckpt: damaged checkpoint .* moved to last\.damaged: run again to start this run anew"):
        run(tmp_path / "run", corpus, "dense")
    whole, _ = run(tmp_path / "whole", corpus, "dense")
    again, _ = run(tmp_path / "run", corpus, "dense")
    assert all(torch.equal(one, other) for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_run_of_another_key_is_not_continued(tmp_path):
    folder = tmp_path / "run"
    open_run(folder, "one")
    (folder / "kept").touch()
    open_run(folder, "one")
    assert (folder / "kept").exists()
    open_run(folder, "two")
    assert not (folder / "kept").exists()
    (folder / ".costs.json.1.tmp").touch()  # a killed process was writing it
    close_run(folder, "two")
    assert [path.name for path in folder.iterdir()] == ["finished.json"]


@pytest.mark.parametrize("content", ["{}", "[]", '"two"', '{"key', "\0"])
def test_what_a_run_says_of_itself_and_does_not_fit_counts_as_another_run(tmp_path, content):
    (tmp_path / "kept").touch()
    (tmp_path / "run.json").write_text(content)
    open_run(tmp_path, "one")
    assert not (tmp_path / "kept").exists()
    assert (tmp_path / "run.json").read_text() == '{\n "key": "one"\n}\n'
    (tmp_path / "finished.json").write_text(content)
    assert not is_finished(tmp_path, "one")


def test_a_finished_run_is_known_by_its_key_and_its_files(tmp_path):
    open_run(tmp_path, "one")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "en.jsonl").write_text("{}")
    assert not is_finished(tmp_path, "one")
    close_run(tmp_path, "one")
    assert is_finished(tmp_path, "one")
    assert not is_finished(tmp_path, "two")
    (tmp_path / "predictions" / "en.jsonl").write_text("{ }")
    assert not is_finished(tmp_path, "one")
    (tmp_path / "predictions" / "en.jsonl").unlink()
    assert not is_finished(tmp_path, "one")


def test_masking_shares_and_special_pieces():
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 60, (400, 100))
    corrupted, chosen = mask_tokens(ids, TOKENIZER, 0.2, generator)
    plain = ids > 4
    assert not chosen[~plain].any()
    assert (corrupted == ids)[~chosen].all()
    assert chosen[plain].mean() == pytest.approx(0.2, abs=0.01)
    assert (corrupted[chosen] == TOKENIZER.mask).mean() == pytest.approx(0.8, abs=0.02)
    assert (corrupted[chosen] == ids[chosen]).mean() == pytest.approx(0.1 + 0.1 / 55, abs=0.02)


@pytest.mark.parametrize("parts", [2, 20])
def test_parts_of_a_batch_are_its_rows_and_masks_once_and_some_may_be_empty(corpus, parts):
    whole = MaskedLMBatches(corpus, TOKENIZER, optimisation(), seed=3)(7)
    made = [MaskedLMBatches(corpus, TOKENIZER, optimisation(), 3, part, parts)(7) for part in range(parts)]

    def rows(batch):
        restored = batch["ids"].clone()
        restored[batch["chosen"]] = batch["targets"]
        return [
            (ids[mask].tolist(), chosen[mask].tolist(), true[mask].tolist())
            for ids, chosen, true, mask in zip(batch["ids"], batch["chosen"], restored, batch["mask"], strict=True)
        ]

    assert sorted(row for batch in made for row in rows(batch)) == sorted(rows(whole))
    assert whole["weight"].tolist() == [1]
    shares = [len(batch["targets"]) / len(whole["targets"]) for batch in made]
    assert [batch["weight"].item() for batch in made] == pytest.approx([parts * share for share in shares], rel=1e-6)


def test_the_loss_of_an_undivided_batch_is_the_mean_cross_entropy_to_the_bit(corpus):
    options = optimisation()
    batch = MaskedLMBatches(corpus, TOKENIZER, options, 0)(0)
    losses, gradients = [], []
    for plain in (True, False):
        module = model("xmoe", options).train()
        torch.manual_seed(4)
        if plain:
            logits, targets, (aux,) = module.outputs(batch)
            loss = torch.nn.functional.cross_entropy(logits, targets) + 0.01 * aux.losses["balance"]
        else:
            loss = module.training_step(batch, 0)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([each.grad for each in module.parameters() if each.grad is not None])
    assert torch.equal(*losses)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("consistency", [0.0, 5.0])
def test_a_batch_without_a_masked_piece_adds_nothing(corpus, consistency):
    options = optimisation(mask=1e-9)
    module = model("xmoe", options)
    module.coefficients, module.consistency = {}, consistency
    loss = module.training_step(MaskedLMBatches(corpus, TOKENIZER, options, 0)(0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(each.grad is None or not each.grad.any() for each in module.parameters())


def test_validation_rows_without_a_masked_piece_are_named_before_the_training(corpus):
    with pytest.raises(MoebenchError, match=r"corpus: with pretrain\.mask 1e-09 no piece of the 5 validation rows of 'aa' is masked"):
        validation_batches(corpus, TOKENIZER, 1e-9)
    job = SimpleNamespace(optimisation=optimisation(mask=1e-9), corpus=corpus, tokenizer=TOKENIZER)
    with pytest.raises(MoebenchError, match="no perplexity"):
        PretrainingJob.before(job, None, None)


def test_a_validation_batch_without_a_masked_piece_beside_others_adds_nothing(corpus):
    module = model("xmoe", optimisation()).eval()
    found = [module.predict_step(batch, 0) for _, batch in validation_batches(corpus, TOKENIZER, 0.05, batch=1)]
    assert {each["nll"] for each in found if not each["n"]} == {0}
    assert all(each["nll"] > 0 for each in found if each["n"])


@pytest.mark.parametrize("content", ["", "truncated"])
def test_a_damaged_corpus_is_named(corpus, content):
    path = corpus / "train.npy"
    path.write_bytes(path.read_bytes()[:60] if content else b"")
    with pytest.raises(MoebenchError, match=r"train\.npy"):
        MaskedLMBatches(corpus, TOKENIZER, optimisation(), seed=0)


def test_bf16_is_refused_where_the_processor_cannot_multiply_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trainer_module, "bf16_is_fast", lambda: False)
    with pytest.raises(MoebenchError, match=r"precision: bf16, but .* has no instructions for it.*use fp32"):
        make_trainer(tmp_path, optimisation(1), SCALE | {"precision": "bf16"})
    monkeypatch.setattr(trainer_module, "bf16_is_fast", lambda: True)
    assert make_trainer(tmp_path, optimisation(1), SCALE | {"precision": "bf16"})[0].precision == "bf16-mixed"
