"""Pre-training and fine-tuning as the pipeline calls them, on the constructed data at its smallest."""

import shutil
from itertools import chain

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from moebench.config import project_root
from moebench.data.catalogue import task
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run
from moebench.files import read_json, read_jsonl
from moebench.models import shapes
from moebench.models.build import build_encoder, load_weights
from moebench.pipeline.plan import plan
from moebench.pipeline.prepare import prepare
from moebench.pipeline.select import select
from moebench.pipeline.train import train
from moebench.protocols.transfer.answers import score
from moebench.protocols.transfer.config import sparse
from moebench.protocols.transfer.features import features
from moebench.protocols.transfer.finetuning import FinetuningModule, TaskBatches
from moebench.training.trainer import fit, make_trainer

SETS = {"constructed_qa": ["constructed_qa_parallel", "constructed_qa_cross"], "constructed_ner": ["constructed_ner"]}
SETS |= {"constructed_nli": ["constructed_nli"]}
SCALE = {"precision": "fp32", "devices": 1, "nodes": 1, "threads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A copy of the project's settings with a `smoke` profile of a few steps, planned and prepared."""
    root = tmp_path_factory.mktemp("tiny")
    shutil.copytree(project_root() / "experiments" / "xmoe", root / "experiments" / "xmoe")
    experiment = Experiment(root, "xmoe", "smoke")
    path = experiment.data_file
    data = yaml.safe_load(path.read_text())
    data["constructed"] |= {"documents": 40, "parallel": 20, "train": 40, "validation": 8, "test": 8}
    data["tokens"]["vocabulary"] = 400
    path.write_text(yaml.safe_dump(data))
    path = experiment.setting_file
    setting = yaml.safe_load(path.read_text())
    setting["pretrain"] |= {"steps": 6, "batch": 4}
    for options in setting["finetune"].values():
        options |= {"steps": 4, "batch": 4}
    setting["ensembles"]["training_sets"] = list(SETS)
    path.write_text(yaml.safe_dump(setting))
    select(experiment)
    plan(experiment)
    prepare(experiment)
    for method in ("dense", "xmoe_softmax", "dense_scratch"):
        pretrain(experiment, method)
    return experiment


def one(experiment, *asked):
    """A run as the experiment lists it, with its start and its part of the data."""
    return next(run for run in experiment.runs if run == Run(*asked))


def pretrain(experiment, method):
    train(experiment, one(experiment, "pretrain", method, 0))


def finetune(experiment, method, training_set):
    train(experiment, one(experiment, "finetune", method, 0, training_set))


def runs(experiment, stage, name):
    return experiment.runs_folder / "trained" / stage / name


@pytest.mark.parametrize("training_set", SETS)
def test_every_language_gets_a_scorable_prediction(tiny, training_set):
    finetune(tiny, "xmoe_softmax", training_set)
    folder = runs(tiny, "finetune", f"xmoe_softmax-{training_set}-0")
    test = tiny.prepared / "tasks" / training_set / "test"
    for name in SETS[training_set]:
        gold = sorted(path.name for path in (test / name).iterdir())
        assert sorted(path.name for path in (folder / "predictions" / name).glob("*.jsonl")) == gold
        for file in gold:
            predicted = read_jsonl(folder / "predictions" / name / file)
            if task(name).kind != "qa":
                probabilities = np.load((folder / "predictions" / name / file).with_suffix(".npy"))
                np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
                best = [task(name).labels[place] for place in probabilities.argmax(axis=1)]
                labels = [row["prediction"] for row in predicted]
                assert best == (list(chain(*labels)) if task(name).kind == "tagging" else labels)
            scores = score(task(name), file[:-6], read_jsonl(test / name / file), predicted)
            assert all(0 <= value <= 100 and n == 8 for value, n in scores.values())
    validation = read_jsonl(test.parent / "validation.jsonl")
    assert [row["id"] for row in read_jsonl(folder / "predictions" / "validation.jsonl")] == [row["id"] for row in validation]
    assert not (folder / "checkpoints").exists()
    assert len((folder / "course.csv").read_text().splitlines()) == 1 + 4
    assert read_json(folder / "costs.json")["seconds"] > 0


@pytest.mark.parametrize("method", ["mc_dropout", "batch_ensemble", "xmoe_softmax_mc_dropout"])
@pytest.mark.parametrize("training_set", SETS)
def test_an_ensemble_within_one_model_leaves_all_members_and_predicts_by_their_mean(tiny, method, training_set):
    finetune(tiny, method, training_set)
    folder, kind = runs(tiny, "finetune", f"{method}-{training_set}-0"), task(SETS[training_set][0])
    files = {path: path.read_bytes() for path in (folder / "predictions").rglob("*.*")}
    members = tiny.method(method).members
    assert any(path.suffix == ".npy" for path in files) == (kind.kind != "qa")
    for path in files:
        if path.suffix == ".npy":
            probabilities = np.load(path)
            assert probabilities.shape[::2] == (members, len(kind.labels))
            np.testing.assert_allclose(probabilities.sum(axis=2), 1, atol=1e-5)
            assert probabilities.std(axis=0).max() > 1e-3
            labels = [row["prediction"] for row in read_jsonl(path.with_suffix(".jsonl"))]
            best = [kind.labels[place] for place in probabilities.mean(axis=0, dtype=np.float64).argmax(axis=1)]
            assert best == (list(chain(*labels)) if kind.kind == "tagging" else labels)
    plan_of = read_json(tiny.plan_folder / "finetune" / f"{method}-{training_set}.json")["config"]
    assert plan_of["encoder"]["dropout"] == (0.1 if "dropout" in method else 0)
    blocks = 2 * (8 * 64**2 + 4 * 64 * plan_of["finetune"]["max_length"] + 4 * 64 * 128)
    flops = read_json(folder / "costs.json")["flops_per_token"]
    assert flops == members * blocks if method in ("mc_dropout", "batch_ensemble") else flops > members * blocks
    finetune(tiny, method, training_set)
    assert files == {path: path.read_bytes() for path in (folder / "predictions").rglob("*.*")}


def test_running_a_stage_again_gives_the_same_bytes(tiny):
    weights = runs(tiny, "pretrain", "xmoe_softmax-0") / "model.safetensors"
    before = weights.read_bytes()
    pretrain(tiny, "xmoe_softmax")
    assert weights.read_bytes() == before
    measures = read_json(weights.with_name("measures.json"))
    assert {row["language"] for row in measures if row["metric"] == "perplexity"} == set(
        read_json(tiny.prepared / "manifest.json")["languages"]
    )
    finetune(tiny, "dense", "constructed_nli")
    folder = runs(tiny, "finetune", "dense-constructed_nli-0") / "predictions"
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    finetune(tiny, "dense", "constructed_nli")
    assert before == {path: path.read_bytes() for path in folder.rglob("*.jsonl")}


def test_the_floor_is_the_dense_model_before_any_training(tiny):
    floor = load_file(runs(tiny, "pretrain", "dense_scratch-0") / "model.safetensors")
    trained = load_file(runs(tiny, "pretrain", "dense-0") / "model.safetensors")
    plan_of = read_json(tiny.plan_folder / "pretrain" / "dense.json")["config"]
    torch.manual_seed(0)
    size = Tokenizer.load(tiny.prepared / "tokenizer").size
    start = build_encoder(shapes.Encoder.model_validate(plan_of["encoder"]), None, {"layer": "none"}, size).state_dict()
    assert all(torch.equal(value, floor[name]) for name, value in start.items())
    assert not torch.equal(trained["embedding.weight"], floor["embedding.weight"])


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_routing_leaves_router_and_experts_bit_identical_and_trains_the_rest(tiny, tmp_path, freeze):
    setting = tiny.setting
    method = tiny.method("xmoe_softmax").model_dump()
    prepared = tiny.prepared
    tokenizer = Tokenizer.load(prepared / "tokenizer")
    options, kind = setting.finetune["constructed_ner"], task("constructed_ner")
    encoder = build_encoder(setting.encoder, setting.sparse, method, tokenizer.size)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    module = FinetuningModule(encoder, options, {"balance": 0.01}, 0.0, 0, kind, freeze)
    inputs = features(kind, read_jsonl(prepared / "tasks" / "constructed_ner" / "train.jsonl"), tokenizer, options)
    trainer, _ = make_trainer(tmp_path, options, SCALE)
    fit(trainer, module, lambda part, parts: TaskBatches(kind, inputs, options.batch, tokenizer.pad, 0, part, parts), tmp_path)
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("sparse.") for name in changed) != freeze
    assert {"embedding.weight", "blocks.0.qkv.weight", "norm.weight"} <= changed


def test_a_damaged_or_missing_start_is_named(tiny):
    weights = runs(tiny, "pretrain", "dense_scratch-0") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(MoebenchError, match=r"dense_scratch-0/model\.safetensors: not a readable checkpoint"):
        finetune(tiny, "dense_scratch", "constructed_ner")
    assert not (runs(tiny, "finetune", "dense_scratch-constructed_ner-0") / "predictions").exists()
    weights.write_bytes(content)
    finetune(tiny, "dense_scratch", "constructed_ner")


@pytest.mark.parametrize(("method", "size", "complaint"), [("xmoe_softmax", 400, "lacks sparse"), ("dense", 300, "size mismatch")])
def test_checkpoints_of_another_shape_are_refused(tiny, method, size, complaint):
    setting = tiny.setting
    chosen = tiny.method(method)
    encoder = build_encoder(setting.encoder, sparse(setting, chosen), chosen.model_dump(), size)
    with pytest.raises(MoebenchError, match=rf"(?s)dense-0/model\.safetensors: .*{complaint}"):
        load_weights(encoder, runs(tiny, "pretrain", "dense-0") / "model.safetensors")
