"""Pre-training and examination of decoders: what they learn from, what they leave, and that a killed run ends in the same bytes."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from moebench.data import lm_tokenizer
from moebench.data.packing import IGNORED
from moebench.errors import MoebenchError
from moebench.experiment import Run
from moebench.files import read_json, read_jsonl, write_json
from moebench.models.build import load_weights
from moebench.pipeline.evaluate import evaluate
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.pipeline.tabulate import tabulate
from moebench.pipeline.train import train
from moebench.protocols.language_model.batches import batch_of, open_rows
from moebench.protocols.language_model.build import build
from moebench.protocols.language_model.config import Pretraining
from moebench.protocols.language_model.examination import bytes_of
from moebench.protocols.language_model.pretraining import LanguageModel
from moebench.training.usage import margins


def make_plan(paper):
    for name, value in planned(paper).items():
        write_json(paper.plan_folder / f"{name}.json", value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_paper):
    """The small paper with everything run, seed 0, and with a task in a second constructed language."""
    second = ("data", "texts", "second", {"source": "constructed", "language": 1})
    paper = write_paper(tmp_path_factory.mktemp("paper"), second, ("data", "tasks", "entailment_second", 0))
    make_plan(paper)
    prepare(paper)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(paper.root)
        paper.baselines_folder.mkdir(parents=True)
        paper.protocol.baselines.baselines(paper, paper.baselines_folder)
        for run in paper.runs:
            train(paper, run)
    return paper


def test_examined_likelihood_is_that_of_a_direct_computation(finished):
    run = Run("finetune", "aoe", 0, "examination", "aoe-0", "examination")
    plan = json.loads(finished.plan_file(run).read_text())["config"]
    pieces = lm_tokenizer.load(finished.prepared / "tokenizer")
    decoder = build(plan, pieces.size).eval()
    load_weights(decoder, finished.start(run))
    rows = open_rows(finished.prepared / "validation", "pivot")
    nll = tokens = size = 0
    with torch.no_grad():
        for row in rows[:]:
            starts = [0, *(np.flatnonzero(row[1:] == pieces.bos) + 1), len(row)]
            for begin, end in itertools.pairwise(starts):  # every document by itself
                document = torch.from_numpy(row[begin:end])[None]
                logits = decoder.logits(decoder(document)[0])[0].log_softmax(-1)
                nll -= logits[:-1].gather(1, document[0, 1:, None]).double().sum().item()
                tokens += end - begin - 1
                size += len(pieces.decode(row[begin + 1 : end].tolist()).encode())
    measures = read_json(finished.folder(run) / "measures.json")
    found = {row["metric"]: row for row in measures if (row["task"], row["language"]) == ("text", "pivot")}
    assert found["nll"]["value"] == pytest.approx(nll / tokens, rel=1e-5)
    assert found["nll"]["n"] == tokens
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert found["bits_per_byte"]["value"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)


def test_bytes_are_those_of_the_text(finished):
    pieces = lm_tokenizer.load(finished.prepared / "tokenizer")
    text = "näïve 漢字 words\nand lines"
    ids = np.array([[pieces.bos, *pieces.encode(text), pieces.eos]])
    targets = batch_of(ids, pieces)["targets"].numpy()
    assert bytes_of(targets, pieces) == len(text.encode())
    assert bytes_of(np.full((2, 3), IGNORED), pieces) == 0


def test_the_use_of_experts_is_counted_over_all_held_out_text(finished):
    run = Run("finetune", "moe", 0, "examination", "moe-0", "examination")
    rows = {
        (row["language"], row["metric"]): row["value"]
        for row in read_json(finished.folder(run) / "measures.json")
        if row["task"] == "routing"
    }
    for layer in ("layer01", "layer02"):
        shares = [rows[f"{layer}.expert{expert:03d}", "load"] for expert in (1, 2, 3, 4)]
        assert sum(shares) == pytest.approx(1)
        assert rows[layer, "load_entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares if share))
        assert rows[layer, "idle"] == pytest.approx(max(shares) - min(shares))
    assert rows["all", "idle"] == pytest.approx(rows["layer01", "idle"] + rows["layer02", "idle"])
    assert rows["all", "router_entropy"] == pytest.approx((rows["layer01", "router_entropy"] + rows["layer02", "router_entropy"]) / 2)
    assert rows["all", "experts_per_token"] == 2
    assert rows["all", "coupling"] >= 0
    dense = {
        row["metric"]
        for row in read_json(finished.folder(Run("finetune", "dense", 0, "examination")) / "measures.json")
        if row["task"] == "routing"
    }
    assert dense == {"macs_per_token"}


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_a_rank_margin_is_that_of_a_loop_and_does_not_change_with_scale(scale):
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = []
    for row in scores.tolist():
        ordered = sorted(row, reverse=True)
        wanted.append((ordered[1] - ordered[2]) / np.std(row))
    assert margins(scale * scores, 2).tolist() == pytest.approx(wanted)
    assert margins(torch.ones(3, 6), 2).tolist() == [0, 0, 0]
    assert margins(scores, 6).eq(0).all()


def test_a_model_without_its_router_is_the_trained_one_with_other_choices(finished):
    measures = {name: finished.folder(Run("finetune", name, 0, "examination")) / "measures.json" for name in ("moe", "removed")}
    nll = {name: next(row["value"] for row in read_json(path) if row["metric"] == "nll") for name, path in measures.items()}
    assert nll["moe"] != nll["removed"]
    weights = load_file(finished.folder(Run("pretrain", "moe", 0)) / "model.safetensors")
    assert {name for name in weights if "router" in name}
    assert not finished.folder(Run("pretrain", "removed", 0)).exists()


def test_norms_over_training_are_kept_where_experts_select_themselves(finished):
    rows = read_json(finished.folder(Run("pretrain", "aoe", 0)) / "norms.json")
    assert [row["step"] for row in rows][-1] == 30
    assert np.array([row["norms"] for row in rows]).shape == (24, 2, 4)
    assert (np.array([row["norms"] for row in rows]) > 0).all()
    assert not (finished.folder(Run("pretrain", "moe", 0)) / "norms.json").exists()


def test_choices_are_left_for_every_task_and_evaluated_to_records_and_tables(finished):
    for name in finished.methods:
        for task in finished.data.tasks:
            rows = read_jsonl(finished.folder(Run("finetune", name, 0, "examination")) / "choices" / f"{task}.jsonl")
            assert len(rows) == finished.data.constructed.test
    assert evaluate(finished) == []
    tabulate(finished)
    text = (finished.results / "table2_main.md").read_text()
    assert "shallow: bigram" in text
    assert "missing" not in text
    assert "entailment_second" not in text
    languages = (finished.results / "languages.md").read_text()
    assert "zero-shot inference by language" in languages
    assert "| method | pivot | second | mean |" in languages
    assert "missing" not in languages
    before = {path.name: path.read_bytes() for path in finished.results.iterdir()}
    tabulate(finished)
    assert {path.name: path.read_bytes() for path in finished.results.iterdir()} == before


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.root)
    run = Run("pretrain", "aoe", 0, part="train")
    folder, kept = finished.folder(run), tmp_path / "kept"
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    calls = []

    def dying(self, batch, index):
        if self.global_step == 17:
            calls.append(index)
            raise KeyboardInterrupt
        return step(self, batch, index)

    step = LanguageModel.training_step
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "training_step", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit, MoebenchError)):
            train(finished, run)
    assert calls
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    train(finished, run)
    for name in ("model.safetensors", "norms.json", "measures.json"):
        assert (folder / name).read_bytes() == (kept / name).read_bytes(), name


@pytest.mark.parametrize(("decay", "floor"), [("cosine", 0.064), ("cosine", 0.0), ("linear", 0.1)])
def test_the_rate_rises_linearly_and_falls_as_asked(finished, decay, floor):
    plan = json.loads(finished.plan_file(Run("pretrain", "dense", 0)).read_text())["config"]
    optimisation = Pretraining(steps=100, batch=1, rate=0.5, warmup=0.2, decay=decay, floor=floor)
    module = LanguageModel(build(plan, 300), optimisation, {}, 0)
    found = module.configure_optimizers()
    rates = []
    for _ in range(100):
        rates.append(found["optimizer"].param_groups[0]["lr"] / 0.5)
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    left = [(100 - step) / 80 for step in range(20, 100)]
    shape = left if decay == "linear" else [(1 + math.cos(math.pi * (1 - share))) / 2 for share in left]
    assert rates[20:] == pytest.approx([floor + (1 - floor) * value for value in shape])


def test_the_loss_is_next_token_cross_entropy_with_the_losses_of_all_blocks(finished):
    plan = json.loads(finished.plan_file(Run("pretrain", "moe", 0)).read_text())["config"]
    pieces = lm_tokenizer.load(finished.prepared / "tokenizer")
    torch.manual_seed(0)
    module = LanguageModel(build(plan, pieces.size), Pretraining(steps=10, batch=4, rate=1.0), {"balance": 0.5, "coupling": 2.0}, 0).eval()
    batch = batch_of(open_rows(finished.prepared / "train", "pivot")[:3], pieces) | {"weight": torch.ones(1)}
    loss, _ = module.part_loss(batch)
    states, reports = module.decoder(batch["ids"], positions_BS=batch["positions"])
    logits = module.decoder.logits(states)
    terms = [
        functional.cross_entropy(logits[b, s][None], batch["ids"][b, s + 1][None])
        for b in range(3)
        for s in range(logits.shape[1] - 1)
        if batch["ids"][b, s + 1] != pieces.bos
    ]
    extra = sum(0.5 * aux.losses["balance"] + 2.0 * aux.losses["coupling"] for aux in reports)
    assert loss.item() == pytest.approx((torch.stack(terms).mean() + extra).item(), rel=1e-5)
