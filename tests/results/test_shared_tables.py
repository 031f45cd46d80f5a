"""What the tables of all protocols share: differences to the baseline, cells, titles and the files of a document."""

import csv
import io
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from scipy import stats

from moebench.config import About
from moebench.experiment import Experiment
from moebench.published import Published
from moebench.results.rendering import Block
from moebench.results.tables import (
    Document,
    Expected,
    csv_of,
    difference_cell,
    differences,
    frame,
    measured_cell,
    notes,
    number,
    rows_of,
    title,
)

BASE = {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0}
VALUES = {
    "base": BASE,
    "clear": {0: 11.0, 1: 12.1, 2: 13.9, 3: 18.0},
    "noisy": {0: 1.5, 1: 1.0, 2: 6.0, 3: 8.1},
    "few": {0: 1.5, 1: 1.0, 7: 6.0},
    "constant": {seed: value + 1 for seed, value in BASE.items()},
    "none": {},
}


@pytest.fixture
def expected(tmp_path):
    return Expected(
        experiment=Experiment(tmp_path, "moe", "cpu"),
        about=About(protocol="vision", name="MoE", title="A paper", arxiv="2110.03360"),
        data="images-1",
        methods={name: SimpleNamespace(label=name.upper()) for name in ("zeta", "base", "alpha")},
        seeds=(0, 1),
        baseline="base",
        published=Published(tables={}),
    )


def test_differences_are_paired_by_seed_with_holm_over_those_that_can_be_claimed():
    found = differences(VALUES, "base")
    assert found.keys() == VALUES.keys() - {"base"}
    p_values = {}
    for name in ("clear", "noisy"):
        columns, why = found[name]
        test = stats.ttest_rel(list(VALUES[name].values()), list(BASE.values()))
        interval = test.confidence_interval(0.95)
        assert why == ""
        assert columns["difference"] == pytest.approx(sum(VALUES[name].values()) / 4 - 15 / 4)
        assert (columns["ci_low"], columns["ci_high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert columns["p"] == pytest.approx(test.pvalue)
        p_values[name] = columns["p"]
    assert found["clear"][0]["p_holm"] == pytest.approx(2 * p_values["clear"])  # the smaller of two; the family has no more
    assert found["noisy"][0]["p_holm"] == pytest.approx(p_values["noisy"])


def test_nothing_is_claimed_of_few_seeds_or_of_what_does_not_vary():
    found = differences(VALUES, "base")
    assert found["few"] == ({}, "no difference is claimed: 2 of the 3 shared seeds that it takes")
    assert found["none"] == ({}, "no difference is claimed: 0 of the 3 shared seeds that it takes")
    assert found["constant"] == ({}, "no difference is claimed: it does not vary over the seeds")
    assert differences({"base": BASE}, "base") == {}


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "shown"),
    [
        (1.25, 1, "", "1.2"),
        (-0.004, 2, "", "0.00"),
        (-0.004, 2, "+", "0.00"),
        (0.0, 2, "+", "0.00"),
        (0.006, 2, "+", "+0.01"),
        (-0.006, 2, "+", "-0.01"),
        (-0.4, 0, "", "0"),
        (1234.5678, 3, "", "1234.568"),
    ],
)
def test_a_number_that_rounds_to_zero_has_no_sign(value, decimals, sign, shown):
    assert number(value, decimals, sign) == shown


def test_a_measured_cell_has_deviation_and_number_of_seeds():
    row = {"value": 12.346, "sd": 0.054, "n_seeds": 3}
    assert measured_cell(row, 2) == "12.35 ± 0.05 (3)"
    assert measured_cell(row | {"sd": None, "n_seeds": 1}, 1) == "12.3 (1)"
    assert measured_cell(row | {"f1": 60.04, "em": 40.0}, 1) == "60.0/40.0 ± 0.1 (3)"
    assert measured_cell(row | {"em": None}, 2) == measured_cell(row, 2)
    assert measured_cell({"value": None, "sd": None, "n_seeds": 0}, 2) == "—"


def test_a_difference_cell_has_interval_and_adjusted_p_value():
    row = {"difference": 1.236, "ci_low": -0.001, "ci_high": 2.5, "p": 0.01, "p_holm": 0.0204}
    assert difference_cell(row, 2) == "+1.24 [0.00, +2.50] p 0.020"
    assert difference_cell(row | {"p_holm": 0.0004}, 1) == "+1.2 [0.0, +2.5] p < 0.001"
    assert difference_cell(row | {"difference": None}, 2) == "—"


def test_a_title_names_profile_and_data(expected):
    assert title(expected, "quality") == "MoE: quality (profile `cpu`, data `images-1`)"
    assert title(expected, "quality", "3") == "MoE, Table 3: quality (profile `cpu`, data `images-1`)"
    empty = Expected(**vars(expected) | {"data": ""})
    assert title(empty, "quality") == "MoE: quality (profile `cpu`, nothing measured yet)"


def test_the_baseline_comes_first_and_a_run_has_a_command(expected):
    assert (expected.compared, expected.label, expected.profile) == (["base", "alpha", "zeta"], "BASE", "cpu")
    assert expected.make("finetune", "zeta", 1, "pos") == "dvc repro experiments/moe/cpu/dvc.yaml:finetune@zeta-pos-1"
    assert expected.make("pretrain", "zeta", 1) == "dvc repro experiments/moe/cpu/dvc.yaml:pretrain@zeta-1"


def test_notes_are_a_block_where_there_are_any(expected):
    assert notes(expected) == []
    (block,) = notes(Expected(**vars(expected) | {"notes": {"width": "too small", "batch": "not stated"}}))
    assert (block.heading, block.text) == ("Notes on the setting", ("`batch`: not stated.", "`width`: too small."))


def test_a_table_is_three_files_and_a_page_one(expected):
    table = frame([{"method": "a", "value": 0.5, "n": 3}, {"method": "b, c", "n": 0}], ("method", "value", "n"))
    blocks = [Block("Values", ("Words.",), ("method", "value"), (("a", "0.5"), ("b, c", "—")))]
    files = Document("table1", "A title", blocks, table).files(expected)
    assert list(files) == ["table1.csv", "table1.md", "table1.tex"]
    assert list(csv.reader(io.StringIO(files["table1.csv"]))) == [["method", "value", "n"], ["a", "0.500000", "3"], ["b, c", "", "0"]]
    assert files["table1.md"].startswith("# A title\n\n## Values\n")
    assert r"\label{tab:moe-cpu-table1}" in files["table1.tex"]
    assert list(Document("costs", "A title", blocks).files(expected)) == ["costs.md"]


def test_numbers_in_csv_have_six_decimals_and_zero_no_sign():
    table = pd.DataFrame({"value": [-1e-9, 1 / 3, math.pi], "n": [1, 2, 3]})
    assert csv_of(table) == "value,n\n0.000000,1\n0.333333,2\n3.141593,3\n"
    assert rows_of(table)[0] == {"value": -1e-9, "n": 1}
