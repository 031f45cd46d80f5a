"""How experiments and runs are called, and what is said of those that are not there."""

import pytest

from moebench.errors import MoebenchError
from moebench.experiment import Experiment, Run, experiments


def test_the_command_of_a_run(tmp_path):
    experiment = Experiment(tmp_path, "xmoe", "cpu")
    finetune, pretrain = Run("finetune", "dense", 0, "udpos", "dense-0", "udpos"), Run("pretrain", "dense", 2)
    assert experiment.command(finetune) == "dvc repro experiments/xmoe/cpu/dvc.yaml:finetune@dense-udpos-0"
    assert experiment.command(pretrain) == "dvc repro experiments/xmoe/cpu/dvc.yaml:pretrain@dense-2"
    assert experiment.address("evaluate") == "experiments/xmoe/cpu/dvc.yaml:evaluate"


def test_a_run_is_found_by_its_row_of_provenance():
    row = {"stage": "finetune", "method": "dense", "seed": 1, "task": "udpos", "commit": "abc"}
    assert Run.of(row) == Run("finetune", "dense", 1, "udpos", "dense-1", "udpos")
    assert Run.of(row | {"stage": "pretrain", "task": "mlm"}) == Run("pretrain", "dense", 1, part="corpus")
    assert Run.of(row) != Run("finetune", "dense", 2, "udpos")


def test_what_every_run_reads_and_starts_from(project):
    experiment = Experiment(project, "xmoe", "smoke")
    runs = {(run.stage, run.name): run for run in experiment.runs}
    pretrain, finetune = runs["pretrain", "smoe_softmax-0"], runs["finetune", "smoe_softmax_frozen-constructed_ner-0"]
    assert (pretrain.start, pretrain.part) == ("", "corpus")
    assert (finetune.start, finetune.part) == ("smoe_softmax-0", "constructed_ner")
    assert experiment.start(finetune) == experiment.folder(pretrain) / "model.safetensors"
    assert {run.start for run in experiment.runs} - {""} == {run.name for run in experiment.runs if run.stage == "pretrain"}


@pytest.mark.parametrize(
    ("profile", "paper", "message"),
    [
        ("smoke", "xmeo", r"unknown paper 'xmeo' \(did you mean 'xmoe'\?\); papers are: "),
        ("smok", "xmoe", r"unknown profile 'smok' of paper 'xmoe' \(did you mean 'smoke'\?\); profiles are: cpu, paper, real, smoke"),
        ("smok", None, r"unknown profile 'smok' \(did you mean 'smoke'\?\)"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(project, profile, paper, message):
    with pytest.raises(MoebenchError, match=message):
        experiments(project, profile, paper)
    assert [one.paper for one in experiments(project, "smoke", "xmoe")] == ["xmoe"]
