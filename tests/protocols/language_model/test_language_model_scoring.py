"""Choices become accuracy and calibration; records become tables; what is not there is said."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss

from moebench.errors import MoebenchError
from moebench.files import write_jsonl
from moebench.pipeline.tabulate import expectation
from moebench.protocols.language_model import numbers, tables
from moebench.protocols.language_model.config import METRICS, language_of
from moebench.protocols.language_model.scoring import chosen, norm_points
from moebench.results.records import COSTS, CURVES, PROVENANCE, RECORDS
from moebench.results.summaries import values_of
from moebench.results.tables import Measured


@pytest.fixture
def answered(tmp_path):
    """Sixty items of two to four choices with random likelihoods, as a file, and as they are."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        choices = int(generator.integers(2, 5))
        lengths = generator.integers(1, 30, choices).tolist()
        scores = (-generator.gamma(2, 3, choices)).tolist()
        label = int(generator.integers(choices))
        rows.append({"id": str(number), "label": label, "loglikelihoods": scores, "lengths_characters": lengths})
    write_jsonl(tmp_path / "role.jsonl", rows)
    return tmp_path / "role.jsonl", rows


def test_choices_are_judged_as_other_libraries_do(answered):
    path, rows = answered
    found = {row["metric"]: row["value"] for row in chosen("role", path)}
    labels = [row["label"] for row in rows]
    scores = np.full((60, 4), -np.inf)
    for place, row in enumerate(rows):
        scores[place, : len(row["loglikelihoods"])] = row["loglikelihoods"]
    by_length = [int(np.argmax(np.divide(row["loglikelihoods"], row["lengths_characters"]))) for row in rows]
    probs = np.array([np.pad(np.exp(s := np.array(row["loglikelihoods"])) / np.exp(s).sum(), (0, 4 - len(s))) for row in rows])
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(labels, scores.argmax(1)))
    assert found["accuracy_normalised"] == pytest.approx(100 * accuracy_score(labels, by_length))
    assert found["nll"] == pytest.approx(log_loss(labels, probs, labels=range(4)))
    assert found["brier"] == pytest.approx(np.mean(((probs - np.eye(4)[labels]) ** 2).sum(1)))
    confidence, right = probs.max(1), probs.argmax(1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    assert found["ece"] == pytest.approx(sum(abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(15)) / 60)
    assert {row["n"] for row in chosen("role", path)} == {60}
    assert set(found) <= set(METRICS)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "0", "label": 2, "loglikelihoods": [-1.0, -2.0], "lengths_characters": [1, 2]},
        {"id": "0", "label": 0, "loglikelihoods": [-1.0, -2.0], "lengths_characters": [1]},
        {"id": "0", "label": 0, "loglikelihoods": "x", "lengths_characters": [1]},
        {"id": "0", "loglikelihoods": [-1.0], "lengths_characters": [1]},
    ],
)
def test_a_damaged_line_of_choices_is_named(tmp_path, row):
    write_jsonl(tmp_path / "role.jsonl", [row])
    with pytest.raises(MoebenchError, match=r"role\.jsonl: line 1 should have label"):
        chosen("role", tmp_path / "role.jsonl")


def test_norms_become_points_of_a_curve_an_expert(tmp_path):
    path = tmp_path / "norms.json"
    path.write_text(json.dumps([{"step": 5, "norms": [[1.0, 2.0]]}, {"step": 10, "norms": [[3.0, 4.0]]}]))
    assert [(row["curve"], row["point"], row["x"], row["y"]) for row in norm_points(path)] == [
        ("norm.layer01.expert001", 0, 5.0, 1.0),
        ("norm.layer01.expert002", 0, 5.0, 2.0),
        ("norm.layer01.expert001", 1, 10.0, 3.0),
        ("norm.layer01.expert002", 1, 10.0, 4.0),
    ]
    path.write_text('{"step": 5}')
    with pytest.raises(MoebenchError, match=r"norms\.json: is no list of steps and norms"):
        norm_points(path)


def rows_for(paper, without=()):
    """Records as a finished evaluation has them: values follow from method and seed."""
    rows = []
    common = {"profile": "smoke", "data": "toy-1", "paper": "aoe", "stage": "finetune"}
    for place, name in enumerate(paper.methods):
        for seed in paper.setting.seeds:
            value = 60 + 10 * place + seed
            keys = [
                (*language_of(task), metric)
                for task in paper.data.tasks
                for metric in ("accuracy", "accuracy_normalised", "nll", "brier", "ece")
            ]
            keys += [("text", "pivot", metric) for metric in ("nll", "perplexity", "bits_per_byte")]
            keys += [("routing", where, metric) for where in ("all", "layer01", "layer02") for metric in ("load_entropy", "router_entropy")]
            keys += [("routing", f"layer01.expert{expert:03d}", "load") for expert in (1, 2)]
            for task, language, metric in keys:
                if (name, task) not in without:
                    rows.append(
                        common
                        | {"method": name, "seed": seed, "task": task, "language": language, "metric": metric, "value": value, "n": 9}
                    )
    for task, value in (("role", 50.0), ("entailment", 64.9)):
        row = {"method": "overlap", "seed": 0, "task": task, "language": "", "metric": "accuracy", "value": value, "n": 9}
        rows.append(common | row | {"stage": "baseline"})
    return pd.DataFrame(rows)


def measured_of(records):
    frames = [pd.DataFrame(columns=list(form.columns)) for form in (PROVENANCE, COSTS, CURVES)]
    return Measured(records, *frames)


def tables_of(paper, records):
    measured = measured_of(records[list(RECORDS.columns)])
    expected = expectation(paper, measured, paper.results)
    return expected, tables.tables(expected, measured)


def test_a_task_that_a_shallow_baseline_solves_does_not_count(write):
    paper = write(("setting", "seeds", [0, 1, 2]))
    records = rows_for(paper)
    expected = numbers.Expected(**vars(tables_of(paper, records)[0]), texts=("pivot",), tasks=("role", "entailment"))
    found = numbers.counted(values_of(records), values_of(records, "baseline"), expected)
    # methods in order aoe, dense, moe, removed: the baseline moe has 80, 81, 82, deviation 1
    assert found["role"] == ("yes", "overlap", 50.0)
    higher = records.assign(value=records["value"].where(records["stage"] != "baseline", 78.5))
    assert numbers.counted(values_of(higher), values_of(higher, "baseline"), expected)["role"][0] == "no"
    easy = records.assign(value=records["value"].where(records["stage"] == "baseline", records["value"] + 17))
    assert numbers.counted(values_of(easy), values_of(easy, "baseline"), expected)["role"][0] == "ceiling"


def test_an_average_is_there_only_where_every_task_is(write):
    paper = write()
    records = rows_for(paper, without={("aoe", "role")})
    values = numbers.with_average(values_of(records), ("role", "entailment"), ("accuracy",))
    found = values[numbers.AVERAGE, "", "accuracy"]
    assert found["dense"] == {0: 70.0}
    assert "aoe" not in found


def test_tables_are_whole_show_published_values_and_say_what_is_missing(write):
    paper = write(("setting", "seeds", [0, 1, 2]))
    expected, made = tables_of(paper, rows_for(paper, without={("aoe", "role")}))
    texts = {name: text for one in made for name, text in one.files(expected).items()}
    main = texts["table2_main.md"]
    assert "profile `smoke`, data `toy-1`" in main
    assert "| MoE + L_aux | 40.74 |" in main
    assert "MoE is `MoE + L_aux`" in main
    assert "AoE, role: missing: `dvc repro experiments/aoe/smoke/dvc.yaml:finetune@aoe-examination-0`" in main
    assert "| dense |" not in main  # by its label
    assert "-10.0 [" not in main  # differences that do not vary over seeds are not claimed
    assert "| no router |" not in main
    assert "| no router |" in texts["table1_removed.md"]
    assert "table3_selection.md" not in texts
    throughput = texts["table4_throughput.csv"].splitlines()
    assert [line.split(",")[3] for line in throughput[1:]] == ["1.000000", "0.984496", "0.969466", "0.940741", "0.888112"] or len(
        throughput
    ) == 6
    assert {"load_by_depth.svg", "confidence_by_depth.svg", "load.svg", "norms_aoe.svg"} <= texts.keys()
    again = {
        name: text for one in tables_of(paper, rows_for(paper, without={("aoe", "role")}))[1] for name, text in one.files(expected).items()
    }
    assert again == texts


def accuracies(**languages):
    """Records of one task, three seeds: language → what the method ``moe`` has; ``aoe`` has 1, 2 and 4 more."""
    rows = []
    for language, values in languages.items():
        for seed, value in enumerate(values):
            for method, more in (("moe", 0), ("aoe", (1, 2, 4)[seed])):
                row = {"method": method, "seed": seed, "language": language.replace("main", ""), "value": value + more, "stage": "finetune"}
                rows.append(row | {"task": "entailment", "metric": "accuracy", "n": 50})
        rows += [rows[-1] | {"method": "longest", "seed": 0, "value": 60.0, "stage": "baseline"}]
    return pd.DataFrame(rows)


def test_the_mean_over_languages_is_of_those_that_count_and_the_pivot_goes_by_its_name(write):
    paper = write(("setting", "seeds", [0, 1, 2]))
    records = accuracies(main=(80, 81, 82), second=(61, 60, 62), third=(90, 91, 92))
    expected = numbers.Expected(
        **vars(tables_of(paper, rows_for(paper))[0]), texts=(), tasks=("entailment",), languages={"entailment": ("own", "second", "third")}
    )
    values, shallow = values_of(records), values_of(records, "baseline")
    found = numbers.with_languages(values, shallow, expected, "own")
    assert {key[1]: one.verdict for key, one in found.items()} == {"own": "yes", "second": "no", "third": "yes"}
    assert values["entailment", "own", "accuracy"] == values["entailment", "", "accuracy"]
    assert values["entailment", numbers.ALL, "accuracy"]["moe"] == {0: 85.0, 1: 86.0, 2: 87.0}
    assert values["entailment", numbers.ALL, "accuracy"]["aoe"] == {0: 86.0, 1: 88.0, 2: 91.0}


def test_other_languages_have_a_table_of_their_own_and_the_main_one_is_the_pivots(write):
    second = ("data", "texts", "second", {"source": "constructed", "language": 1})
    changes = (("setting", "seeds", [0, 1, 2]), second)
    _, plain = tables_of(write(*changes), rows_for(write(*changes)))
    paper = write(*changes, ("data", "tasks", "entailment_second", 0))
    records = rows_for(paper)
    expected, made = tables_of(paper, records)
    texts = {name: text for one in made for name, text in one.files(expected).items()}
    assert {name: text for one in plain for name, text in one.files(expected).items()} == {
        name: text for name, text in texts.items() if not name.startswith("languages.")
    }
    page = texts["languages.md"]
    assert "| method | pivot | second | mean |" in page
    assert "| MoE | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) |" in page  # the pivot alone counts
    assert "Difference to MoE, entailment" in page
    assert "A guess is right in 50.0 %, with a standard error of 16.7 on 9 items." in page
    assert "pivot counts; second is undecided (takes 3 seeds and a shallow baseline)" in page
    assert "| shallow: overlap | 64.9 | — | — |" in page
    assert "table3_languages.md" not in texts  # Table 3 of this paper is another one
    _, made = tables_of(paper, records[(records["method"] != "aoe") | (records["language"] != "second")])
    page = next(one for one in made if one.name == "languages").files(expected)["languages.md"]
    assert "AoE, second: missing: `dvc repro" in page


def test_xnli_stands_beside_the_published_table_of_its_languages(write, project):
    paper = write(
        *(("setting", key, value) for key, value in {"seeds": [0, 1, 2], "beside": "1"}.items()),
        ("data", "tasks", {"xnli_en": 0, "xnli_sw": 0}),
        ("methods", "moe", "published", "X-MoE"),
    )
    (paper.home / "published.yaml").write_bytes((project / "experiments/mhmoe/published.yaml").read_bytes())
    records = rows_for(paper)
    records = records[records["stage"] != "baseline"]
    expected, made = tables_of(paper, records)
    texts = {name: text for one in made for name, text in one.files(expected).items()}
    table = next(one for one in made if one.name == "table3_languages").table
    shown = {row["language"]: row["published"] for _, row in table.iterrows() if row["method"] == "moe"}
    assert shown == {"en": "37.3", "sw": "33.5", "all": "34.1"}
    assert "| method | en | sw | mean |" in texts["table3_languages.md"]
    assert "| MoE | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) |" in texts["table3_languages.md"]
    assert "A guess is right in 33.3 %, with a standard error of 15.7 on 9 items." in texts["table3_languages.md"]
    assert "MoE is `X-MoE`" in texts["table3_languages.md"]
    assert "Zero-shot" not in texts["table1_main.md"]
    assert "calibration.md" not in texts


def test_differences_and_the_seeds_that_would_decide_them_are_shown(write):
    paper = write(("setting", "seeds", [0, 1, 2]))
    records = rows_for(paper)
    noisy = (records["method"] == "aoe") & (records["metric"] == "nll") & (records["task"] == "text")
    records.loc[noisy, "value"] = [80.0, 85.0, 80.0]
    expected, made = tables_of(paper, records)
    table = made[0].table
    row = table[(table["method"] == "aoe") & (table["metric"] == "nll") & (table["task"] == "text")].iloc[0]
    test = stats.ttest_rel([80.0, 85.0, 80.0], [80.0, 81.0, 82.0])
    assert row["difference"] == pytest.approx(2 / 3)
    assert row["p"] == pytest.approx(test.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert row["seeds_needed"] > 3
    assert "Seeds that would decide" in made[0].files(expected)["table2_main.md"]
