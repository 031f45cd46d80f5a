"""What the plan depends on, what it refuses, and the lists of stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from projects import ROOT

from moebench.errors import MoebenchError
from moebench.experiment import Experiment, experiments, profiles
from moebench.models.shapes import Encoder, Sparse
from moebench.pipeline.plan import plan
from moebench.pipeline.select import select
from moebench.protocols.transfer.config import Finetuning, Pretraining

FILES = {
    "params.yaml": "profile: smoke\nfolder:\n",
    "published.yaml": "tables: {}",
    "experiment.yaml": "{protocol: transfer, name: Paper, title: A paper, arxiv: '0000.00000'}",
    "methods/dense.yaml": "{label: Dense, layer: none}",
    "methods/dotted.yaml": "{label: Dot, layer: moe, router: dot, losses: {balance: 0}}",
    "methods/frozen.yaml": "{label: Frozen, layer: moe, router: dot, losses: {balance: 0},"
    " freeze_in_finetuning: true, pretrain_as: dotted}",
    "methods/lowdim.yaml": "{label: X-MoE, layer: moe, router: xmoe, losses: {balance: 0}}",
    "data/smoke.yaml": "{source: constructed, tasks: [constructed_pos, constructed_nli],"
    " constructed: {}, corpus: {}, tokens: {vocabulary: 100}}",
    "profiles/smoke.yaml": """
seeds: [0]
baseline: dense
encoder: {layers: 2, width: 8, heads: 2, inner: 8}
sparse: {experts: 2, inner: 8}
pretrain: {steps: 5, batch: 1, rate: 0.1}
finetune:
  constructed_pos: {steps: 5, batch: 1, rate: 0.1}
  constructed_nli: {steps: 5, batch: 1, rate: 0.1}
""",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one paper, selected; the code that is fingerprinted is the installed package's."""
    for name, text in FILES.items():
        path = tmp_path / name if name == "params.yaml" else tmp_path / "experiments" / "paper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    select(smoke(tmp_path))
    return tmp_path


def smoke(root: Path) -> Experiment:
    """The experiment as its files now are."""
    return Experiment(root, "paper", "smoke")


def planned(root: Path) -> dict[str, bytes]:
    """Make the plan and return file → content."""
    select(smoke(root))
    plan(smoke(root))
    return read(root)


def read(root: Path) -> dict[str, bytes]:
    """Return file → content of the plan that is there."""
    folder = root / "runs" / "smoke" / "paper" / "plan"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}


def different(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    """Names of the files of the training stages that are new, gone or changed."""
    return {name for name in before.keys() | after.keys() if "/" in name and before.get(name) != after.get(name)}


def write(root: Path, name: str, text: str) -> None:
    (root / "experiments" / "paper" / name).write_text(text)


def change(root: Path, name: str, old: str, new: str) -> None:
    text = (root / "experiments" / "paper" / name).read_text()
    assert old in text
    write(root, name, text.replace(old, new))


def test_one_file_for_each_stage(root):
    sets = ("constructed_nli", "constructed_pos")
    expected = {"prepare.json", "baselines.json", "evaluate.json", "tabulate.json"}
    expected |= {f"pretrain/{name}.json" for name in ("dense", "dotted", "lowdim")}  # `frozen` starts from `dotted`
    expected |= {f"finetune/{name}-{each}.json" for name in ("dense", "dotted", "frozen", "lowdim") for each in sets}
    first = planned(root)
    assert first.keys() == expected
    assert planned(root) == first
    assert all(json.loads(content).keys() == {"config", "fingerprint"} for content in first.values())
    assert not any(str(root).encode() in content or b"\\u" in content for content in first.values())


def test_what_training_is_told(root):
    files = {name: json.loads(content)["config"] for name, content in planned(root).items()}
    dense, dotted = files["pretrain/dense.json"], files["pretrain/dotted.json"]
    setting = smoke(root).setting
    assert dense["sparse"] is None
    assert Sparse.model_validate(dotted["sparse"]) == setting.sparse
    assert Encoder.model_validate(dense["encoder"]) == setting.encoder
    assert Pretraining.model_validate(dense["pretrain"]) == setting.pretrain
    options = smoke(root).method("dotted").options
    assert options  # the router's defaults are written out
    assert dotted["method"] == {
        "layer": "moe",
        "router": "dot",
        "options": options,
        "losses": {"balance": 0.0},
        "consistency": 0.0,
        "pretrained": True,
    }
    assert {name: dense[name] for name in ("precision", "threads", "devices", "nodes", "initialisation")} == {
        "precision": "fp32",
        "threads": 1,
        "devices": 1,
        "nodes": 1,
        "initialisation": "scratch",
    }
    frozen = files["finetune/frozen-constructed_pos.json"]
    assert frozen["tasks"] == ["constructed_pos"]
    assert Finetuning.model_validate(frozen["finetune"]) == setting.finetune["constructed_pos"]
    assert frozen["method"]["freeze_in_finetuning"]
    assert frozen["method"]["pretrain_as"] == "dotted"


def test_a_label_reaches_the_tables_alone(root):
    before = planned(root)
    change(root, "methods/dense.yaml", "label: Dense", "label: Dense model")
    after = planned(root)
    assert {name for name in before if before[name] != after[name]} == {"tabulate.json"}


def test_a_new_method_adds_files_and_changes_none(root):
    before = planned(root)
    write(root, "methods/new.yaml", "{label: New, layer: moe, router: dot, losses: {balance: 0}}")
    assert different(before, planned(root)) == {
        "pretrain/new.json",
        "finetune/new-constructed_nli.json",
        "finetune/new-constructed_pos.json",
    }


def test_a_setting_reaches_the_stages_that_read_it(root):
    before = planned(root)
    change(root, "profiles/smoke.yaml", "constructed_pos: {steps: 5", "constructed_pos: {steps: 6")
    change(root, "methods/lowdim.yaml", "router: xmoe", "router: xmoe, freeze_in_finetuning: true")
    changed = {f"finetune/{name}-constructed_pos.json" for name in ("dense", "dotted", "frozen", "lowdim")}
    assert different(before, planned(root)) == changed | {"finetune/lowdim-constructed_nli.json"}


def test_the_experts_do_not_concern_the_dense_model(root):
    before = planned(root)
    change(root, "profiles/smoke.yaml", "sparse: {experts: 2", "sparse: {experts: 4")
    changed = different(before, planned(root))
    assert changed
    assert not any("dense" in name for name in changed)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("methods/dense.yaml", "label: Dense", "labels: Dense", r"methods/dense\.yaml: unknown key 'labels' \(did you mean 'label'\?\)"),
        ("methods/dotted.yaml", "router: dot", "router: dott", r"key 'router' has the value 'dott' \(did you mean 'dot'\?\)"),
        ("methods/dotted.yaml", "router: dot", "router: dot, options: {gates: x}", r"dotted\.yaml.*'options\.gates'"),
        ("methods/frozen.yaml", "pretrain_as: dotted", "pretrain_as: dott", r"unknown method 'dott' .*\(did you mean 'dotted'\?\)"),
        (
            "methods/frozen.yaml",
            "pretrain_as: dotted",
            "pretrain_as: lowdim",
            r"key 'router' has the value 'dot', but 'lowdim' was pre-trained",
        ),
        ("methods/frozen.yaml", "pretrain_as: dotted", "pretrain_as: frozen", "both have to be pre-trained, that one by itself"),
        ("profiles/smoke.yaml", "baseline: dense", "baseline: dens", r"key 'baseline' names 'dens' \(did you mean 'dense'\?\)"),
        (
            "profiles/smoke.yaml",
            "constructed_pos:",
            "constructed_poss:",
            r"'finetune\.constructed_poss' \(did you mean 'constructed_pos'\?\)",
        ),
        ("profiles/smoke.yaml", "  constructed_pos: {steps: 5, batch: 1, rate: 0.1}\n", "", r"key 'finetune\.constructed_pos' is missing"),
        ("profiles/smoke.yaml", "experts: 2", "experts: two", r"key 'sparse\.experts' has the value 'two'"),
        ("data/smoke.yaml", "constructed_pos", "udpos", "names 'udpos', which source 'constructed' does not have"),
        ("data/smoke.yaml", "constructed_pos", "construct_pos", "tasks names 'construct_pos'"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(root, name, old, new, message):
    before = planned(root)
    lists = (root / "experiments" / "paper" / "smoke" / "params.yaml").read_bytes()
    change(root, name, old, new)
    for verb in (plan, select):
        with pytest.raises(MoebenchError, match=message):
            verb(smoke(root))
    assert read(root) == before
    assert (root / "experiments" / "paper" / "smoke" / "params.yaml").read_bytes() == lists


def test_the_plan_refuses_lists_that_are_stale(root):
    for edit in (
        lambda: write(root, "methods/new.yaml", "{label: New, layer: none}"),
        lambda: change(root, "profiles/smoke.yaml", "seeds: [0]", "seeds: [0, 1]"),
        lambda: (root / "experiments" / "paper" / "smoke" / "params.yaml").unlink(),
    ):
        select(smoke(root))
        edit()
        with pytest.raises(MoebenchError, match="run `moebench select --paper paper --profile smoke`"):
            plan(smoke(root))


def test_select_lists_the_stages(root):
    change(root, "profiles/smoke.yaml", "seeds: [0]", "seeds: [0, 1]")
    select(smoke(root))
    lists = yaml.safe_load((root / "experiments" / "paper" / "smoke" / "params.yaml").read_text())
    assert (lists["paper"], lists["profile"]) == ("paper", "smoke")
    assert list(lists["pretrain"]) == [f"{name}-{seed}" for name in ("dense", "dotted", "lowdim") for seed in (0, 1)]
    assert len(lists["finetune"]) == 4 * 2 * 2
    assert lists["finetune"]["frozen-constructed_pos-1"] == {
        "method": "frozen",
        "seed": 1,
        "part": "constructed_pos",
        "set": "constructed_pos",
        "start": "dotted-1",
    }


def test_select_refuses_devices_that_are_not_here_and_the_plan_does_not(root, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    change(root, "profiles/smoke.yaml", "seeds: [0]", "seeds: [0]\ndevices: 1000\nnodes: 2")
    with pytest.raises(MoebenchError, match=r"smoke\.yaml: key 'devices' has the value 1000; this machine has no GPU"):
        select(smoke(root))
    plan(smoke(root))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(1000))))  # the pipeline of another machine
    select(smoke(root))


def test_select_does_not_touch_what_is_right(root):
    files = [root / "experiments" / "paper" / "smoke" / name for name in ("params.yaml", "dvc.yaml")]
    before = [path.stat().st_ino for path in files]  # a file that is written anew is another one
    select(smoke(root))
    assert [path.stat().st_ino for path in files] == before


@pytest.mark.parametrize("profile", profiles(ROOT))
def test_the_shipped_configuration_is_valid(profile):
    for experiment in experiments(ROOT, profile):
        experiment.check()


def test_the_shipped_lists_are_those_of_the_configuration(tmp_path):
    for path in (ROOT / "experiments").glob("*/*/params.yaml"):
        paper, profile = path.parts[-3:-1]
        shutil.copytree(ROOT / "experiments" / paper, tmp_path / "experiments" / paper, dirs_exist_ok=True)
        select(Experiment(tmp_path, paper, profile))
        assert (tmp_path / path.relative_to(ROOT)).read_text() == path.read_text()
