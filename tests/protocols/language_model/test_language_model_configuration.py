"""Configuration and plan of papers on language models: what is refused, with which message, and which stages there are."""

import subprocess
import sys

import pytest

from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles
from moebench.pipeline.plan import planned
from moebench.protocols.language_model.config import CONSTRUCTED_TASKS, HARNESS_TASKS, shape_of

REFUSED = [
    (("data", "texts", {}), r"data/smoke\.yaml: key 'texts'"),
    (("data", "texts", "pivot", "source", "docstring"), r"data/smoke\.yaml: key 'texts\.pivot.*'.*docstring"),
    (("data", "constructed", None), r"data/smoke\.yaml: .*'constructed' belongs to, and is required by"),
    (("data", "texts", "second", {"source": "constructed"}), "texts 'pivot' and 'second' are both constructed language 0"),
    (
        ("data", "texts", "second", {"source": "constructed", "language": 9}),
        r"texts\.second\.language 9: should be below constructed.languages",
    ),
    (("data", "texts", "pivot", "language", 1), "is asked in the constructed pivot language, which is none of the texts"),
    (("setting", "experts_of", {"moo": 3}), r"key 'experts_of' names 'moo' \(did you mean 'moe'\?\)"),
    (("setting", "sparse_every", 9), r"smoke\.yaml: key 'sparse_every' has the value 9; there are \d+ blocks"),
    (
        ("methods", "moe", "multi_head", {"heads": 5, "parity": "parameters"}),
        r"moe\.yaml: heads 5: should be at least 1 and divide the width, 24",
    ),
    (("methods", "moe", "multi_head", {"heads": 2, "head_layers": 4}), r"key 'multi_head\.head_layers' has the value 4"),
    (("methods", "moe", "multi_head", {"heads": 2, "parity": "flops"}), r"key 'multi_head\.parity' has the value 'flops'"),
    (("methods", "dense", "multi_head", {"heads": 2}), "multi_head around layer 'dense' is its maps alone"),
    (("methods", "moe", "split", 7), r"moe\.yaml: parts 7: should be at least 1 and divide the inner width"),
    (("methods", "aoe", "one_bit", True), "one_bit does not reach the products"),
    (("methods", "dense", "shared", 1), "split and shared belong to layers of experts"),
    (("methods", "aoe", "multi_head", {"heads": 2}), "rank and match are not for experts that are split, or take sub-tokens"),
    (("methods", "removed", "split", 2), "key 'split' has the value 2, but 'moe' was pre-trained with 1"),
    (("data", "texts", "Bad name", {"source": "docstrings"}), "'Bad name' should be made of lower-case letters"),
    (("data", "texts", "own", {"source": "files", "path": "../x.txt"}), r"'\.\./x\.txt' leaves the folder"),
    (("data", "tasks", {"roles": 0}), r"tasks names 'roles' \(did you mean 'role'\?\)"),
    (("data", "tasks", {"role": 2}), "tasks.role 2: should be 0"),
    (("data", "tokens", {"source": "checkpoint"}), "checkpoint is required for source 'checkpoint'"),
    (("data", "sequence_length", 64), r"smoke\.yaml: key 'decoder\.context' has the value 32; .*has sequence_length 64"),
    (("setting", "beside", "9"), r"smoke\.yaml: key 'beside' has the value '9'; published tables are: 1, 2"),
    (("methods", "aoe", "rank", None), r"aoe\.yaml: key 'rank' is missing"),
    (("data", "texts", "more", {"source": "docstrings", "packages": ["clik"]}), r"packages names 'clik' \(did you mean 'click'\?\)"),
    (("setting", "decoder", "heads", 5), "width 24 is not a multiple of 2 · heads 5"),
    (("setting", "pretrain", "floor", 1.5), "key 'pretrain.floor' has the value 1.5"),
    (("methods", "moe", "router", "topkk"), r"moe\.yaml: key 'router' has the value 'topkk' \(did you mean 'topk'\?\)"),
    (("methods", "dense", "layer", "none"), "layer 'none': a transformer's block has a feed-forward layer"),
    (("methods", "moe", "router", "damoe"), "'damoe', which looks at attention probabilities"),
    (("methods", "moe", "router", None), "layer 'moe' needs a router"),
    (("methods", "aoe", "options", {"k": 9}), r"aoe\.yaml: key 'options\.k' has the value 9: .*here are 4 experts"),
    (("methods", "aoe", "losses", {"balance": 0}), r"aoe\.yaml: key 'losses\.entropy' is missing"),
    (("methods", "aoe", "rank", "3/3"), "rank 3/3: should be above 0 and below 1"),
    (("methods", "aoe", "rank", "1/0"), "rank 1/0: should be above 0 and below 1"),
    (("methods", "aoe", "rank", "1/99"), r"aoe\.yaml: key 'rank' has the value 1/99; of width 24 that leaves"),
    (("methods", "aoe", "match", "rank"), "with match 'rank' it follows from the width"),
    (("methods", "aoe", "coupling", 1.0), "coupling 1 is a loss of router and experts, which layer 'aoe' has not"),
    (("methods", "dense", "rank", "1/3"), "rank and match belong to layers of experts"),
    (("methods", "moe", "wide", 2), "wide 2 belongs to layer 'dense'"),
    (("methods", "removed", "pretrain_as", None), "table 'removed' and pretrain_as belong together"),
    (("methods", "removed", "pretrain_as", "moo"), r"unknown method 'moo' .*did you mean 'moe'"),
    (("methods", "removed", "rank", "1/3"), "key 'rank' has the value '1/3', but 'moe' was pre-trained with None"),
    (("methods", "removed", "losses", {"balance": 1, "entropy": 0}), "trains nothing: give 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[" ".join(map(str, change)) for change, _ in REFUSED])
def test_what_cannot_be_is_refused(write, change, message):
    with pytest.raises(MoebenchError, match=message):
        write(change).check()


def test_every_shipped_profile_is_valid_and_is_checked_without_torch(project):
    code = (
        "import sys; from pathlib import Path; from moebench.experiment import Experiment, profiles; root = Path('.').resolve()\n"
        "for profile in profiles(root, 'aoe'): Experiment(root, 'aoe', profile).check()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)
    assert "aoe" in papers(project)
    assert {"smoke", "cpu", "cpu_more", "cpu_selection", "real", "paper", "paper_4b"} <= set(profiles(project, "aoe"))


def test_the_published_configurations_have_the_published_sizes(project):
    paper = Experiment(project, "aoe", "paper")
    setting, sizes = paper.setting, {name: shape_of(paper.setting, method, name) for name, method in paper.methods.items()}
    assert [(sizes[f"aoe_{low}"]["low"], sizes[f"aoe_{low}"]["inner"]) for low in (64, 128, 256, 512)] == [
        (64, 4393),
        (128, 4194),
        (256, 3840),
        (512, 3264),
    ]
    assert sizes["moe_balance"] == {"experts": 8, "inner": 3072, "low": 0}
    assert setting.pretrain.steps * setting.pretrain.batch * paper.data.sequence_length == pytest.approx(100e9, rel=1e-4)
    assert [paper.methods[name].published for name in ("moe", "aoe_512_balance", "aoe_expert_choice")] == [
        "MoE",
        "AoE 512 + L_aux",
        "AoE, expert choice",
    ]
    assert shape_of(Experiment(project, "aoe", "paper_4b").setting, paper.method("aoe_400_balance"), "")["low"] == 400


def test_all_rows_of_tables_2_and_3_run_under_paper_and_those_of_1_6_and_7_are_there(project):
    paper = Experiment(project, "aoe", "paper")
    rows = {method.published for method in paper.methods.values()}
    for number in ("2", "3"):
        assert set(paper.published.tables[number].rows) <= rows
    every = {paper.method(path.stem).published for path in (paper.home / "methods").glob("*.yaml")}
    for number in ("1", "6", "7"):
        assert set(paper.published.tables[number].rows) - {"with router"} <= every


def test_a_trained_model_without_its_router_is_examined_and_not_trained(write):
    paper = write()
    names = {(run.stage, run.name, run.start, run.part) for run in paper.runs}
    assert ("pretrain", "moe-0", "", "train") in names
    assert ("finetune", "removed-examination-0", "moe-0", "examination") in names
    assert not any(stage == "pretrain" and name.startswith("removed") for stage, name, _, _ in names)


def test_a_change_reaches_only_the_runs_that_depend_on_it(write):
    before = planned(write())

    def changed(*change):
        after = planned(write(change))
        return sorted(name for name in before if before[name] != after[name] and name.split("/")[0] in ("pretrain", "finetune"))

    assert changed("methods", "aoe", "losses", {"balance": 0.05, "entropy": 0}) == ["pretrain/aoe"]  # examination starts from its weights
    assert changed("methods", "removed", "options", {"node": "up"}) == ["finetune/removed-examination"]
    assert changed("setting", "examine_batch", 8) == [f"finetune/{name}-examination" for name in ("aoe", "dense", "moe", "removed")]
    assert changed("methods", "aoe", "label", "other") == []


@pytest.mark.slow
def test_tasks_of_the_harness_are_known_to_it_and_constructed_ones_to_their_source():
    from lm_eval.tasks import TaskManager

    from moebench.data import choices

    assert set(HARNESS_TASKS) <= set(TaskManager().all_tasks)
    assert choices.TASKS == CONSTRUCTED_TASKS


def test_the_follow_up_of_mh_moe_has_its_experts(project):
    paper = Experiment(project, "mhmoe", "paper")
    sizes = {name: shape_of(paper.setting, method, name) for name, method in paper.methods.items()}
    assert sizes["smoe"] == {"experts": 8, "inner": 2048, "low": 0}
    assert sizes["fine_grained"] == {"experts": 16, "inner": 1024, "low": 0}
    assert sizes["mh_2"] == {"experts": 40, "inner": 768, "low": 0}
    assert sizes["mh_3"] == {"experts": 96, "inner": 512, "low": 0}
    cpu = Experiment(project, "mhmoe", "cpu")
    here = {name: shape_of(cpu.setting, method, name) for name, method in cpu.methods.items()}
    assert {name: 16 * one["inner"] for name, one in here.items() if name in sizes} == {
        name: one["inner"] for name, one in sizes.items() if name in here
    }
    assert (here["mh_2"]["experts"], here["mh_3"]["experts"]) == (41, 93)  # by the formula; the follow-up takes 40 and 96


def _plan(experiment, method):
    run = next(run for run in experiment.runs if (run.stage, run.method) == ("pretrain", method))
    return experiment.protocol.runs.plan(experiment, run).config


def test_what_a_method_does_not_have_is_not_in_its_plan(project):
    aoe, mhmoe = Experiment(project, "aoe", "cpu"), Experiment(project, "mhmoe", "cpu")
    plan = _plan(aoe, "moe_balance")
    assert not {"multi_head", "shared", "one_bit", "split"} & plan["method"].keys()
    assert "sparse_every" not in plan
    assert _plan(mhmoe, "mh_2")["method"]["multi_head"]["heads"] == 2
    assert _plan(mhmoe, "mh_2")["sparse_every"] == 2
