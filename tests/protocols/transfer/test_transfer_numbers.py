"""Tables from made-up records whose right answer is known: means, differences, the bar, averages, and what stays empty."""

import math
import random
import statistics as stdlib

import pandas as pd
import pytest
from scipy import stats

from moebench import published
from moebench.data import catalogue
from moebench.experiment import Experiment
from moebench.protocols.transfer import layout
from moebench.protocols.transfer.config import Method
from moebench.protocols.transfer.numbers import AVERAGE, SUITE, Expected, table1_xtreme, table2_perplexity
from moebench.results.records import RECORDS

METHODS = {
    "dense": Method(label="Dense", published="Dense", layer="none"),
    "dense_scratch": Method(label="Dense, random weights", layer="none", pretrained=False),
    "smoe_softmax": Method(label="SMoE softmax", published="SMoE softmax", layer="moe", router="dot"),
    "smoe_softmax_frozen": Method(label="SMoE frozen", layer="moe", router="dot", pretrain_as="smoe_softmax"),
    "xmoe_softmax": Method(label="X-MoE softmax", published="X-MoE softmax", layer="moe", router="xmoe"),
}
LANGUAGES = ("aa", "bb", "cc")


@pytest.fixture(scope="module")
def make(project):
    def make(tasks, seeds=(0, 1, 2), **changes):
        experiment = Experiment(project, "xmoe", "cpu")
        values = {"experiment": experiment, "about": experiment.about, "data": "constructed-1", "methods": METHODS, "seeds": seeds}
        values |= {"pivots": dict.fromkeys(tasks, "aa"), "trained_on": {name: catalogue.task(name).train for name in tasks}}
        values |= {"tasks": tuple(tasks), "baseline": "smoe_softmax", "pretraining": True}
        values |= {"published": published.load(experiment.home / "published.yaml")}
        return Expected(**(values | changes))

    return make


def frame(rows):
    columns = ("method", "seed", "stage", "task", "language", "metric", "value")
    fixed = {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "n": 100}
    return pd.DataFrame([fixed | dict(zip(columns, row, strict=True)) for row in rows], columns=list(RECORDS.columns))


def value_of(method, seed, task, language, metric):
    """A made-up value: the pivot 20 above the others, methods and seeds apart, nothing regular."""
    base = {"dense": 60, "smoe_softmax": 62, "smoe_softmax_frozen": 62.5, "xmoe_softmax": 64, "dense_scratch": 30}[method]
    pivot = 20 if language == "aa" else LANGUAGES.index(language)
    noise = random.Random(f"{method}{seed}{task}{language}{metric}").uniform(-0.5, 0.5)
    return base + pivot + noise + 0.3 * seed - (10 if metric == "em" else 0)


def full(tasks, seeds=(0, 1, 2), shallow=40.0, methods=METHODS):
    rows = []
    for name in tasks:
        for metric in catalogue.task(name).metrics:
            for language in LANGUAGES:
                rows += [
                    (method, seed, "finetune", name, language, metric, value_of(method, seed, name, language, metric))
                    for method in methods
                    for seed in seeds
                ]
                rows.append(("majority", 0, "baseline", name, language, metric, shallow))
                rows.append(("overlap", 0, "baseline", name, language, metric, shallow - 5 if language != "aa" else 99.0))
    return rows


def row_of(table, task, method, section="compared"):
    found = table[(table["section"] == section) & (table["task"] == task) & (table["method"] == method)]
    assert len(found) == 1
    return found.iloc[0].to_dict()


def means(rows, method, task, keep=lambda language: True):
    """Seed → mean over metrics and languages, by looping over the raw rows."""
    values = {}
    for name, seed, stage, other, language, _, value in rows:
        if (name, stage, other) == (method, "finetune", task) and keep(language):
            values.setdefault(seed, []).append(value)
    return {seed: stdlib.fmean(one) for seed, one in values.items()}


@pytest.mark.parametrize("task", ["constructed_pos", "constructed_qa_parallel", "constructed_nli"])
def test_a_cell_is_the_mean_over_languages_then_seeds(make, task):
    rows = full([task])
    found = row_of(table1_xtreme(frame(rows), make([task])), task, "xmoe_softmax")
    seeds = means(rows, "xmoe_softmax", task)
    assert found["value"] == pytest.approx(stdlib.fmean(seeds.values()))
    assert found["sd"] == pytest.approx(stdlib.stdev(seeds.values()))
    assert found["n_seeds"] == 3
    pivot = means(rows, "xmoe_softmax", task, lambda name: name == "aa").values()
    assert (found["pivot"], found["pivot_sd"]) == pytest.approx((stdlib.fmean(pivot), stdlib.stdev(pivot)))
    others = means(rows, "xmoe_softmax", task, lambda name: name != "aa")
    assert found["zero_shot"] == pytest.approx(stdlib.fmean(others.values()))
    assert found["zero_shot_sd"] == pytest.approx(stdlib.stdev(others.values()))
    if task == "constructed_qa_parallel":
        assert (found["f1"] + found["em"]) / 2 == pytest.approx(found["value"])
        assert 9 < found["f1"] - found["em"] < 11
    else:
        assert found["f1"] is None
        assert found["em"] is None


def test_mlqa_across_languages_is_recorded_but_not_averaged(make):
    rows = [
        ("dense", seed, "finetune", "mlqa", language, metric, value + seed)
        for seed in (0, 1)
        for language, value in (("en", 80.0), ("de", 60.0), ("de-en", 0.0), ("en-de", 0.0))
        for metric in ("f1", "em")
    ]
    found = row_of(table1_xtreme(frame(rows), make(["mlqa"], pivots={"mlqa": "en"})), "mlqa", "dense")
    assert (found["value"], found["pivot"], found["zero_shot"]) == (70.5, 80.5, 60.5)


def test_differences_are_paired_with_holm_over_the_compared_methods(make):
    rows = full(["constructed_pos"])
    table = table1_xtreme(frame(rows), make(["constructed_pos"]))
    baseline = means(rows, "smoe_softmax", "constructed_pos")
    p_values = {}
    for method in ("dense", "smoe_softmax_frozen", "xmoe_softmax"):
        mine = means(rows, method, "constructed_pos")
        reference = stats.ttest_rel([mine[seed] for seed in (0, 1, 2)], [baseline[seed] for seed in (0, 1, 2)])
        interval = reference.confidence_interval(0.95)
        found = row_of(table, "constructed_pos", method)
        assert found["difference"] == pytest.approx(stdlib.fmean(mine.values()) - stdlib.fmean(baseline.values()))
        assert (found["ci_low"], found["ci_high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert found["p"] == pytest.approx(reference.pvalue)
        p_values[method] = reference.pvalue
    smallest = min(p_values, key=p_values.get)  # the floor is no competitor: the family has three members
    assert row_of(table, "constructed_pos", smallest)["p_holm"] == pytest.approx(min(1, 3 * p_values[smallest]))
    for section, method in (("compared", "smoe_softmax"), ("floor", "dense_scratch"), ("shallow", "majority")):
        assert row_of(table, "constructed_pos", method, section)["difference"] is None


def test_a_method_tied_with_the_baseline_claims_nothing(make):
    rows = full(["constructed_pos"])
    rows = [row for row in rows if row[0] != "xmoe_softmax"]
    rows += [("xmoe_softmax", *row[1:]) for row in rows if row[0] == "smoe_softmax"]
    found = row_of(table1_xtreme(frame(rows), make(["constructed_pos"])), "constructed_pos", "xmoe_softmax")
    assert found["difference"] is None
    assert found["p_holm"] is None
    assert "does not vary" in found["note"]


def test_one_seed_has_a_value_and_nothing_else(make):
    found = row_of(
        table1_xtreme(frame(full(["constructed_pos"], (0,))), make(["constructed_pos"], (0,))), "constructed_pos", "xmoe_softmax"
    )
    assert found["n_seeds"] == 1
    assert found["value"] is not None
    assert [found[name] for name in ("sd", "difference", "ci_low", "p", "p_holm")] == [None] * 5
    assert found["note"] == "no difference is claimed: 1 of the 3 shared seeds that it takes"
    assert found["clears_bar"] == "undecided"


def test_a_seed_that_lacks_a_language_is_refused_and_named(make):
    rows = [row for row in full(["constructed_pos"]) if row[:5] != ("xmoe_softmax", 1, "finetune", "constructed_pos", "bb")]
    table = table1_xtreme(frame(rows), make(["constructed_pos"]))
    found = row_of(table, "constructed_pos", "xmoe_softmax")
    seeds = means(rows, "xmoe_softmax", "constructed_pos")
    assert found["n_seeds"] == 2
    assert found["value"] == pytest.approx((seeds[0] + seeds[2]) / 2)
    assert found["note"].startswith(
        "seed 1 lacks bb: `dvc repro experiments/xmoe/cpu/dvc.yaml:finetune@xmoe_softmax-constructed_pos-1`; no difference"
    )
    assert row_of(table, "constructed_pos", "dense")["n_seeds"] == 3
    assert row_of(table, AVERAGE, "xmoe_softmax")["n_seeds"] == 2


def test_a_seed_that_lacks_exact_match_is_refused(make):
    task = "constructed_qa_native"
    rows = [row for row in full([task]) if (row[0], row[1], row[5]) != ("dense", 0, "em")]
    found = row_of(table1_xtreme(frame(rows), make([task])), task, "dense")
    assert found["n_seeds"] == 2
    assert "seed 0 lacks aa, bb, cc" in found["note"]


def test_a_method_without_runs_is_an_empty_row_with_the_command(make):
    rows = [row for row in full(["constructed_pos"]) if row[0] != "xmoe_softmax"]
    found = row_of(table1_xtreme(frame(rows), make(["constructed_pos"])), "constructed_pos", "xmoe_softmax")
    assert found["value"] is None
    assert "seed 0 is missing, seed 1 is missing" in found["note"]
    assert "finetune@xmoe_softmax-constructed_pos-0`" in found["note"]
    assert found["published"] == "70.8"


def test_no_records_at_all_make_a_table_of_holes(make):
    table = table1_xtreme(frame([]), make(["constructed_pos"], data="", pivots={}))
    assert table[table["section"] == "compared"]["value"].isna().all()
    assert len(table) == 2 * len(METHODS)


@pytest.mark.parametrize(
    ("dense", "best", "clears"),
    [
        ((50.0, 51.0, 52.0), 47.9, "yes"),  # mean 51, deviation 1
        ((50.0, 51.0, 52.0), 48.0, "no"),  # exactly three deviations are not more than three
        ((50.0, 51.0, 52.0), 70.0, "no"),
        ((99.0, 99.9, 99.9), 20.0, "ceiling"),
        ((50.0, 51.0), 20.0, "undecided"),
    ],
)
def test_a_task_counts_where_dense_clears_the_bar(make, dense, best, clears):
    rows = [("overlap", 0, "baseline", "constructed_nli", language, "accuracy", best) for language in ("bb", "cc")]
    rows += [("majority", 0, "baseline", "constructed_nli", language, "accuracy", 10.0) for language in ("bb", "cc")]
    rows += [(name, 0, "baseline", "constructed_nli", "aa", "accuracy", 100.0) for name in ("overlap", "majority")]
    for seed, value in enumerate(dense):
        rows += [("dense", seed, "finetune", "constructed_nli", language, "accuracy", value) for language in ("bb", "cc")]
        rows.append(("dense", seed, "finetune", "constructed_nli", "aa", "accuracy", 100.0))  # the pivot does not help over the bar
    found = row_of(table1_xtreme(frame(rows), make(["constructed_nli"])), "constructed_nli", "dense")
    assert (found["shallow"], found["shallow_zero_shot"], found["clears_bar"]) == ("overlap", best, clears)


def test_the_average_takes_the_tasks_that_clear_the_bar(make):
    rows = full(["constructed_pos", "constructed_ner"]) + full(["constructed_nli"], shallow=90.0)
    table = table1_xtreme(frame(rows), make(["constructed_pos", "constructed_nli", "constructed_ner"]))
    found = row_of(table, AVERAGE, "xmoe_softmax")
    pos, ner = means(rows, "xmoe_softmax", "constructed_pos"), means(rows, "xmoe_softmax", "constructed_ner")
    seeds = [(pos[seed] + ner[seed]) / 2 for seed in (0, 1, 2)]
    assert found["value"] == pytest.approx(stdlib.fmean(seeds))
    assert found["sd"] == pytest.approx(stdlib.stdev(seeds))
    assert found["difference"] is not None
    assert found["published"] == ""  # two tasks are not the paper's seven


def test_no_average_without_a_task_that_clears_the_bar(make):
    found = row_of(table1_xtreme(frame(full(["constructed_nli"], shallow=90.0)), make(["constructed_nli"])), AVERAGE, "dense")
    assert found["value"] is None
    assert found["note"] == "no task clears the bar"


def test_the_average_of_real_tasks_needs_all_seven(make):
    three, seven = ("xnli", "udpos", "panx"), SUITE
    found = row_of(table1_xtreme(frame(full(three)), make(three)), AVERAGE, "dense")
    assert found["value"] is None
    assert found["note"] == "the average needs all seven tasks; this profile lacks xquad, mlqa, tydiqa, pawsx"
    rows = full(seven, shallow=99.0)  # real tasks count whatever the shallow baselines do
    table = table1_xtreme(frame(rows), make(seven))
    found = row_of(table, AVERAGE, "dense")
    assert found["value"] == pytest.approx(stdlib.fmean(row_of(table, task, "dense")["value"] for task in seven))
    assert (found["published"], found["published_where"]) == ("61.4", "X-MoE Table 1, Avg")
    lacking = frame([row for row in rows if row[:4] != ("dense", 1, "finetune", "xnli")])
    found = row_of(table1_xtreme(lacking, make(seven)), AVERAGE, "dense")
    assert found["n_seeds"] == 2
    assert found["note"].startswith("not every seed has every task")


def test_published_values_stand_beside_ours_and_change_none(make):
    rows = full(["constructed_nli"])
    table = table1_xtreme(frame(rows), make(["constructed_nli"]))
    assert row_of(table, "constructed_nli", "xmoe_softmax")["published"] == "72.0"
    assert row_of(table, "constructed_nli", "xmoe_softmax")["published_where"] == "X-MoE Table 1, XNLI"
    unnamed = row_of(table, "constructed_nli", "smoe_softmax_frozen")
    assert (unnamed["published"], unnamed["published_where"]) == ("", "")
    unpublished = {name: method.model_copy(update={"published": None}) for name, method in METHODS.items()}
    other = table1_xtreme(frame(rows), make(["constructed_nli"], methods=unpublished))
    columns = [name for name in table.columns if not name.startswith("published")]
    pd.testing.assert_frame_equal(table[columns], other[columns])


def with_errors(rows):
    """Each fine-tuned number with a made-up standard error of its own."""
    errors = []
    for name, seed, stage, other, language, metric, _ in rows:
        if stage == "finetune":
            error = 1 + seed + 3 * (language == "aa") + (metric == "em") + random.Random(f"{name}{other}").random()
            errors.append((name, seed, stage, other, language, f"{metric}_bootstrap_se", error))
    return rows + errors


@pytest.mark.parametrize("task", ["constructed_pos", "constructed_qa_parallel"])
def test_the_error_over_examples_is_the_mean_of_the_languages_and_changes_nothing_else(make, task):
    rows, without = with_errors(full([task])), table1_xtreme(frame(full([task])), make([task]))
    table = table1_xtreme(frame(rows), make([task]))
    errors = [row for row in rows if row[5].endswith("_bootstrap_se")]
    for section, method in (("compared", "dense"), ("compared", "xmoe_softmax"), ("floor", "dense_scratch")):
        expected = stdlib.fmean(means(errors, method, task).values())
        assert row_of(table, task, method, section)["bootstrap_se"] == pytest.approx(expected)
    assert row_of(table, task, "majority", "shallow")["bootstrap_se"] is None
    assert row_of(table, AVERAGE, "dense")["bootstrap_se"] is None
    pd.testing.assert_frame_equal(table.drop(columns="bootstrap_se"), without.drop(columns="bootstrap_se"))
    assert without["bootstrap_se"].isna().all()


def test_the_error_of_mlqa_is_that_of_the_languages_in_its_value(make):
    rows = [
        ("dense", 0, "finetune", "mlqa", language, metric, value)
        for language, error in (("de", 1.0), ("en", 3.0), ("de-en", 50.0))
        for metric, value in (("f1", 60.0), ("em", 40.0), ("f1_bootstrap_se", error), ("em_bootstrap_se", error + 1))
    ]
    assert row_of(table1_xtreme(frame(rows), make(["mlqa"], (0,))), "mlqa", "dense")["bootstrap_se"] == 2.5
    lacking = [row for row in rows if row[4:6] != ("en", "em_bootstrap_se")]
    found = row_of(table1_xtreme(frame(lacking), make(["mlqa"], (0,))), "mlqa", "dense")
    assert (found["bootstrap_se"], found["value"]) == (None, 50.0)


def test_the_block_of_uncertainty_stands_below_the_differences_if_there_are_any(make):
    tasks = ["constructed_pos", "constructed_nli"]
    expected = make(tasks)
    rows = [row for row in with_errors(full(tasks)) if row[3] != "constructed_nli" or not row[5].endswith("_se")]
    table = table1_xtreme(frame(rows), expected)
    blocks = layout.table1_blocks(table, expected)
    headings = [block.heading for block in blocks]
    place = headings.index("Uncertainty over test examples")
    assert place > max(number for number, heading in enumerate(headings) if ": difference to" in heading)
    block = blocks[place]
    assert block.header == ("method", "`constructed_pos` (POS)", "`constructed_nli` (XNLI)")
    assert [row[0] for row in block.rows] == [METHODS[name].label for name in expected.compared]
    assert block.rows[0][1:] == (f"{row_of(table, 'constructed_pos', 'smoe_softmax')['bootstrap_se']:.1f}", "—")
    older = layout.table1_blocks(table1_xtreme(frame(full(tasks)), expected), expected)
    assert [block.heading for block in older] == [heading for heading in headings if heading != block.heading]


def test_perplexity_is_the_geometric_mean_over_languages(make):
    per_seed = {0: (10.0, 40.0), 1: (20.0, 20.0), 2: (5.0, 45.0)}  # geometric means 20, 20, 15
    rows = [
        (method, seed, "pretrain", "mlm", language, "perplexity", value + extra * seed)
        for method, extra in (("smoe_softmax", 0), ("xmoe_softmax", 1))
        for seed, pair in per_seed.items()
        for language, value in zip(("aa", "bb"), pair, strict=True)
    ]
    rows.append(("xmoe_softmax", 0, "pretrain", "mlm", "all", "load_entropy", 1.5))
    table = table2_perplexity(frame(rows), make(["constructed_pos"])).set_index("method")
    assert table.loc["smoe_softmax", "value"] == pytest.approx(55 / 3)
    assert table.loc["smoe_softmax", "sd"] == pytest.approx(stdlib.stdev([20, 20, 15]))
    theirs = [20, 21, math.sqrt(7 * 47)]
    reference = stats.ttest_rel(theirs, [20, 20, 15])
    assert table.loc["xmoe_softmax", "difference"] == pytest.approx(stdlib.fmean(theirs) - 55 / 3)
    assert table.loc["xmoe_softmax", "p_holm"] == pytest.approx(reference.pvalue)
    assert (table.loc["xmoe_softmax", "published"], table.loc["xmoe_softmax", "published_where"]) == ("18.72", "X-MoE Table 2, Perplexity")
    assert table.loc["smoe_softmax_frozen", "value"] is None
    assert table.loc["smoe_softmax_frozen", "note"] == "starts from the checkpoints of SMoE softmax: see there"
    assert "pretrain@dense-0`" in table.loc["dense", "note"]
    assert "dense_scratch" not in table.index


def test_a_perplexity_that_lacks_a_language_is_refused(make):
    rows = [("dense", seed, "pretrain", "mlm", language, "perplexity", 10.0) for seed in (0, 1) for language in ("aa", "bb")]
    table = table2_perplexity(frame(rows[:-1]), make(["constructed_pos"], (0, 1))).set_index("method")
    assert table.loc["dense", "n_seeds"] == 1
    assert "seed 1 is incomplete" in table.loc["dense", "note"]


def test_without_pretraining_the_perplexity_table_says_so(make):
    table = table2_perplexity(frame([]), make(["xnli"], pretraining=False))
    assert table["value"].isna().all()
    assert table["note"].str.contains("does not pre-train").all()
