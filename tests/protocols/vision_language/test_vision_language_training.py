"""Pre-training and fine-tuning on images and words: what they measure and leave, and that a killed run ends in the same bytes."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from handmade import CODEBOOK, MODEL, WORDS, write
from safetensors.torch import load_file
from torch.nn import functional

from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import read_json, read_jsonl, read_object, write_json, write_text
from moebench.models.vision_language import CLASS, MASK, PAD, SEPARATOR
from moebench.pipeline.train import train
from moebench.protocol import Protocol
from moebench.protocols.vision_language.batches import MaskedRows, validation_batches
from moebench.protocols.vision_language.config import Captioning, Pretraining
from moebench.protocols.vision_language.finetuning import Classification, Description, described
from moebench.protocols.vision_language.pretraining import MaskedModelling, words_head
from moebench.protocols.vision_language.training import job
from moebench.training.decay import decaying

V, K, T = len(WORDS), len(CODEBOOK), 4
METHODS = {
    "dense": {"label": "Dense", "layer": "dense"},
    "hash": {"label": "Hash", "layer": "moe", "router": "hash"},
    "heads": {
        "label": "Heads",
        "layer": "moe",
        "router": "mhmoe_topk",
        "options": {"k": 2, "capacity_factor": 0.5},
        "losses": {"balance": 0.01},
        "multi_head": {"heads": 2},
    },
}
SETTING = {
    "seeds": [0],
    "baseline": "dense",
    "model": MODEL,
    "experts": 4,
    "sparse_every": 2,
    "predict_batch": 5,
    "pretrain": {"steps": 30, "batch": 12, "rows": {"pairs": 6, "images": 3, "texts": 3}, "rate": 0.01, "checkpoint_every": 8},
    "vqa": {"steps": 60, "batch": 10, "rate": 0.01, "checkpoint_every": 20},
    "nlvr": {"steps": 12, "batch": 8, "rate": 0.01},
    "caption": {"steps": 60, "batch": 10, "rate": 0.01},
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """An experiment of this protocol whose data are there already."""
    paper = Experiment(tmp_path_factory.mktemp("paper"), "small", "smoke")
    paper.protocol = Protocol("vision_language")
    write_text(paper.setting_file, yaml.safe_dump(SETTING))
    for name, method in METHODS.items():
        write_text(paper.method_file(name), yaml.safe_dump(method))
    write(paper.prepared)
    for part in ("pretrain", "vqa", "nlvr", "caption"):
        write_json(paper.part_file(part), {})
    for run in paper.runs:
        write_json(paper.plan_file(run), {"config": paper.protocol.runs.plan(paper, run).config})
    return paper


def run_of(paper, method, task=""):
    return next(run for run in paper.runs if (run.method, run.training_set) == (method, task))


@pytest.fixture(scope="module")
def finished(paper):
    """The same with all runs done that are needed."""
    for run in paper.runs:
        if run.stage == "pretrain" or run.method == "heads":
            train(paper, run)
    return paper


def built(paper, run):
    """A job whose module has the weights that its run ended with, or started with."""
    made = job(paper, run, read_object(paper.plan_file(run), config=dict)["config"])
    if run.stage == "pretrain":
        weights = load_file(paper.folder(run) / "model.safetensors")
        made.encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("words_head.")})
        heads = {name.removeprefix("words_head."): value for name, value in weights.items() if name.startswith("words_head.")}
        made.module.words_head.load_state_dict(heads)
    made.module.eval()
    return made


def measures(paper, method):
    rows = read_json(paper.folder(run_of(paper, method)) / "measures.json")
    return {(row["task"], row["language"], row["metric"]): (row["value"], row["n"]) for row in rows}


@torch.no_grad()
def test_masked_words_are_measured_as_by_a_direct_computation(finished):
    made = built(finished, run_of(finished, "heads"))
    rows = MaskedRows(finished.prepared / "pretrain" / "validation", 2)
    (batch,) = validation_batches(rows, made.optimisation, V, 20)
    found = measures(finished, "heads")
    nll, right = {"text": [], "pair_text": []}, {"text": [], "pair_text": []}
    words, patches = batch["words"], batch["patches"]
    place = 0
    for row in range(len(words)):
        length, apart = int((words[row] != PAD).sum()), bool(batch["apart"][row])
        given = {"hidden_BT": batch["hidden"][[row]], "visual_BT": batch["visual"][[row]]}
        alone = made.encoder(None, words[[row], :length]) if apart else made.encoder(patches[[row]], words[[row], :length], **given)
        states = alone[0][0] if apart else alone[0][0, 1 + T :]
        for at in batch["chosen"][row].nonzero()[:, 0].tolist():
            log_probs = made.module.words_head(states[at], made.encoder.words.weight).log_softmax(-1)
            target = batch["targets"][place]
            nll["text" if apart else "pair_text"].append(-log_probs[target].item())
            right["text" if apart else "pair_text"].append(log_probs.argmax() == target)
            place += 1
    for kind in nll:
        assert found["masked", kind, "nll"] == (pytest.approx(np.mean(nll[kind]), rel=1e-5), len(nll[kind]))
        assert found["masked", kind, "accuracy"][0] == pytest.approx(100 * np.mean(right[kind]))
    kinds = ("text", "image", "pair_text", "pair_image")
    total = sum(found["masked", kind, "nll"][0] * found["masked", kind, "nll"][1] for kind in kinds)
    n = sum(found["masked", kind, "nll"][1] for kind in kinds)
    assert found["masked", "all", "nll"] == (pytest.approx(total / n), n)
    assert found["masked", "all", "perplexity"][0] == pytest.approx(math.exp(total / n))
    assert found["masked", "image", "nll"][1] == 7 * 2  # 40 % of four patches, rounded
    assert found["masked", "image", "nll"][0] < math.log(K)


def test_the_use_of_experts_is_that_of_validation_and_nothing_is_dropped_there(finished):
    found = measures(finished, "heads")
    assert found["routing", "all", "experts_per_token"][0] == 4  # h · k; a capacity of half would have left two
    experts = read_object(finished.plan_file(run_of(finished, "heads")), config=dict)["config"]["sizes"]["experts"]
    shares = [found["routing", f"layer02.expert{expert:03d}", "load"][0] for expert in range(1, experts + 1)]
    assert sum(shares) == pytest.approx(1)
    assert found["routing", "layer02", "load_entropy"][0] == pytest.approx(-sum(share * math.log(share) for share in shares if share))
    rows = MaskedRows(finished.prepared / "pretrain" / "validation", 2)
    batches = validation_batches(rows, Pretraining.model_validate(SETTING["pretrain"]), V, 5)
    assert {n for (task, _, _), (_, n) in found.items() if task == "routing"} == {sum(int(batch["mask"].sum()) for batch in batches)}
    assert {key for key in measures(finished, "dense") if key[0] == "routing"} == {("routing", "all", "macs_per_token")}
    visual = measures(finished, "hash")
    assert visual["routing", "all", "router_entropy"][0] == 0


def test_a_table_of_ids_is_balanced_over_words_and_visual_tokens(finished):
    weights = load_file(finished.folder(run_of(finished, "hash")) / "model.safetensors")
    table = next(value for name, value in weights.items() if name.endswith("router.table"))
    counts = torch.from_numpy(MaskedRows(finished.prepared / "pretrain" / "train", 2).counts(V, K))
    load = torch.bincount(table, counts, minlength=4)
    assert len(table) == V + K
    assert load.max() <= max(counts.max(), load.sum() / 4 * 1.2)


def test_costs_are_left(finished):
    costs = read_json(finished.folder(run_of(finished, "heads", "vqa")) / "costs.json")
    assert costs["active_parameters"] < costs["parameters"]
    assert costs["flops_per_token"] > 0


# ------------------------------------------------------------------------------------------------------------- fine-tuning


@torch.no_grad()
def test_answers_come_from_the_class_token_of_the_image(finished):
    run = run_of(finished, "heads", "vqa")
    rows, found = read_jsonl(finished.prepared / "vqa" / "test" / "rows.jsonl"), predictions(finished, "vqa")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert {row["answer"] for row in found} <= {"no", "yes"}
    for row, given in zip(found, rows, strict=True):
        assert 0.5 <= row["probability"] <= 1
        right = row["answer"] == given["answers"][0]
        assert row["nll"] == pytest.approx(-math.log(row["probability"] if right else 1 - row["probability"]), rel=1e-3, abs=1e-6)
    module = built(finished, run).module
    assert isinstance(module, Classification)
    given = batch_of(finished, run, 3)
    states = module.encoder(given["patches"], given["words"])[0]
    torch.testing.assert_close(module.scores(given)[0], module.head(states[:, 0]))


@torch.no_grad()
def test_statements_are_judged_in_two_passes_from_four_class_tokens(finished):
    run = run_of(finished, "heads", "nlvr")
    found = predictions(finished, "nlvr")
    for row in found:
        assert (row["label"] == "true") == (row["probability_true"] > 0.5)
    module, given = built(finished, run).module, batch_of(finished, run, 3)
    for example in range(3):
        passes = [module.encoder(given["patches"][[row]], given["words"][[row]])[0][0] for row in (2 * example, 2 * example + 1)]
        states = torch.cat([states[place] for states in passes for place in (0, 1 + T)])
        torch.testing.assert_close(module.scores(given)[0][example], module.head(states[None])[0], rtol=1e-4, atol=1e-5)


def predictions(paper, task):
    return read_jsonl(paper.folder(run_of(paper, "heads", task)) / "predictions" / f"{task}.jsonl")


def batch_of(paper, run, size):
    made = built(paper, run)
    return made._read("test", learned=False)[0].batch(np.arange(size))


def test_what_there_is_to_learn_is_learned(finished):
    """Are most corners bright? The image says so, and the most frequent answer is right less often."""
    rows = read_jsonl(finished.prepared / "vqa" / "test" / "rows.jsonl")
    answers = [row["answers"][0] for row in rows]
    right = np.mean([row["answer"] == answer for row, answer in zip(predictions(finished, "vqa"), answers, strict=True)])
    assert right >= 10 / 11 > Counter(answers).most_common(1)[0][1] / 11
    rows = read_jsonl(finished.prepared / "caption" / "test" / "rows.jsonl")
    exact = [row["caption"] in each["captions"] for row, each in zip(predictions(finished, "caption"), rows, strict=True)]
    assert np.mean(exact) > 0.7


@torch.no_grad()
def test_a_caption_is_what_is_likeliest_word_after_word(finished):
    run = run_of(finished, "heads", "caption")
    module = built(finished, run).module
    module.load_state_dict(module.state_dict())
    given = batch_of(finished, run, 11)
    found = described(module.encoder, module.words_head, given["patches"], given["visual"])
    assert found.shape[1] <= MODEL["words"] - 1
    for row in range(11):
        words = [CLASS]
        while len(words) < MODEL["words"] and words[-1] != SEPARATOR:
            states = module.encoder(given["patches"][[row]], torch.tensor([[*words, MASK]]), causal=True)[0]
            scores = module.words_head(states[0, -1], module.encoder.words.weight).tolist()
            words.append(max((score, -word) for word, score in enumerate(scores) if word not in (PAD, CLASS, MASK))[1] * -1)
        expected = [word for word in words[1:] if word != SEPARATOR]
        assert found[row].tolist() == expected + [PAD] * (found.shape[1] - len(expected))


def test_masked_words_of_a_caption_do_not_see_what_comes_after(finished):
    run = run_of(finished, "heads", "caption")
    made = built(finished, run)
    assert isinstance(made.module, Description)
    batch = made.batches(0, 1)(3)
    logits, targets, _ = made.module.outputs(batch)
    assert torch.equal(targets, batch["targets"])
    later = batch["words"].clone()
    later[:, -1] = torch.where(later[:, -1] == PAD, PAD, 7)
    before_last = torch.arange(later.shape[1]).expand_as(later)[batch["chosen"]] < later.shape[1] - 1
    changed = made.module.outputs(batch | {"words": later})[0]
    torch.testing.assert_close(logits[before_last], changed[before_last], rtol=1e-4, atol=1e-5)


def test_fine_tuning_starts_from_the_pre_trained_encoder_and_captions_from_its_head(finished):
    weights = load_file(finished.folder(run_of(finished, "heads")) / "model.safetensors")
    for task in ("vqa", "caption"):
        made = built(finished, run_of(finished, "heads", task))
        for name, value in made.encoder.state_dict().items():
            assert torch.equal(value, weights[name]), name
    for name, value in made.module.words_head.state_dict().items():
        assert torch.equal(value, weights[f"words_head.{name}"])
    torch.manual_seed(5)
    assert not torch.equal(words_head(made.encoder).dense.weight, made.module.words_head.dense.weight)


@pytest.mark.parametrize(("module", "method", "task", "stop"), [(MaskedModelling, "heads", "", 19), (Classification, "heads", "vqa", 47)])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(finished, tmp_path, monkeypatch, module, method, task, stop):
    run = run_of(finished, method, task)
    folder, kept = finished.folder(run), tmp_path / "kept"
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    step = module.training_step

    def dying(self, batch, index):
        if self.global_step == stop:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(module, "training_step", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit, MoebenchError)):
            train(finished, run)
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    train(finished, run)
    for path in (
        path.relative_to(kept) for path in kept.rglob("*") if path.suffix in (".safetensors", ".jsonl") or path.stem == "measures"
    ):
        assert (folder / path).read_bytes() == (kept / path).read_bytes(), path


# --------------------------------------------------------------------------------------------------------------- the steps


def test_questions_are_trained_to_soft_scores(paper):
    torch.manual_seed(0)
    encoder = job(paper, run_of(paper, "dense"), read_object(paper.plan_file(run_of(paper, "dense")), config=dict)["config"]).encoder
    module = Classification(encoder, 1, 3, Captioning(steps=1, batch=1, rate=1.0, head_rate=5.0), {}, 0).eval()
    batch = {
        "patches": torch.rand(2, T, 4),
        "words": torch.tensor([[1, 5, 2], [1, 6, 2]]),
        "mask": torch.ones(2, 1 + T + 3, dtype=torch.bool),
    }
    batch |= {"visual": torch.zeros(2, T, dtype=torch.long), "targets": torch.tensor([[0.0, 1.0, 0.0], [0.75, 0.0, 0.25]])}
    loss = module.part_loss(batch | {"weight": torch.ones(1)})[0]
    log_probs = module.scores(batch)[0].log_softmax(-1)
    torch.testing.assert_close(loss, -(log_probs[0, 1] + 0.75 * log_probs[1, 0] + 0.25 * log_probs[1, 2]) / 2)
    rates = {group["lr"] for group in module.configure_optimizers()["optimizer"].param_groups}
    assert rates == {1.0, 5.0}


@pytest.mark.parametrize(("decay", "floor"), [("cosine", 0.064), ("linear", 0.1)])
def test_the_rate_rises_linearly_and_falls_as_asked(decay, floor):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = decaying(optimiser, 100, 0.2, decay, floor)
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"] / 0.5)
        optimiser.step()
        schedule.step()
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    left = [(100 - step) / 80 for step in range(20, 100)]
    shape = left if decay == "linear" else [(1 + math.cos(math.pi * (1 - share))) / 2 for share in left]
    assert rates[20:] == pytest.approx([floor + (1 - floor) * value for value in shape])


def test_the_loss_adds_what_the_layers_report(finished):
    made = built(finished, run_of(finished, "heads"))
    batch = made.batches(0, 1)(0)
    loss, (reports,) = made.module.part_loss(batch)
    made.module.coefficients = {}
    plain, _ = made.module.part_loss(batch)
    assert len(reports) == 1
    torch.testing.assert_close(loss, plain + 0.01 * reports[0].losses["balance"])
    words, patches, _ = made.module.logits(batch)
    assert words.shape == (len(batch["targets"]), V)
    assert functional.cross_entropy(patches, batch["visual"][batch["hidden"]]).isfinite()
