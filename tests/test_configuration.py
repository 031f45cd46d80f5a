"""Every shipped configuration is valid, and every kind of mistake is named with what would be right."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from moebench import config
from moebench.config import Optimisation
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles
from moebench.protocols.transfer.config import Pretraining
from moebench.protocols.vision.config import ImageTraining

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("paper", "profile"), [(paper, profile) for paper in papers(ROOT) for profile in profiles(ROOT, paper)])
def test_every_shipped_profile_and_method_is_valid(project, paper, profile):
    experiment = Experiment(project, paper, profile)
    experiment.check()
    assert experiment.runs
    assert experiment.about.protocol == experiment.protocol.name


def test_router_options_are_read_without_importing_the_router():
    model = config.part("router", "xmoe").options
    assert model.model_validate({"gate": "sigmoid", "dim": None}).model_dump()["gate"] == "sigmoid"
    with pytest.raises(ValueError, match="gate"):
        model.model_validate({"gate": "relu"})


METHOD = "methods/xmoe_softmax.yaml"
SETTING = "profiles/smoke.yaml"
ABOUT = "experiment.yaml"
MISTAKES = [
    (SETTING, lambda v: v.update(seeds=[0, 1, 0]), "seeds names 0 twice"),
    (SETTING, lambda v: v.update(seeds=[-1]), r"key 'seeds\.0' has the value -1"),
    (SETTING, lambda v: v.update(seeds=[2**32]), r"key 'seeds\.0' has the value 4294967296"),
    (SETTING, lambda v: v["pretrain"].update(rate=float("nan")), r"key 'pretrain\.rate' has the value nan"),
    (SETTING, lambda v: v["pretrain"].update(betas=[0.9, 1]), r"key 'pretrain\.betas\.1' has the value 1"),
    (SETTING, lambda v: v["pretrain"].update(steps=True), r"key 'pretrain\.steps' has the value True"),
    (SETTING, lambda v: v["sparse"].update(experts=10**9), r"key 'sparse' asks for \d+ GiB at least, and this machine has \d+ GiB"),
    (SETTING, lambda v: v["pretrain"].update(batch=10**9), r"key 'pretrain\.batch' .* asks for \d+ GiB"),
    (SETTING, lambda v: v["encoder"].update(positions="learned", max_positions=64), r"key 'finetune.*max_length' has the value 96"),
    (METHOD, lambda v: v.update(published="X-MoE sofmax"), r"'published' has the value 'X-MoE sofmax' \(did you mean 'X-MoE softmax'\?\)"),
    (METHOD, lambda v: v["options"].update(temperature=-1), r"key 'options\.temperature' has the value -1.*: should be above 0\.0001"),
    (METHOD, lambda v: v.update(label="x" * 9999), r"key 'label' has the value 'x{50,99}…: String should have at most 500 characters$"),
    ("published.yaml", lambda v: v["tables"]["1"].update(seed=5), r"unknown key 'tables\.1\.seed' \(did you mean 'seeds'\?\)"),
    (METHOD, lambda v: v.update(ruoter="x"), r"unknown key 'ruoter' \(did you mean 'router'\?\)"),
    (METHOD, lambda v: v.update(router="xmeo"), r"'xmeo' \(did you mean 'xmoe'\?\); routers are: .*dot"),
    (METHOD, lambda v: v["options"].update(temprature=1), r"unknown key 'options\.temprature' \(did you mean 'temperature'\?\)"),
    (METHOD, lambda v: v["options"].update(gate="relu"), r"key 'options\.gate' has the value 'relu'.*'softmax' or 'sigmoid'"),
    (METHOD, lambda v: v.update(losses={"balance": "much"}), r"key 'losses\.balance' has the value 'much'"),
    (METHOD, lambda v: v.update(losses={"balanse": 1}), r"unknown key 'losses\.balanse' \(did you mean 'balance'\?\)"),
    (METHOD, lambda v: v.update(losses={"z": 1}), r"key 'losses\.balance' is missing: router 'xmoe' has this loss"),
    (
        METHOD,
        lambda v: v.update(router="topk", options={"k": 1}),
        r"xmoe_softmax\.yaml: key 'options': k 1 with normalise true makes every weight constant, .* router 'topk' nothing",
    ),
    (METHOD, lambda v: v.update(router="aux_free", options={"k": 1, "normalise": True}, losses={}), "k 1 with normalise true"),
    (METHOD, lambda v: (v.update(layer="dens"), v.pop("router")), r"'dens' \(did you mean 'dense'\?\); layers are: none, moe, aoe, dense"),
    (SETTING, lambda v: v.update(options={"xmo_softmax": {}}), r"key 'options\.xmo_softmax' \(did you mean 'xmoe_softmax'\?\)"),
    (
        SETTING,
        lambda v: v.update(options={"xmoe_softmax": {"dimm": 2}}),
        r"unknown key 'options\.xmoe_softmax\.dimm' \(did you mean 'dim'\?\)",
    ),
    (METHOD, lambda v: v.pop("label"), "key 'label' is missing"),
    (METHOD, lambda v: v.update(pretrain_as="smoe_soft"), r"unknown method 'smoe_soft'.*did you mean 'smoe_softmax'"),
    (SETTING, lambda v: v["encoder"].update(head=4), r"unknown key 'encoder\.head' \(did you mean 'heads'\?\)"),
    (SETTING, lambda v: v.update(seeds=[]), "key 'seeds'"),
    (SETTING, lambda v: v.update(baseline="dens"), r"'dens' \(did you mean 'dense'\?\)"),
    (ABOUT, lambda v: v.update(arxiv="2204.0917"), r"key 'arxiv' has the value '2204\.0917'"),
    (
        ABOUT,
        lambda v: v.update(protocol="transfr"),
        r"key 'protocol' has the value 'transfr' \(did you mean 'transfer'\?\); protocols are: ",
    ),
    (ABOUT, lambda v: v.pop("title"), "key 'title' is missing"),
]


@pytest.mark.parametrize(("file", "change", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_named_with_its_file_and_what_would_be_right(copy, file, change, message):
    experiment, edit = copy
    edit(file, change)
    with pytest.raises(MoebenchError, match=message) as caught:
        experiment.check()
    assert file in str(caught.value) or "task" in message or "unknown method" in message


ODD = {
    "seeds: [0]\nseeds: [1]\n": r"second value for key 'seeds'\n.*line 2",
    "a: {b: 1, b: 2}\n": "second value for key 'b'",
    "a: " + "[" * 100_000 + "]" * 100_000: "more than 50 levels",
    "a: &a [*a]\n": "aliases that repeat too much",
    "a: &a [x, x]\n"
    + "".join(f"{n}: &{n} [*{chr(ord(n) - 1)}, *{chr(ord(n) - 1)}]\n" for n in "bcdefghijklmnopqrstuvwxyz"): "aliases that",
    "a: &a {x: 1}\nb: {<<: *a, x: 2, y: 2001-99-99}\n": "not valid YAML: month must be",
    "\ufeffseeds: [0]\n": "begins with a byte-order mark",
}


@pytest.mark.parametrize("text", ODD, ids=ODD.values())
def test_odd_yaml_is_named_at_once(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MoebenchError, match=ODD[text]) as caught:
        config.read_yaml(tmp_path / "odd.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'odd.yaml'}: ")
    assert max(map(len, str(caught.value).splitlines())) < 300


def test_what_an_alias_brings_may_be_overridden(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert config.read_yaml(tmp_path / "a.yaml")["c"] == {"x": 3, "y": 4}


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("name: Züge".encode("latin-1"))
    with pytest.raises(MoebenchError, match=r"a\.yaml: should be UTF-8"):
        config.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("last", 3, "key 'last' has the value 3; ViT-MoE has 2 blocks that can hold experts"),
        ("vision", {"image": 32, "patch": 8}, r"key 'vision\.image' has the value 32; the images that .* prepares have 28"),
        ("vision", {"channels": 3}, r"key 'vision\.channels' has the value 3; the images that .* prepares have 1"),
        ("experts", 10**9, "key 'experts' asks for"),
    ],
)
def test_images_blocks_and_experts_fit_each_other(tmp_path, project, key, value, message):
    shutil.copytree(project / "experiments" / "e3", tmp_path / "experiments" / "e3")
    path = tmp_path / "experiments/e3/profiles/smoke.yaml"
    setting = yaml.safe_load(path.read_text())
    setting[key] = setting[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(setting))
    with pytest.raises(MoebenchError, match=message.replace("ViT-MoE", ".*")):
        Experiment(tmp_path, "e3", "smoke").check()


def test_a_misspelt_corruption_is_named(tmp_path, project):
    shutil.copytree(project / "experiments" / "e3", tmp_path / "experiments" / "e3")
    for profile, name, right in (("smoke", "gausian_noise", "gaussian_noise"), ("real", "elastic_transfrom", "elastic_transform")):
        path = tmp_path / f"experiments/e3/data/{profile}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"corruptions": [name]}))
        with pytest.raises(MoebenchError, match=rf"data/{profile}\.yaml: corruptions names '{name}' \(did you mean '{right}'\?\)"):
            Experiment(tmp_path, "e3", profile).check()


def test_our_corruptions_are_those_that_are_named():
    from moebench.data.corruptions import CORRUPTIONS

    assert all(name == each.__name__ for name, each in CORRUPTIONS.items())


def test_devices_that_are_not_there_are_refused_where_no_launcher_is(project, monkeypatch):
    setting = Experiment(project, "e3", "smoke").setting
    for name in ("LOCAL_RANK", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config.check_devices(Path("a.yaml"), setting.model_copy(update={"devices": 2}))
    with pytest.raises(MoebenchError, match=r"a\.yaml: key 'devices' has the value 3; this machine has 2 GPUs"):
        config.check_devices(Path("a.yaml"), setting.model_copy(update={"devices": 3}))
    with pytest.raises(MoebenchError, match=r"a\.yaml: key 'nodes' has the value 2; start every node with a launcher"):
        config.check_devices(Path("a.yaml"), setting.model_copy(update={"nodes": 2}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MoebenchError, match=r"this machine has no GPU and \d+ cores"):
        config.check_devices(Path("a.yaml"), setting.model_copy(update={"devices": 1000}))
    monkeypatch.setenv("LOCAL_RANK", "0")
    config.check_devices(Path("a.yaml"), setting.model_copy(update={"devices": 1000, "nodes": 2}))


def test_every_check_of_a_router_is_made_without_importing_it(project):
    refused = {}
    for kind, names in (("router", config.routers()), ("layer", config.layers()[2:])):
        for name in names:
            part = config.part(kind, name)
            source = (config.MOE_FOLDER / f"{kind}s" / f"{name}.py").read_text()
            options = {key: 1 if field.is_required() else field.default for key, field in part.options.model_fields.items()}
            bad = {
                key
                for key in options
                if part.refusal(options | {key: -7}, d_model=8, vocabulary=8, experts=4 if kind == "router" else SimpleNamespace(count=4))
            }
            refused[name] = bad
            assert bad or "raise ValueError" not in source or name in ("hash", "dense", "gshard"), name
    assert refused["partitioned"] >= {"members", "k", "overlap", "noise_std", "capacity_factor"}
    assert refused["aoe"] == {"k", "threshold", "capacity_factor"}
    assert refused["moec"] >= {"cluster_size", "dropout", "temperature"}


def test_yaml_that_is_not_a_mapping_or_not_yaml_is_named(copy):
    experiment, _ = copy
    for content, message in (("- a", "should be a mapping"), ("a: [", "not valid YAML")):
        (experiment.home / METHOD).write_text(content)
        with pytest.raises(MoebenchError, match=rf"xmoe_softmax\.yaml: {message}"):
            Experiment(experiment.root, "xmoe", "smoke").check()


def test_a_methods_name_is_a_word(copy):
    experiment, _ = copy
    shutil.copy(experiment.home / METHOD, experiment.home / "methods" / "xmoe-softmax.yaml")
    with pytest.raises(MoebenchError, match=r"xmoe-softmax\.yaml: a method's name is made of letters, digits and underscores"):
        experiment.check()


def test_the_folder_of_benchmark_files_is_asked_for_and_checked(copy, monkeypatch):
    root = copy[0].root
    (root / "params.yaml").write_text("profile: smoke\nfolder:\n")
    monkeypatch.delenv("MOEBENCH_FOLDER", raising=False)
    with pytest.raises(MoebenchError, match="MOEBENCH_FOLDER"):
        config.benchmark_folder(root)
    monkeypatch.setenv("MOEBENCH_FOLDER", "no/such")
    with pytest.raises(MoebenchError, match=r"no/such: no such folder \(from MOEBENCH_FOLDER\)"):
        config.benchmark_folder(root)


def test_a_batch_in_one_part_is_left_out_of_plans_so_that_they_are_those_of_before_the_key():
    options = {"steps": 1, "batch": 8, "rate": 0.1}
    for cls in (Optimisation, Pretraining, ImageTraining):
        more = {"translation": 0} if cls is Pretraining else {}
        assert "accumulate" not in cls(**options, **more).model_dump(mode="json")
        assert cls(**options, **more, accumulate=2).model_dump(mode="json")["accumulate"] == 2
