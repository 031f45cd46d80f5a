"""The table of uncertainty from made-up records: in-language and zero-shot means, ensembles, holes, and an empty profile."""

import random
import statistics as stdlib
from dataclasses import replace

import pandas as pd
import pytest

from moebench import published
from moebench.data import catalogue
from moebench.experiment import Experiment
from moebench.metrics.uncertainty import DIVERSITY, MEASURES
from moebench.protocols.transfer.calibration import COLUMNS, SHOWN, table4_blocks, table4_uncertainty
from moebench.protocols.transfer.config import Method
from moebench.protocols.transfer.numbers import Expected, table1_xtreme
from moebench.results.records import RECORDS

METHODS = {
    "dense": Method(label="Dense", layer="none"),
    "dense_scratch": Method(label="Random weights", layer="none", pretrained=False),
    "smoe": Method(label="SMoE", layer="moe", router="dot"),
}
LANGUAGES = ("aa", "bb", "cc")
TASK = "constructed_nli"


@pytest.fixture(scope="module")
def expected(project):
    tasks = (TASK, "constructed_qa_parallel")
    experiment = Experiment(project, "xmoe", "cpu")
    return Expected(
        experiment=experiment,
        about=experiment.about,
        data="constructed-1",
        pivots=dict.fromkeys(tasks, "aa"),
        trained_on={name: catalogue.task(name).train for name in tasks},
        methods=METHODS,
        seeds=(0, 1, 2),
        tasks=tasks,
        baseline="smoe",
        pretraining=True,
        published=published.load(experiment.home / "published.yaml"),
    )


def value_of(method, seed, stage, language, metric):
    return random.Random(f"{method}{seed}{stage}{language}{metric}").random()


def rows():
    found = []
    for method in METHODS:
        for stage, seeds in (("finetune", (0, 1, 2)), ("ensemble", (0,))):
            for seed in seeds:
                for language in LANGUAGES:
                    for metric in ("accuracy", *MEASURES, *(DIVERSITY if stage == "ensemble" else ())):
                        found.append((method, seed, stage, TASK, language, metric, value_of(method, seed, stage, language, metric)))
                found.append((method, seed, stage, TASK, "aa", "temperature", 1.5 + seed))
    return found


def frame(found):
    columns = ("method", "seed", "stage", "task", "language", "metric", "value")
    fixed = {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "n": 100}
    return pd.DataFrame([fixed | dict(zip(columns, row, strict=True)) for row in found], columns=list(RECORDS.columns))


def cell(table, method, shift, measure, models=1):
    found = table[
        (table["method"] == method) & (table["shift"] == shift) & (table["measure"] == measure) & (table["models"] == models)
    ].to_dict("records")
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("measure", "metric"), [("score", "accuracy"), ("ece", "ece"), ("aurc", "aurc"), ("nll_scaled", "nll_scaled")])
def test_in_language_is_the_training_language_and_zero_shot_the_mean_of_the_others(expected, measure, metric):
    table = table4_uncertainty(frame(rows()), expected)
    for shift, languages in (("in_language", ("aa",)), ("zero_shot", ("bb", "cc"))):
        seeds = [stdlib.fmean(value_of("dense", seed, "finetune", language, metric) for language in languages) for seed in (0, 1, 2)]
        found = cell(table, "dense", shift, measure)
        assert found["value"] == pytest.approx(stdlib.fmean(seeds))
        assert found["sd"] == pytest.approx(stdlib.stdev(seeds))
        assert (found["n_seeds"], found["languages"], found["note"]) == (3, len(languages), "")
        together = cell(table, "dense", shift, measure, models=3)
        assert together["value"] == pytest.approx(stdlib.fmean(value_of("dense", 0, "ensemble", name, metric) for name in languages))
        assert (together["sd"], together["n_seeds"], together["label"]) == (None, None, "Dense, ensemble of 3 seeds")


def test_the_csv_has_the_temperature_and_the_diversity_of_ensembles(expected):
    table = table4_uncertainty(frame(rows()), expected)
    assert list(table.columns) == list(COLUMNS)
    assert (cell(table, "smoe", "validation", "temperature")["value"], cell(table, "smoe", "validation", "temperature")["sd"]) == (2.5, 1.0)
    for measure in DIVERSITY:
        assert cell(table, "smoe", "in_language", measure, 3)["value"] == value_of("smoe", 0, "ensemble", "aa", measure)
        assert not len(table[(table["models"] == 1) & (table["measure"] == measure)])
    assert len(table) == len(METHODS) * (2 * (1 + len(MEASURES)) + 1 + 2 * (1 + len(MEASURES) + len(DIVERSITY)) + 1)


def test_the_layout_shows_methods_then_ensembles(expected):
    table = table4_uncertainty(frame(rows()), expected)
    blocks = table4_blocks(table, expected)
    headings = ["", f"`{TASK}` (XNLI), in-language: `aa`", f"`{TASK}` (XNLI), zero-shot: mean over 2 languages"]
    assert [block.heading for block in blocks] == headings
    shown = blocks[2]
    assert len(shown.header) == 1 + len(SHOWN)
    labels = ["SMoE", "Dense", "Random weights"]
    assert [row[0] for row in shown.rows] == [*labels, *(f"{label}, ensemble of 3 seeds" for label in labels)]
    nll, ensemble = cell(table, "dense", "zero_shot", "nll"), cell(table, "dense", "zero_shot", "nll", 3)
    assert shown.rows[1][2] == f"{nll['value']:.3f} ± {nll['sd']:.3f} (3)"
    assert shown.rows[4][2] == f"{ensemble['value']:.3f}"


def test_a_seed_without_probabilities_does_not_count_and_is_named(expected):
    def has(row):
        without = row[0] == "dense" and ((row[1], row[2]) == (1, "finetune") or row[2] == "ensemble")
        return not without or (row[5] == "accuracy" and row[2] == "finetune")

    table = table4_uncertainty(frame([row for row in rows() if has(row)]), expected)
    found = cell(table, "dense", "zero_shot", "score")
    seeds = [stdlib.fmean(value_of("dense", seed, "finetune", language, "accuracy") for language in ("bb", "cc")) for seed in (0, 2)]
    assert found["value"] == pytest.approx(stdlib.fmean(seeds))
    assert found["n_seeds"] == 2
    assert found["note"].startswith("no probabilities of seed 1: `dvc repro")
    assert "finetune@dense-constructed_nli-1`" in found["note"]
    assert cell(table, "dense", "zero_shot", "score", 3)["value"] is None
    holes = table4_blocks(table, expected)[-1]
    assert holes.heading == "Empty or incomplete cells"
    assert len(holes.items) == 1
    assert cell(table, "dense", "zero_shot", "score", 3)["note"] == "an ensemble takes the probabilities of every seed"


def test_a_temperature_at_a_bound_is_said_beside_it(expected):
    plain = table4_blocks(table4_uncertainty(frame(rows()), expected), expected)
    bounded = [
        ("smoe", seed, stage, TASK, "aa", "temperature_at_bound", 1.0)
        for seed, stage in ((0, "finetune"), (2, "finetune"), (0, "ensemble"))
    ]
    table = table4_uncertainty(frame(rows() + bounded), expected)
    note = "temperature at a bound (0.01 or 100), as the validation set determines none"
    assert cell(table, "smoe", "validation", "temperature")["note"] == f"{note}: seed 0, seed 2"
    assert cell(table, "smoe", "validation", "temperature", models=3)["note"] == note
    assert not cell(table, "smoe", "in_language", "nll")["note"]
    *same, said = table4_blocks(table, expected)
    assert same == plain
    assert said.heading == "Temperatures at a bound"
    assert [item.split(": ", 1)[1] for item in said.items] == [f"{note}: seed 0, seed 2", note]


def test_one_seed_makes_no_ensemble(expected):
    table = table4_uncertainty(frame([row for row in rows() if row[1] == 0 and row[2] == "finetune"]), replace(expected, seeds=(0,)))
    assert set(table["models"]) == {1}
    assert not set(table["note"]) - {""}


def test_a_language_without_probabilities_leaves_its_seed_out(expected):
    lacking = [row for row in rows() if not (row[:3] == ("smoe", 2, "finetune") and row[4] == "cc" and row[5] == "ece")]
    assert cell(table4_uncertainty(frame(lacking), expected), "smoe", "in_language", "ece")["n_seeds"] == 2


def test_a_profile_without_probabilities_says_why(expected):
    table = table4_uncertainty(frame([row for row in rows() if row[2:6:3] == ("finetune", "accuracy")]), expected)
    assert not len(table)
    (block,) = table4_blocks(table, expected)
    assert "left no probabilities" in block.text[0]
    assert "`dvc repro experiments/xmoe/cpu/dvc.yaml:finetune@smoe-constructed_nli-0`" in block.text[0]


def test_the_table_of_scores_ignores_uncertainty_and_ensembles(expected):
    scores = [row for row in rows() if row[2:6:3] == ("finetune", "accuracy")]
    pd.testing.assert_frame_equal(table1_xtreme(frame(rows()), expected), table1_xtreme(frame(scores), expected))
