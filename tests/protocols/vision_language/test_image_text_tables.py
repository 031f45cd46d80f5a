"""Records become tables: what counts, what is missing, what is published, and the same bytes again."""

import pandas as pd
import pytest
from scipy import stats

from moebench.pipeline.tabulate import expectation
from moebench.protocols.vision_language import numbers, tables
from moebench.protocols.vision_language.config import MASKED, MODALITIES
from moebench.results.records import COSTS, CURVES, PROVENANCE, RECORDS
from moebench.results.summaries import values_of
from moebench.results.tables import Measured

FINETUNED = (("vqa", "accuracy"), ("nlvr", "accuracy"), ("nlvr", "consistency"), ("caption", "bleu4"), ("caption", "cider"))
COMMON = {"profile": "smoke", "data": "scenes-1", "paper": "mhmoe_vision_language", "n": 9}


def rows_for(paper, without=()):
    """Records as a finished evaluation has them: values follow from method and seed."""
    rows = []
    for place, name in enumerate(paper.methods):
        for seed in paper.setting.seeds:
            keys = [("finetune", task, "", metric) for task, metric in FINETUNED]
            keys += [("finetune", "vqa", kind, "accuracy") for kind in ("count", "exists")] + [("finetune", "nlvr", "more", "accuracy")]
            keys += [("finetune", task, "", "nll") for task in ("vqa", "nlvr")]
            keys += [("pretrain", "masked", kind, metric) for metric in MASKED for kind in ("all", *MODALITIES)]
            where = ("all", "layer02")
            keys += [("pretrain", "routing", one, metric) for one in where for metric in ("load_entropy", "router_entropy", "rank_margin")]
            keys += [("pretrain", "routing", f"layer02.expert{expert:03d}", "load") for expert in (1, 2)]
            keys += [("pretrain", "routing", "all", "macs_per_token")]
            for stage, task, language, metric in keys:
                if (name, task) not in without and not (task == "routing" and name == "dense" and metric != "macs_per_token"):
                    row = {"method": name, "seed": seed, "stage": stage, "task": task, "language": language, "metric": metric}
                    rows.append(COMMON | row | {"value": 60.0 + 10 * place + seed})
    for task, metric, value in (("vqa", "accuracy", 50.0), ("nlvr", "accuracy", 79.0), ("caption", "bleu4", 40.0)):
        row = {"method": "majority", "seed": 0, "stage": "baseline", "task": task, "language": "", "metric": metric, "value": value}
        rows.append(COMMON | row)
    return pd.DataFrame(rows)[list(RECORDS.columns)]


def made_of(paper, records, costs=None):
    provenance, none, curves = (pd.DataFrame(columns=list(form.columns)) for form in (PROVENANCE, COSTS, CURVES))
    measured = Measured(records, provenance, none if costs is None else costs, curves)
    expected = expectation(paper, measured, paper.results)
    return expected, tables.tables(expected, measured)


def texts_of(paper, records, costs=None):
    expected, made = made_of(paper, records, costs)
    return {name: text for one in made for name, text in one.files(expected).items()}


@pytest.fixture
def three(write):
    """The paper with three seeds."""
    return write(("setting", "seeds", [0, 1, 2]))


def test_a_task_that_a_shallow_baseline_solves_does_not_count(three):
    records = rows_for(three)
    expected = numbers.Expected(**vars(made_of(three, records)[0]))

    def verdicts(records):
        found = numbers.counted(values_of(records), values_of(records, "baseline"), expected)
        return {task: one.verdict for task, one in found.items()}

    # methods in order dense, heads, moe: the baseline moe has 80, 81, 82, deviation 1
    assert verdicts(records) == {"vqa": "yes", "nlvr": "no", "caption": "yes"}
    easy = records.assign(value=records["value"].where(records["stage"] == "baseline", records["value"] + 17))
    assert verdicts(easy)["vqa"] == "ceiling"
    assert verdicts(records[records["seed"] < 2])["vqa"] == "undecided"
    text = texts_of(three, records)["table4_finetuned.md"]
    assert "questions count; statements are not clearly better than shallow baselines; captions count" in text


def test_published_tasks_count_anyway(write):
    files = {"coco": "c", "vqa": "v", "nlvr": "n", "captions": "k"}
    paper = write(("data", "source", "files"), ("data", "files", files), ("setting", "model", "channels", 3))
    records = rows_for(paper)
    expected = numbers.Expected(**vars(made_of(paper, records)[0]))
    assert {one.verdict for one in numbers.counted(values_of(records), {}, expected).values()} == {"yes"}
    assert "ten people's answers" in texts_of(paper, records)["table4_finetuned.md"]


def test_tables_are_whole_show_published_values_and_say_what_is_missing(three):
    records = rows_for(three, without={("heads", "caption"), ("heads", "masked")})
    texts = texts_of(three, records)
    finetuned, masked = texts["table4_finetuned.md"], texts["table1_masked.md"]
    assert "MH-MoE, Table 4: fine-tuned tasks (profile `smoke`, data `scenes-1`)" in finetuned
    assert "| MH-MoE | 70.1 | 71.4 | 77.0 | 77.8 | 39.7 | 33.1 | 124.1 | 23.0 |" in finetuned
    assert "Dense is `Dense`" in finetuned
    assert "| MoE | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | — | 81.0 ± 1.0 (3) | — |" in finetuned
    assert "METEOR is a Java program" in finetuned
    assert "| shallow: majority, or the most frequent caption | 50.0 | 79.0 | — | 40.0 | — | — | — |" in finetuned
    assert "captions, CIDEr: missing: `dvc repro experiments/mhmoe_vision_language/smoke/dvc.yaml:finetune@heads-caption-0`" in finetuned
    assert "| MH-MoE | 14.73 | 10.87 |" in masked
    assert "missing: `dvc repro experiments/mhmoe_vision_language/smoke/dvc.yaml:pretrain@heads-0`" in masked
    assert "Dense, Ent_load, nats and 5 more: no experts" in texts["routing.md"]
    assert "| MoE | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) | 81.0 ± 1.0 (3) |" in texts["types.md"]
    assert {"load_by_depth.svg", "confidence_by_depth.svg", "load.svg", "costs.md"} <= texts.keys()
    assert texts == texts_of(three, records)
    csv = texts["table4_finetuned.csv"].splitlines()
    assert any(line.startswith("vqa,,accuracy,dense,Dense,61.0") and line.split(",")[14] == "65.9" for line in csv)


def test_nothing_measured_yet_is_tables_of_commands(write):
    texts = texts_of(write(), pd.DataFrame(columns=list(RECORDS.columns)))
    assert "nothing measured yet" in texts["table1_masked.md"]
    for task in ("vqa", "nlvr", "caption"):
        assert f"finetune@moe-{task}-0`" in texts["table4_finetuned.md"]
    assert "types.md" not in texts


def test_differences_are_paired_by_seed(three):
    records = rows_for(three)
    noisy = (records["method"] == "heads") & (records["task"] == "vqa") & (records["metric"] == "accuracy") & (records["language"] == "")
    records.loc[noisy, "value"] = [80.0, 85.0, 80.0]
    _, made = made_of(three, records)
    table = next(one.table for one in made if one.name == "table4_finetuned")
    row = table[(table["method"] == "heads") & (table["metric"] == "accuracy") & (table["task"] == "vqa")].iloc[0]
    test = stats.ttest_rel([80.0, 85.0, 80.0], [80.0, 81.0, 82.0])
    assert row["difference"] == pytest.approx(2 / 3)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert row["seeds_needed"] > 3


def test_many_types_of_questions_have_no_table(three):
    records = rows_for(three)
    more = [records.assign(language=f"type {at}")[(records["task"] == "vqa") & (records["metric"] == "accuracy")] for at in range(13)]
    records = pd.concat([records, *(one.drop_duplicates(list(RECORDS.keys)) for one in more)], ignore_index=True)
    keys = numbers.type_keys(values_of(records))
    assert keys == [("nlvr", "more", "accuracy")]


def test_costs_are_means_over_seeds(three):
    row = {"profile": "smoke", "paper": "mhmoe_vision_language", "method": "moe", "peak_memory_mb": 300.0, "parameters": 1234567}
    rows = [
        row | {"seed": seed, "stage": stage, "task": task, "seconds": 10.0 * (seed + 1), "tokens_per_second": 50.0}
        for seed in (0, 1, 2)
        for stage, task in (("pretrain", "masked"), ("finetune", "nlvr"))
    ]
    costs = pd.DataFrame(rows, columns=list(COSTS.columns))
    text = texts_of(three, rows_for(three), costs)["costs.md"]
    assert "| MoE | 1,234,567 | — | 20 | — | 20 | — | 50 | 300 |" in text
    assert "0.03 hours" in text
