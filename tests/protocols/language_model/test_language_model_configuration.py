"""Configuration and plan of papers on language models: what is refused, with which message, and which stages there are."""

import subprocess
import sys

import pytest

from moebench.config import layers
from moebench.errors import MoebenchError
from moebench.experiment import Experiment, papers, profiles
from moebench.pipeline.plan import planned
from moebench.protocols.language_model.config import (
    CONSTRUCTED_TASKS,
    HARNESS_TASKS,
    XNLI_LANGUAGES,
    XNLI_TASKS,
    language_of,
    shape_of,
)
from moebench.protocols.language_model.layout import TASK_NAMES

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
        r"moe\.yaml: .* cannot be: heads 5: should be at least 1 and divide the width, 24",
    ),
    (("methods", "moe", "multi_head", {"heads": 2, "head_layers": 4}), r"key 'multi_head\.head_layers' has the value 4"),
    (("methods", "moe", "multi_head", {"heads": 2, "parity": "flops"}), r"key 'multi_head\.parity' has the value 'flops'"),
    (("methods", "dense", "multi_head", {"heads": 2}), "multi_head around layer 'dense' is its maps alone"),
    (("methods", "moe", "split", 7), r"moe\.yaml: .* cannot be: parts 7: should be at least 1 and divide the inner width"),
    (("methods", "aoe", "one_bit", True), "one_bit does not reach the products"),
    (("methods", "dense", "shared", 1), "split and shared belong to layers of experts"),
    (("methods", "aoe", "multi_head", {"heads": 2}), "rank and match are not for experts that are split, or take sub-tokens"),
    (("methods", "removed", "split", 2), "key 'split' has the value 2, but 'moe' was pre-trained with 1"),
    (("data", "texts", "Bad name", {"source": "docstrings"}), "'Bad name' should be made of lower-case letters"),
    (("data", "texts", "own", {"source": "files", "path": "../x.txt"}), r"'\.\./x\.txt' leaves the folder"),
    (("data", "tasks", {"roles": 0}), r"tasks names 'roles' \(did you mean 'role'\?\)"),
    (("data", "tasks", {"role": 2}), "tasks.role 2: should be 0"),
    (("data", "tasks", {"role_pivot": 0}), r"tasks names 'role_pivot' \(did you mean 'role'\?\); tasks are: agreement, role,"),
    (("data", "tasks", {"role_other": 0}), r"tasks names 'role_other'.*; tasks are: agreement, role,"),
    (("data", "tasks", {"xnli_xx": 0}), r"tasks names 'xnli_xx' \(did you mean 'xnli_\w\w'\?\)"),
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


SECOND = (("data", "texts", "second", {"source": "constructed", "language": 1}), ("data", "texts", "english", {"source": "docstrings"}))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"role_secnd": 0}, r"tasks names 'role_secnd' \(did you mean 'role_second'\?\)"),
        ({"role_english": 0}, r"tasks names 'role_english'.*, agreement_second, role_second, entailment_second, continuation_second$"),
        ({"entailment_second": 1}, "tasks.entailment_second 1: should be 0, as constructed tasks have no examples to show"),
    ],
)
def test_a_task_in_another_language_names_the_text_in_it(write, tasks, message):
    with pytest.raises(MoebenchError, match=message):
        write(*SECOND, ("data", "tasks", tasks)).check()


def test_tasks_in_another_language_are_known_and_need_no_pivot(write):
    paper = write(*SECOND, ("data", "tasks", {"entailment": 0, "entailment_second": 0, "xnli_de": 0}))
    paper.check()
    assert paper.data.prepared_tasks == ["entailment", "entailment_second"]
    write(("data", "texts", {"second": {"source": "constructed", "language": 1}}), ("data", "tasks", {"role_second": 0})).check()
    names = {"role": ("role", ""), "role_second": ("role", "second"), "xnli_de": ("xnli", "de"), "arc_easy": ("arc_easy", "")}
    assert {name: language_of(name) for name in names} == names


@pytest.mark.parametrize("paper", ["aoe", "mhmoe"])
def test_every_shipped_profile_is_valid_and_is_checked_without_torch(project, paper):
    code = (
        "import sys; from pathlib import Path; from moebench.experiment import Experiment, profiles; root = Path('.').resolve()\n"
        f"for profile in profiles(root, '{paper}'): Experiment(root, '{paper}', profile).check()\n"
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

    assert {*HARNESS_TASKS, *XNLI_TASKS} <= set(TaskManager().all_tasks)
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


@pytest.mark.parametrize("profile", ["paper_first", "paper_first_multilingual"])
def test_the_first_paper_has_its_sizes_and_steps(project, profile):
    paper = Experiment(project, "mhmoe", profile)
    setting, sizes = paper.setting, {name: shape_of(paper.setting, method, name) for name, method in paper.methods.items()}
    assert sizes["xmoe"] == {"experts": 8, "inner": 3072, "low": 0}
    assert sizes["dense"]["inner"] == 3072
    maps = {"mh_4_parameters": 2, "mh_4_parameters_no_maps": 0, "mh_4_parameters_2_maps": 4, "mh_4_parameters_3_maps": 6}
    for name, heads in {**dict.fromkeys(maps, 4), "mh_2_parameters": 2, "mh_6_parameters": 6}.items():
        weights = 8 * 3 * 768 // heads * sizes[name]["inner"] + maps.get(name, 2) * (768**2 + 768)
        assert weights == pytest.approx(8 * 3 * 768 * 3072, rel=1e-4)
    assert setting.pretrain.batch * paper.data.sequence_length == 2**20
    assert setting.pretrain.steps * setting.pretrain.warmup == 10_000
    assert next(iter(paper.data.texts.values())).tokens == setting.pretrain.steps * 2**20
    rows = {method.published for method in paper.methods.values()}
    for number in ("6", "7"):
        assert set(paper.published.tables[number].rows) - {"n=0", "n=1"} <= rows  # those two are rows of Table 6
    assert {"steps", "context"} <= {key.split(".")[-1] for key in setting.notes}


def test_the_first_paper_is_asked_what_its_tables_2_and_3_have(project):
    english, multilingual = (Experiment(project, "mhmoe", profile) for profile in ("paper_first", "paper_first_multilingual"))
    table = english.published.tables[english.setting.beside]
    assert {column for name in english.data.tasks for column in TASK_NAMES[name] if column in table.columns} == {*table.columns} - {
        "average"
    }
    assert [len([name for name in english.data.tasks if column in TASK_NAMES[name]]) for column in ("TruthfulQA", "PIQA")] == [2, 1]
    languages = [*multilingual.published.tables["3"].columns][:-1]
    assert [*multilingual.data.tasks] == [f"xnli_{language}" for language in languages]
    assert sorted([*languages, "ar"]) == list(XNLI_LANGUAGES)
    assert [pattern.split(".")[1] for pattern in multilingual.data.texts["wikipedia"].sources] == [f"{name}/*" for name in languages]
    assert set(multilingual.data.tasks) == set(Experiment(project, "mhmoe", "real").data.xnli)
    assert multilingual.data.xnli == []  # with the hub's data


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


@pytest.mark.parametrize("layer", layers()[2:])
def test_every_layer_is_checked_without_its_experts(write, layer):
    losses = {"aoe": {"balance": 0, "entropy": 0}}.get(layer, {})
    rank = {"rank": "1/3"} if layer == "aoe" else {}
    write(("methods", "moe", {"label": "x", "layer": layer, "losses": losses} | rank), ("methods", "removed", None)).check()
