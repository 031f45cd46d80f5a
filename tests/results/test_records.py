"""The record files: the same bytes whatever the order, nothing lost, and every damage named by line and column."""

import random

import pandas as pd
import pytest

from moebench.errors import MoebenchError
from moebench.results.records import COSTS, PROVENANCE, RECORDS, read, render, write


def record(**changes):
    row = {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "method": "dense", "seed": 0, "stage": "finetune"}
    return row | {"task": "udpos", "language": "en", "metric": "f1", "value": 50.0, "n": 300} | changes


ROWS = [record(seed=seed, language=language, value=seed + 1 / 3) for seed in (0, 2, 10) for language in ("", "de", "en")]


def test_bytes_do_not_depend_on_the_order_of_the_rows(tmp_path):
    path = tmp_path / "records.csv"
    write(path, ROWS, RECORDS)
    first = path.read_bytes()
    for seed in range(5):
        write(path, random.Random(seed).sample(ROWS, len(ROWS)), RECORDS)
        assert path.read_bytes() == first
    assert b"\r" not in first
    assert first.splitlines()[0].decode() == "profile,data,paper,method,seed,stage,task,language,metric,value,n"
    assert [line.split(b",")[4] for line in first.splitlines()[1:]] == [b"0"] * 3 + [b"2"] * 3 + [b"10"] * 3  # as numbers, not as text


def test_values_are_rounded_to_six_decimals_and_zero_has_no_sign(tmp_path):
    text = render([record(value=1 / 3), record(seed=1, value=-1e-9), record(seed=2, value=7)], RECORDS, tmp_path)
    assert [line.split(",")[-2] for line in text.splitlines()[1:]] == ["0.333333", "0.000000", "7.000000"]


def test_reading_gives_back_what_was_written(tmp_path):
    path = tmp_path / "records.csv"
    rows = [record(), record(method='a "quoted", one', value=12.345678)]
    write(path, rows, RECORDS)
    frame = read(path, RECORDS)
    assert sorted(frame.to_dict("records"), key=str) == sorted(rows, key=str)
    before = path.read_bytes()
    write(path, frame.to_dict("records"), RECORDS)
    assert path.read_bytes() == before


def test_what_is_not_known_of_a_run_stays_empty(tmp_path):
    run = {"profile": "cpu", "paper": "xmoe", "method": "dense", "seed": 0, "stage": "finetune", "task": "udpos"}
    for form in (PROVENANCE, COSTS):
        row = run | dict.fromkeys(form.values)
        write(tmp_path / "file.csv", [row], form)
        assert (tmp_path / "file.csv").read_text().splitlines()[1] == "cpu,xmoe,dense,0,finetune,udpos" + "," * len(form.values)
        assert all(pd.isna(value) for value in read(tmp_path / "file.csv", form).iloc[0][list(form.values)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "column 'value' has the value 'nan'"),
        ({"value": float("inf")}, "should be finite"),
        ({"value": None}, "must not be empty"),
        ({"n": 1.5}, "should be a whole number"),
        ({"method": ""}, "column 'method'"),
        ({"colour": "red"}, "columns are"),
    ],
)
def test_wrong_rows_are_not_written(tmp_path, change, message):
    with pytest.raises(MoebenchError, match=message):
        write(tmp_path / "records.csv", [record(**change)], RECORDS)
    assert list(tmp_path.iterdir()) == []


def test_two_rows_of_one_key_are_not_written(tmp_path):
    with pytest.raises(MoebenchError, match=r"two values for one key: profile 'cpu'.*language 'en'"):
        write(tmp_path / "records.csv", [record(), record(value=51.0)], RECORDS)


HEADER = ",".join(RECORDS.columns)
LINE = "cpu,constructed-1,xmoe,dense,0,finetune,udpos,en,f1,50.000000,300"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n{LINE}\n{LINE.replace('50.0', '51.0')}\n", r"records.csv:3: second value for one key"),
        (f"{HEADER}\n{LINE.replace('50.000000', 'nan')}\n", r"records.csv:2: column 'value' has the value 'nan': should be finite"),
        (f"{HEADER}\n{LINE.replace('50.000000', 'many')}\n", r"records.csv:2: column 'value' has the value 'many': should be a number"),
        (f"{HEADER}\n{LINE.replace('dense,0', 'dense,zero')}\n", r"records.csv:2: column 'seed' has the value 'zero'"),
        (f"{HEADER}\n{LINE.replace('dense', '')}\n", r"records.csv:2: column 'method' has the value '': must not be empty"),
        (f"{HEADER}\n{LINE},7\n", r"records.csv:2: has 12 cells; should have 11"),
        (f"{HEADER.replace('metric', 'metrics')}\n{LINE}\n", r"records.csv:1: unknown column 'metrics' \(did you mean 'metric'\?\)"),
        (f"{HEADER.replace(',n', '')}\n", r"records.csv:1: the columns are"),
        ("", r"records.csv:1: the columns are"),
        (f'{HEADER}\n"cpu\n', r"records.csv: cannot be read"),
    ],
)
def test_damage_is_named_by_line_and_column(tmp_path, text, message):
    (tmp_path / "records.csv").write_text(text)
    with pytest.raises(MoebenchError, match=message):
        read(tmp_path / "records.csv", RECORDS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MoebenchError, match=r"records\.csv: cannot be read"):
        read(tmp_path / "records.csv", RECORDS)
