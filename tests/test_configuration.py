"""Every shipped configuration is valid, and every kind of mistake is named with what would be right."""

import shutil

import pytest
import yaml

from moebench import config, config_images
from moebench.errors import MoebenchError
from moebench.stages.select import check, training_sets


@pytest.mark.parametrize("profile", config.PROFILES)
def test_every_shipped_profile_and_method_is_valid(project, profile):
    check(project, profile)
    for paper in config.papers(project, profile):
        if config_images.of_images(project, paper):
            continue
        assert set(training_sets(project, profile)) <= set(config.setting(project, paper, profile).finetune)


def test_router_options_are_read_without_importing_the_router():
    model = config.part("routers", "xmoe").options
    assert model.model_validate({"gate": "sigmoid", "dim": None}).model_dump()["gate"] == "sigmoid"
    with pytest.raises(ValueError, match="gate"):
        model.model_validate({"gate": "relu"})


@pytest.fixture
def copy(tmp_path, project):
    """A copy of the configuration, and a function that edits one of its files."""
    for folder in ("experiments", "data/profiles"):
        shutil.copytree(project / folder, tmp_path / folder)
    shutil.copy(project / "params.yaml", tmp_path)

    def edit(file, change):
        path = tmp_path / file
        value = yaml.safe_load(path.read_text())
        change(value)
        path.write_text(yaml.safe_dump(value))

    return tmp_path, edit


METHOD = "experiments/xmoe/methods/xmoe_softmax.yaml"
ENSEMBLE = "experiments/xmoe/methods/mc_dropout.yaml"
SETTING = "experiments/xmoe/profiles/smoke.yaml"
DATA = "data/profiles/smoke.yaml"
MISTAKES = [
    (METHOD, lambda v: v.update(ruoter="x"), r"unknown key 'ruoter' \(did you mean 'router'\?\)"),
    (METHOD, lambda v: v.update(router="xmeo"), r"'xmeo' \(did you mean 'xmoe'\?\); routers are: .*dot"),
    (METHOD, lambda v: v["options"].update(temprature=1), r"unknown key 'options\.temprature' \(did you mean 'temperature'\?\)"),
    (METHOD, lambda v: v["options"].update(gate="relu"), r"key 'options\.gate' has the value 'relu'.*'softmax' or 'sigmoid'"),
    (METHOD, lambda v: v.update(layer="none"), "layer 'none' takes no router"),
    (METHOD, lambda v: v.update(losses={"balance": "much"}), r"key 'losses\.balance' has the value 'much'"),
    (METHOD, lambda v: v.update(losses={"balanse": 1}), r"unknown key 'losses\.balanse' \(did you mean 'balance'\?\)"),
    (METHOD, lambda v: v.update(losses={"z": 1}), r"key 'losses\.balance' is missing: router 'xmoe' has this loss"),
    (METHOD, lambda v: v.update(layer="moee"), r"layer 'moee' takes no router"),
    (METHOD, lambda v: (v.update(layer="dens"), v.pop("router")), r"'dens' \(did you mean 'dense'\?\); layers are: none, moe, dense"),
    (METHOD, lambda v: v.update(shared=8), "leave 0 experts of inner width 128"),
    (METHOD, lambda v: v.update(fine_grained=200), "of inner width 0, of 8 of inner width 128"),
    (SETTING, lambda v: v.update(routers={"training_sets": ["constructed_po"]}), r"'constructed_po' \(did you mean 'constructed_pos'\?\)"),
    (SETTING, lambda v: v.update(routers={"methods": ["swich"]}), r"key 'routers\.methods' names 'swich' \(did you mean 'switch'\?\)"),
    (SETTING, lambda v: v.update(routers={"methods": ["dense"]}), "'dense'.*; methods with table 'routers' are: "),
    (SETTING, lambda v: v.update(options={"xmo_softmax": {}}), r"key 'options\.xmo_softmax' \(did you mean 'xmoe_softmax'\?\)"),
    (
        SETTING,
        lambda v: v.update(options={"xmoe_softmax": {"dimm": 2}}),
        r"unknown key 'options\.xmoe_softmax\.dimm' \(did you mean 'dim'\?\)",
    ),
    (
        SETTING,
        lambda v: v.update(ensembles={"training_sets": ["constructed_nre"]}),
        r"key 'ensembles\.training_sets'.*mean 'constructed_ner'",
    ),
    (SETTING, lambda v: v.update(ensembles={"methods": ["switch"]}), "'switch'.*; methods with table 'ensembles' are: batch_ensemble, mc_"),
    (SETTING, lambda v: v.update(routers={"methods": ["mc_dropout"]}), "'mc_dropout'.*; methods with table 'routers' are: "),
    (SETTING, lambda v: v.update(methods=["mc_dropout"]), "with table 'main' are: "),
    (ENSEMBLE, lambda v: v.update(ensemble="mc_dropuot"), "key 'ensemble' has the value 'mc_dropuot'.*'mc_dropout' or 'batch_ensemble'"),
    (ENSEMBLE, lambda v: v.pop("ensemble"), "table 'ensembles' needs ensemble"),
    (ENSEMBLE, lambda v: v.pop("table"), "table 'main' takes no ensemble"),
    (ENSEMBLE, lambda v: v.pop("members"), "members 1: should be 2 or more"),
    (METHOD, lambda v: v.update(members=2), "members 2: should be 1 without an ensemble"),
    (ENSEMBLE, lambda v: v.pop("dropout"), "dropout is required for ensemble 'mc_dropout'"),
    (ENSEMBLE, lambda v: v.update(dropout=0), "key 'dropout' has the value 0: .* greater than 0"),
    (ENSEMBLE, lambda v: v.update(ensemble="batch_ensemble"), "dropout is not an option for ensemble 'batch_ensemble'"),
    (METHOD, lambda v: v.update(dropout=0.1), "dropout is not an option for ensemble None"),
    (ENSEMBLE, lambda v: v.pop("pretrain_as"), "pretrain_as has to name a method with the same layer"),
    (ENSEMBLE, lambda v: v.update(pretrain_as="smoe_softmax"), "key 'layer' has the value 'none', but 'smoe_softmax' was pre-trained with"),
    (ENSEMBLE, lambda v: v.update(pretrain_as="batch_ensemble"), "'batch_ensemble': both have to be pre-trained, that one by itself"),
    (METHOD, lambda v: v.pop("label"), "key 'label' is missing"),
    (METHOD, lambda v: v.update(pretrain_as="smoe_softmax"), "'smoe_softmax' was pre-trained with"),
    (METHOD, lambda v: v.update(pretrain_as="smoe_soft"), r"unknown method 'smoe_soft'.*did you mean 'smoe_softmax'"),
    (SETTING, lambda v: v["encoder"].update(heads=5), "width 64 is not a multiple of heads 5"),
    (SETTING, lambda v: v["encoder"].update(head=4), r"unknown key 'encoder\.head' \(did you mean 'heads'\?\)"),
    (SETTING, lambda v: v.update(seeds=[]), "key 'seeds'"),
    (SETTING, lambda v: v.update(baseline="dens"), r"'dens' \(did you mean 'dense'\?\)"),
    (SETTING, lambda v: v.update(methods=["dense", "densee"]), r"'densee' \(did you mean 'dense'\?\)"),
    (SETTING, lambda v: v["finetune"].pop("constructed_pos"), r"'finetune\.constructed_pos' is missing"),
    (SETTING, lambda v: v["finetune"]["constructed_pos"].update(epochs=2), "give either steps or epochs"),
    (DATA, lambda v: v["tasks"].append("constructed_pso"), r"unknown task 'constructed_pso' \(did you mean 'constructed_pos'\?\)"),
    (DATA, lambda v: v["tasks"].append("xnli"), "names 'xnli', which source 'constructed' does not have"),
    (DATA, lambda v: v["constructed"].update(languages=1), r"'constructed\.languages' has the value 1.*greater than or equal to 2"),
    (DATA, lambda v: v["tokens"].pop("vocabulary"), "vocabulary is required for source 'trained'"),
]


@pytest.mark.parametrize(("file", "change", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_named_with_its_file_and_what_would_be_right(copy, file, change, message):
    root, edit = copy
    edit(file, change)
    with pytest.raises(MoebenchError, match=message) as caught:
        check(root, "smoke")
    assert file.rpartition("/")[2] in str(caught.value) or "task" in message or "unknown method" in message


def test_yaml_that_is_not_a_mapping_or_not_yaml_is_named(copy):
    root, _ = copy
    for content, message in (("- a", "should be a mapping"), ("a: [", "not valid YAML")):
        (root / METHOD).write_text(content)
        with pytest.raises(MoebenchError, match=rf"xmoe_softmax\.yaml: {message}"):
            check(root, "smoke")


def test_the_folder_of_benchmark_files_is_asked_for_and_checked(copy, monkeypatch):
    root, _ = copy
    monkeypatch.delenv("MOEBENCH_FOLDER", raising=False)
    with pytest.raises(MoebenchError, match="MOEBENCH_FOLDER"):
        config.benchmark_folder(root)
    monkeypatch.setenv("MOEBENCH_FOLDER", "no/such")
    with pytest.raises(MoebenchError, match=r"no/such: no such folder \(from MOEBENCH_FOLDER\)"):
        config.benchmark_folder(root)
