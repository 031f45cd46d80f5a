"""Every shipped configuration is valid, and every kind of mistake is named with what would be right."""

import shutil
from pathlib import Path

import pytest
import yaml

from moebench import config
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles

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


@pytest.fixture
def copy(tmp_path, project):
    """A copy of a paper's configuration, and a function that edits one of its files."""
    shutil.copytree(project / "experiments" / "xmoe", tmp_path / "experiments" / "xmoe")
    experiment = Experiment(tmp_path, "xmoe", "smoke")

    def edit(file, change):
        path = experiment.home / file
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value))

    return experiment, edit


METHOD = "methods/xmoe_softmax.yaml"
SETTING = "profiles/smoke.yaml"
ABOUT = "experiment.yaml"
MISTAKES = [
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
    (METHOD, lambda v: (v.update(layer="dens"), v.pop("router")), r"'dens' \(did you mean 'dense'\?\); layers are: none, moe, dense"),
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
