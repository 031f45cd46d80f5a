"""The profile `real` from original files to predictions, with a tiny file in the format of the bundled encoder."""

import json
import shutil

import pytest
import tiny_bundle
import torch
import yaml
from safetensors.torch import load_file

from moebench.config import project_root
from moebench.data import bundled
from moebench.data.catalogue import task
from moebench.data.text_settings import tasks
from moebench.experiment import Experiment
from moebench.files import read_json, read_jsonl, sha256
from moebench.pipeline.baselines import baselines
from moebench.pipeline.plan import plan
from moebench.pipeline.prepare import prepare
from moebench.pipeline.select import select
from moebench.pipeline.train import train
from moebench.protocols.transfer.answers import score

ENCODER = {"layers": 2, "width": 64, "heads": 4, "inner": 128, "norm": "post", "max_positions": 32, "token_types": 2, "epsilon": 1e-12}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A project whose benchmark files, encoder and training are tiny."""
    files = tmp_path / "files"
    for language, words in (("en", ["the", "cat", "sat"]), ("zh", ["日本", "語", "ne"])):
        pairs = [
            f"{words[i % 3]} {i}\t{words[(i + j) % 3]} hello\t{label}" for i in range(12) for j, label in enumerate(task("xnli").labels)
        ]
        write(files / f"xtreme/xnli/dev-{language}.tsv", "\n".join(pairs) + "\n")
        for name, (first, other) in (("udpos", ("NOUN", "VERB")), ("panx", ("B-PER", "O"))):
            sentences = [f"{words[i % 3]}\t{first}\n{i}\t{other}\n" for i in range(20)]
            for split in ("train", "dev") if language == "en" else ("dev",):
                write(files / f"xtreme/{name}/{split}-{language}.tsv", "\n".join(sentences).replace("hello", split))
    labelled = [f"world {i}\tmat {i} {label}\t{label}" for i in range(12) for label in task("xnli").labels]
    write(files / "xtreme/xnli/labelled/test-en.tsv", "\n".join(labelled) + "\n")
    train = files / "xtreme/udpos/train-en.tsv"
    write(train, train.read_text() + "\nmat\tNOUN\n")
    train = files / "xtreme/panx/train-en.tsv"
    write(train, train.read_text() + "\nmat\tO\n")
    write(files / "xtreme/xquad/xquad.zh.json", questions("hello", 4))
    write(files / "xtreme/tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json", questions("world", 12))
    write(files / "news/en.txt", "the cat sat\n" * 150)
    write(files / "news/zh.txt", "日本 語\n" * 150)
    root = tmp_path / "project"
    shutil.copytree(project_root() / "experiments" / "xmoe", root / "experiments" / "xmoe")
    write(root / "params.yaml", "profile: real\nfolder:\n")
    experiment = Experiment(root, "xmoe", "real")
    path = experiment.setting_file
    setting = yaml.safe_load(path.read_text())
    setting |= {"encoder": ENCODER, "precision": "fp32"}
    setting["pretrain"] |= {"steps": 2, "batch": 4}
    setting["sparse"] |= {"experts": 4, "inner": 16}
    for options in setting["finetune"].values():
        options |= {"batch": 8, "max_length": 24, "epochs": 1}
    path.write_text(yaml.safe_dump(setting))
    path = experiment.data_file
    data = yaml.safe_load(path.read_text())
    data |= {"tasks": ["xnli", "udpos", "panx", "xquad", "tydiqa"], "corpus": {"sequence_length": 12, "validation_rows": 4}}
    data |= {"corpus_files": {"en": "news/en.txt", "zh": "news/zh.txt"}, "corpus_sets": ["xnli", "udpos", "panx", "tydiqa"]}
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("MOEBENCH_FOLDER", str(files))
    weights = root / "data" / "downloads" / "e5-small-q4.bin"
    weights.parent.mkdir(parents=True)
    tiny_bundle.write_bundle(weights)
    monkeypatch.setattr(bundled, "FILE_SHA256", sha256(weights))
    select(experiment)
    plan(experiment)
    prepare(experiment)
    return experiment


def questions(word, contexts):
    """SQuAD's JSON, one question a context."""
    paragraphs = []
    for i in range(contexts):
        answer = {"text": "mat", "answer_start": len(f"{word} {i} ")}
        paragraphs.append({"context": f"{word} {i} mat", "qas": [{"id": f"{word}{i}", "question": "on", "answers": [answer]}]})
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def test_from_files_to_scores(experiment):
    prepared = experiment.prepared
    runs = {(run.stage, run.method, run.training_set): run for run in experiment.runs if run.seed == 0}
    manifest = read_json(prepared / "manifest.json")
    assert manifest["languages"] == ["en", "zh"]
    assert manifest["choices"]["xnli.train"] == "xtreme/xnli/labelled/test-en.tsv"
    assert manifest["train_languages"] == {"panx": "en", "tydiqa": "en", "udpos": "en", "xnli": "en"}
    baselines(experiment)
    for method in ("dense", "dense_scratch", "xmoe_softmax"):
        train(experiment, runs["pretrain", method, ""])
    weights = {
        name: load_file(experiment.folder(runs["pretrain", name, ""]) / "model.safetensors")
        for name in ("dense", "dense_scratch", "xmoe_softmax")
    }
    rows = read_json(prepared / "tokenizer" / "tokenizer.json")["rows"]
    embedding = torch.from_numpy(bundled.Bundle(experiment.root / "data/downloads/e5-small-q4.bin").tensor("emb.word")[rows])
    for name, unchanged in (("dense", True), ("xmoe_softmax", True), ("dense_scratch", False)):
        assert torch.equal(weights[name]["embedding.weight"], embedding) == unchanged
    assert weights["xmoe_softmax"]["sparse.experts.fc2_weight"].abs().max() > 0  # it has learned before fine-tuning
    measured = {row["metric"] for row in read_json(experiment.folder(runs["pretrain", "xmoe_softmax", ""]) / "measures.json")}
    assert {"perplexity", "max_violation"} <= measured
    chosen = tasks(experiment.data)
    for name in sorted({one.train for one in chosen}):
        train(experiment, runs["finetune", "xmoe_softmax", name])
    tested = {"xquad": ["zh"], "tydiqa": ["en"]}
    for one in chosen:
        folder = experiment.folder(runs["finetune", "xmoe_softmax", one.train]) / "predictions" / one.name
        for language in tested.get(one.name, ["en", "zh"]):
            gold = read_jsonl(prepared / "tasks" / one.train / "test" / one.name / f"{language}.jsonl")
            for value, n in score(one, language, gold, read_jsonl(folder / f"{language}.jsonl")).values():
                assert 0 <= value <= 100
                assert n == len(gold)
