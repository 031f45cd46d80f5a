"""Every kind of mistake in the configuration of a paper on texts is named with what would be right."""

import pytest

from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.protocols.transfer.config import training_sets


@pytest.mark.parametrize("profile", ["cpu", "paper", "real", "smoke"])
def test_every_training_set_of_a_shipped_profile_has_its_optimisation(project, profile):
    experiment = Experiment(project, "xmoe", profile)
    assert set(training_sets(experiment)) <= set(experiment.setting.finetune)


METHOD = "methods/xmoe_softmax.yaml"
ENSEMBLE = "methods/mc_dropout.yaml"
SETTING = "profiles/smoke.yaml"
DATA = "data/smoke.yaml"
MISTAKES = [
    (METHOD, lambda v: v.update(layer="none"), "layer 'none' takes no router"),
    (METHOD, lambda v: v.update(layer="moee"), r"layer 'moee' takes no router"),
    (METHOD, lambda v: v.update(shared=8), "leave 0 experts of inner width 128"),
    (METHOD, lambda v: v.update(fine_grained=200), "of inner width 0, of 8 of inner width 128"),
    (SETTING, lambda v: v["routers"].update(training_sets=["constructed_po"]), r"'constructed_po' \(did you mean 'constructed_pos'\?\)"),
    (SETTING, lambda v: v.update(routers={"methods": ["swich"]}), r"key 'routers\.methods' names 'swich' \(did you mean 'switch'\?\)"),
    (SETTING, lambda v: v.update(routers={"methods": ["dense"]}), "'dense'.*; methods with table 'routers' are: "),
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
    (
        METHOD,
        lambda v: v.update(layer="aoe", router=None, options={}, losses={"balance": 0, "entropy": 0}),
        "'aoe', which works with Factorised",
    ),
    (ENSEMBLE, lambda v: v.pop("pretrain_as"), "pretrain_as has to name a method with the same layer"),
    (ENSEMBLE, lambda v: v.update(pretrain_as="smoe_softmax"), "key 'layer' has the value 'none', but 'smoe_softmax' was pre-trained with"),
    (ENSEMBLE, lambda v: v.update(pretrain_as="batch_ensemble"), "'batch_ensemble': both have to be pre-trained, that one by itself"),
    (METHOD, lambda v: v.update(pretrain_as="smoe_softmax"), "'smoe_softmax' was pre-trained with"),
    (SETTING, lambda v: v["encoder"].update(heads=5), "width 64 is not a multiple of heads 5"),
    (SETTING, lambda v: v.update(methods=["dense", "densee"]), r"'densee' \(did you mean 'dense'\?\)"),
    (SETTING, lambda v: v["finetune"].pop("constructed_pos"), r"'finetune\.constructed_pos' is missing"),
    (SETTING, lambda v: v["finetune"]["constructed_pos"].update(epochs=2), "give either steps or epochs"),
    (DATA, lambda v: v["tasks"].append("constructed_pso"), r"tasks names 'constructed_pso' \(did you mean 'constructed_pos'\?\)"),
    (DATA, lambda v: v["tasks"].append("xnli"), "names 'xnli', which source 'constructed' does not have"),
    (DATA, lambda v: v["constructed"].update(languages=1), r"'constructed\.languages' has the value 1.*greater than or equal to 2"),
    (
        DATA,
        lambda v: v["tokens"].update(vocabulary=20),
        r"key 'tokens\.vocabulary' has the value 20; should be at least \d+: each character",
    ),
    ("methods/soft_moe.yaml", lambda v: v["options"].update(slots=10**9), r"key 'options\.slots' asks for \d+ GiB at least"),
    (DATA, lambda v: v["tokens"].pop("vocabulary"), "vocabulary is required for source 'trained'"),
]


@pytest.mark.parametrize(("file", "change", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_a_mistake_is_named_with_its_file_and_what_would_be_right(copy, file, change, message):
    experiment, edit = copy
    edit(file, change)
    with pytest.raises(MoebenchError, match=message) as caught:
        experiment.check()
    assert file in str(caught.value) or "task" in message or "unknown method" in message
