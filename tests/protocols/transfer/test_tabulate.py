"""The stage ``tabulate``: same bytes for shuffled records, holes that say why, and titles that name profile and data."""

import csv
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moebench import files
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.metrics.uncertainty import DIVERSITY, MEASURES
from moebench.pipeline.tabulate import tables
from moebench.pipeline.tabulate import tabulate as tabulate_stage
from moebench.results import records

PUBLISHED = Path(__file__).parents[3] / "experiments/xmoe/published.yaml"
OPTIMISATION = {"steps": 10, "batch": 2, "rate": 0.001}
TASKS = ("constructed_pos", "constructed_qa_parallel", "constructed_nli")
METRICS = {"constructed_pos": ("f1",), "constructed_qa_parallel": ("f1", "em"), "constructed_nli": ("accuracy",)}
SHALLOW = {"constructed_pos": 30.0, "constructed_qa_parallel": 10.0, "constructed_nli": 90.0}  # nli does not clear the bar
SETTING = {
    "seeds": [0, 1, 2],
    "baseline": "dense",
    "encoder": {"layers": 2, "width": 8, "heads": 2, "inner": 16},
    "sparse": {"experts": 2, "inner": 8},
    "pretrain": OPTIMISATION,
    "finetune": dict.fromkeys(("constructed_pos", "constructed_qa", "constructed_nli"), OPTIMISATION),
    "routers": {"methods": ["switched"], "training_sets": ["constructed_pos"]},
    "notes": {"encoder": "far too small"},
}
METHODS = {
    "dense": {"label": "Dense", "published": "Dense", "layer": "none"},
    "wide_one": {"label": "Dense & 50 % wider_", "layer": "none"},
    "floor": {"label": "Random weights", "layer": "none", "pretrained": False},
}
SWITCHED = {"label": "Switched", "table": "routers", "layer": "moe", "router": "switch", "losses": {"balance": 0.01}}
ROUTING = {"max_violation": 0.5, "router_entropy": 0.25, "experts_per_token": 1.0, "dropped_share": 0.125, "flops_per_token": 2e6}
COST = {"tokens_per_second": 2000.0, "peak_memory_mb": 300.0, "parameters": 5000, "active_parameters": 4000, "flops_per_token": 2000}
DATA = {
    "source": "constructed",
    "tasks": list(TASKS),
    "constructed": {},
    "corpus": {},
    "tokens": {"source": "trained", "vocabulary": 100},
}


def rows(seeds=(0, 1, 2)):
    rows, key = [], {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "n": 100}
    noise = random.Random(7)
    for task in TASKS:
        for metric in METRICS[task]:
            for language in ("aa", "bb", "cc"):
                cell = {"task": task, "language": language, "metric": metric}
                for number, method in enumerate(METHODS):
                    for seed in seeds:
                        value = 60 + 4 * number - 40 * (method == "floor") + noise.random()
                        rows.append(key | cell | {"method": method, "seed": seed, "stage": "finetune", "value": value})
                rows.append(key | cell | {"method": "overlap", "seed": 0, "stage": "baseline", "value": SHALLOW[task]})
    for seed in seeds:
        one = {"method": "switched", "seed": seed}
        for language in ("aa", "bb", "cc"):
            cell = {"stage": "finetune", "task": "constructed_pos", "language": language, "metric": "f1"}
            rows.append(key | one | cell | {"value": 62.0 + seed**2})
        for metric, value in ROUTING.items():
            cell = {"stage": "pretrain", "task": "mlm", "language": "all", "metric": metric}
            rows.append(key | one | cell | {"value": value + (seed - 1) * 0.1 * (metric == "max_violation")})
    for number, method in enumerate(("dense", "wide_one", "switched")):
        for seed in seeds:
            for language in ("aa", "bb", "cc"):
                cell = {"task": "mlm", "language": language, "metric": "perplexity", "value": 20 - 5 * number + noise.random()}
                rows.append(key | cell | {"method": method, "seed": seed, "stage": "pretrain"})
    return rows


def experiment_of(root):
    """Whose configuration has not been read yet."""
    return Experiment(root, "xmoe", "cpu")


def tabulate(root):
    tabulate_stage(experiment_of(root))


def write(root, measured):
    folder = experiment_of(root).records_folder
    records.write(folder / "records.csv", measured, records.RECORDS)
    run = {"profile": "cpu", "paper": "xmoe", "method": "dense", "seed": 0, "stage": "finetune", "task": "constructed_pos"}
    provenance = run | dict.fromkeys(records.PROVENANCE.values) | {"train_language": "aa"}
    records.write(folder / "provenance.csv", [provenance] if measured else [], records.PROVENANCE)
    costs = [
        run
        | dict.fromkeys(records.COSTS.values)
        | {"method": method, "seed": seed, "stage": "pretrain", "task": "mlm"}
        | COST
        | {"seconds": 100.0 + seed}
        for method in ("dense", "switched")
        for seed in (0, 1, 2)
    ]
    records.write(folder / "costs.csv", costs if measured else [], records.COSTS)


@pytest.fixture
def root(tmp_path, write_paper):
    experiment = write_paper("cpu", DATA, SETTING, METHODS | {"switched": SWITCHED})
    files.write_text(experiment.home / "published.yaml", PUBLISHED.read_text(encoding="utf-8"))
    write(tmp_path, rows())
    return tmp_path


def content(root):
    folder = root / "results/cpu/xmoe"
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in ("records.csv", "provenance.csv", "costs.csv")
    }


def markdown_tables(text):
    """Heading → rows of the first table below it."""
    tables, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|") and not line.startswith("| ---"):
            tables.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def test_shuffled_records_give_the_same_bytes(root):
    tabulate(root)
    first = content(root)
    assert set(first) == {"README.md", "costs.md"} | {
        f"{name}.{kind}"
        for name in ("table1_xtreme", "table2_perplexity", "table3_routers", "table4_uncertainty")
        for kind in ("csv", "md", "tex")
    }
    for seed in range(3):
        path = experiment_of(root).records_folder / "records.csv"
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *random.Random(seed).sample(lines, len(lines))]) + "\n")
        tabulate(root)
        assert content(root) == first


def test_records_are_taken_over_and_what_is_no_longer_made_goes(root):
    experiment = experiment_of(root)
    for name in ("table9_old.md", "curves.csv"):
        files.write_text(experiment.results / name, "from another version")
    tabulate(root)
    names = [path.name for path in experiment.records_folder.iterdir()]
    assert sorted(names) == ["costs.csv", "provenance.csv", "records.csv"]
    assert all((experiment.results / name).read_bytes() == (experiment.records_folder / name).read_bytes() for name in names)
    assert {path.name for path in experiment.results.iterdir()} == {*content(root), *names}
    assert "table9_old.md" not in content(root)


def test_tables_are_made_again_from_the_records_beside_them(root):
    tabulate(root)
    first = content(root)
    shutil.rmtree(root / "runs")
    for name in first:
        (experiment_of(root).results / name).unlink()
    tables(experiment_of(root))
    assert content(root) == first


def test_every_title_names_the_profile_and_the_data(root):
    tabulate(root)
    for name, data in content(root).items():
        if name.endswith(".md") and name != "README.md":
            assert "(profile `cpu`, data `constructed-1`)" in data.decode().splitlines()[0]
        if name.endswith(".tex"):
            assert r"\texttt{cpu}, data \texttt{constructed-1}" in data.decode()


def test_markdown_and_csv_say_the_same(root):
    tabulate(root)
    folder = root / "results/cpu/xmoe"
    tables = markdown_tables((folder / "table1_xtreme.md").read_text(encoding="utf-8"))
    with open(folder / "table1_xtreme.csv", encoding="utf-8", newline="") as handle:
        cells = {(row["section"], row["task"], row["method"]): row for row in csv.DictReader(handle)}
    pos = cells["compared", "constructed_pos", "wide_one"]
    shown = dict(zip(*tables["Zero-shot transfer"][::2], strict=True))
    assert shown["method"] == "Dense & 50 % wider_"
    assert shown["`constructed_pos` (POS)"] == f"{float(pos['value']):.1f} ± {float(pos['sd']):.1f} (3)"
    qa = cells["compared", "constructed_qa_parallel", "wide_one"]
    assert shown["`constructed_qa_parallel` (XQuAD)"] == f"{float(qa['f1']):.1f}/{float(qa['em']):.1f} ± {float(qa['sd']):.1f} (3)"
    average = cells["compared", "average", "wide_one"]
    assert float(average["value"]) == pytest.approx((float(pos["value"]) + float(qa["value"])) / 2, abs=1e-5)
    assert shown["average"].startswith(f"{float(average['value']):.1f} ±")
    assert f"{float(average['difference']):+.1f} [" in tables["Zero-shot transfer: difference to Dense"][1][-1]
    assert [row[0] for row in tables["Zero-shot transfer: difference to Dense"][1:]] == ["Dense & 50 % wider_"]


def test_a_task_below_the_bar_stands_outside_the_average(root):
    tabulate(root)
    text = (root / "results/cpu/xmoe/table1_xtreme.md").read_text(encoding="utf-8")
    tables = markdown_tables(text)
    assert tables["Does not transfer at this scale"][0] == ["method", "`constructed_nli` (XNLI)"]
    assert "`constructed_nli` (XNLI)" not in tables["Zero-shot transfer"][0]
    verdicts = {row[0]: row[-1] for row in tables["Shallow baselines"][1:]}
    assert verdicts == {
        "`constructed_pos` (POS)": "yes",
        "`constructed_qa_parallel` (XQuAD)": "yes",
        "`constructed_nli` (XNLI)": "no",
    }
    assert [row[0] for row in tables["Floor: fine-tuned from random weights"][1:]] == ["Random weights"]


def test_the_training_language_has_a_block_with_the_best_shallow_baseline(root):
    tabulate(root)
    folder = root / "results/cpu/xmoe"
    tables = markdown_tables((folder / "table1_xtreme.md").read_text(encoding="utf-8"))
    block = tables["In the training language"]
    with open(folder / "table1_xtreme.csv", encoding="utf-8", newline="") as handle:
        cells = list(csv.DictReader(handle))
    assert block[0] == ["method", *(row[0] for row in tables["Shallow baselines"][1:])]
    assert [row[0] for row in block[1:]] == ["Dense", "Dense & 50 % wider_", "Random weights", "best shallow baseline"]
    pos = {row["method"]: row for row in cells if row["task"] == "constructed_pos"}
    assert block[1][1] == f"{float(pos['dense']['pivot']):.1f} ± {float(pos['dense']['pivot_sd']):.1f}"
    assert block[-1][1] == f"overlap {SHALLOW['constructed_pos']:.1f}"
    assert {row[-1] for row in block[1:]} == {"—"}  # no record says which language it was trained on


def test_published_rows_are_a_block_of_their_own(root):
    tabulate(root)
    text = (root / "results/cpu/xmoe/table1_xtreme.md").read_text(encoding="utf-8")
    block = text[text.index("## Published, in another setting") :]
    assert "The constructed tasks are not these benchmarks." in block
    tables = markdown_tables(text)
    assert tables["Published, in another setting"][0] == ["published row", "POS", "NER", "XQuAD", "MLQA", "TyDiQA", "XNLI", "PAWS-X", "Avg"]
    assert ["X-MoE softmax", "70.8", "63.2", "72.4/56.2", "64.5/46.3", "53.7/38.1", "72.0", "85.2", "65.3"] in tables[
        "Published, in another setting"
    ]
    before = text[: text.index("## Published, in another setting")]
    assert "70.8" not in before
    assert "65.3" not in before


def test_two_seeds_decide_nothing(root):
    write(root, rows((0, 1)))
    tabulate(root)
    text = (root / "results/cpu/xmoe/table1_xtreme.md").read_text(encoding="utf-8")
    assert "No average: no task clears the bar." in text
    tables = markdown_tables(text)
    assert set(map(len, tables["Undecided"])) == {4}
    assert {cell for row in tables["Undecided: difference to Dense"][1:] for cell in row[1:]} == {"—"}
    assert "`dvc repro experiments/xmoe/cpu/dvc.yaml:finetune@dense-constructed_pos-2`" in text


def test_no_records_make_tables_of_holes(root):
    write(root, [])
    tabulate(root)
    text = (root / "results/cpu/xmoe/table1_xtreme.md").read_text(encoding="utf-8")
    assert "nothing measured yet" in text.splitlines()[0]
    assert "finetune@dense-constructed_pos-0`" in text


def test_without_pretraining_the_second_table_says_so(root):
    files.write_text(root / "experiments/xmoe/profiles/cpu.yaml", yaml.safe_dump(SETTING | {"pretrain": OPTIMISATION | {"steps": 0}}))
    tabulate(root)
    for kind in ("md", "tex"):
        assert "No pre-training happens in profile" in (root / f"results/cpu/xmoe/table2_perplexity.{kind}").read_text(encoding="utf-8")


def test_a_column_that_is_not_right_is_refused_and_nothing_changes(root):
    tabulate(root)
    first = content(root)
    path = experiment_of(root).records_folder / "records.csv"
    path.write_text(path.read_text().replace("constructed-1,xmoe,dense,0", "constructed-2,xmoe,dense,0", 1))
    with pytest.raises(MoebenchError, match="holds several values, constructed-1, constructed-2"):
        tabulate(root)
    path.write_text(path.read_text().replace("cpu,", "real,"))
    with pytest.raises(MoebenchError, match=r"column 'profile' holds 'real'.*; should be cpu"):
        tabulate(root)
    assert content(root) == first


def test_a_baseline_that_does_not_run_is_named(root):
    files.write_text(root / "experiments/xmoe/profiles/cpu.yaml", yaml.safe_dump(SETTING | {"methods": ["wide_one"]}))
    with pytest.raises(MoebenchError, match=r"cpu\.yaml: key 'baseline' names 'dense'.*; methods are: switched, wide_one"):
        tabulate(root)


def test_a_published_row_that_does_not_exist_is_named(root):
    files.write_text(root / "experiments/xmoe/methods/dense.yaml", yaml.safe_dump(METHODS["dense"] | {"published": "Dens"}))
    with pytest.raises(MoebenchError, match=r"dense\.yaml: key 'published' has the value 'Dens' \(did you mean 'Dense'\?\)"):
        tabulate(root)


def test_results_import_no_torch():
    rooms = ", ".join(f"moebench.protocols.transfer.{room}" for room in ("config", "prepare", "baselines", "runs", "scoring", "tables"))
    code = f"import sys, moebench.pipeline.evaluate, moebench.pipeline.tabulate, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_notes_on_the_setting_stand_under_the_table(root):
    tabulate(root)
    table = (root / "results/cpu/xmoe/table1_xtreme.md").read_text(encoding="utf-8")
    assert "## Notes on the setting\n\n`encoder`: far too small." in table


def test_the_table_of_routers_has_every_method_and_its_own_measures(root):
    tabulate(root)
    folder = root / "results/cpu/xmoe"
    rows = {(row["method"], row["measure"]): row for row in csv.DictReader((folder / "table3_routers.csv").open())}
    assert {method for method, _ in rows} == {"dense", "wide_one", "switched"}
    assert float(rows["switched", "max_violation"]["value"]) == pytest.approx(0.5)
    assert float(rows["switched", "max_violation"]["sd"]) == pytest.approx(0.1)
    assert rows["dense", "max_violation"]["note"] == "no experts"
    seeds = [62.0, 63.0, 66.0]
    assert float(rows["switched", "constructed_pos"]["value"]) == pytest.approx(sum(seeds) / 3)
    perplexity = float(rows["switched", "perplexity"]["value"])
    assert float(rows["switched", "perplexity"]["difference"]) == pytest.approx(
        perplexity - float(rows["dense", "perplexity"]["value"]), abs=1e-6
    )
    tables = markdown_tables((folder / "table3_routers.md").read_text(encoding="utf-8"))
    used = next(line for line in tables["How the experts are used"] if line[0] == "Switched")
    assert used[1:] == ["0.50 ± 0.10", "0.25", "1.00", "12.5", "2000"]
    assert "Switched" not in (folder / "table1_xtreme.md").read_text(encoding="utf-8")
    costs = markdown_tables((folder / "costs.md").read_text(encoding="utf-8"))[""]
    assert costs[1:] == [["Dense", "5,000", "4,000", "101", "2000", "300"], ["Switched", "5,000", "4,000", "101", "2000", "300"]]


def test_a_hole_in_the_table_of_routers_says_what_fills_it(root):
    write(root, [row for row in rows() if not (row["method"] == "switched" and row["stage"] == "pretrain")])
    tabulate(root)
    text = (root / "results/cpu/xmoe/table3_routers.md").read_text(encoding="utf-8")
    assert "- Switched, max_violation: missing: `dvc repro experiments/xmoe/cpu/dvc.yaml:pretrain@switched-0`" in text


def test_a_profile_without_probabilities_says_so_in_one_sentence(root):
    tabulate(root)
    text = (root / "results/cpu/xmoe/table4_uncertainty.md").read_text(encoding="utf-8")
    assert len(text.strip().splitlines()) == 3
    assert "left no probabilities" in text
    assert (root / "results/cpu/xmoe/table4_uncertainty.csv").read_text().startswith("task,stands_for,method")


def test_ensembles_and_measures_of_uncertainty_change_no_other_table(root):
    tabulate(root)
    before = content(root)
    key = {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "n": 100, "task": "constructed_pos"}
    more = [
        key | {"method": method, "seed": seed, "stage": stage, "language": language, "metric": metric, "value": 0.125 + seed}
        for method in METHODS
        for stage, seeds in (("finetune", (0, 1, 2)), ("ensemble", (0,)))
        for seed in seeds
        for language in ("aa", "bb", "cc")
        for metric in (*MEASURES, *(("f1", *DIVERSITY) if stage == "ensemble" else ()))
    ]
    write(root, rows() + more)
    tabulate(root)
    after = content(root)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"table4_uncertainty.{kind}" for kind in ("csv", "md", "tex")}
    tables = markdown_tables(after["table4_uncertainty.md"].decode())
    zero_shot = {row[0]: row[1:] for row in tables["`constructed_pos` (POS), zero-shot: mean over 2 languages"]}
    assert zero_shot["Dense"][1] == "1.125 ± 1.000 (3)"
    assert zero_shot["Dense, ensemble of 3 seeds"] == ["0.1", *["0.125"] * 5]


def test_ensembles_within_one_model_stand_in_the_table_of_uncertainty_alone(root):
    key = {"profile": "cpu", "data": "constructed-1", "paper": "xmoe", "n": 100}

    def judged(method, tasks, extra=()):
        return [
            key | {"method": method, "seed": seed, "stage": "finetune", "task": task, "language": language, "metric": metric, "value": 0.25}
            for task, score in tasks
            for seed in (0, 1, 2)
            for language in ("aa", "bb", "cc")
            for metric in (*MEASURES, *extra, *score)
        ]

    single = judged("dense", [("constructed_pos", ()), ("constructed_nli", ())])
    write(root, rows() + single)
    tabulate(root)
    before = content(root)
    ensemble = {"label": "Passes", "table": "ensembles", "layer": "none", "pretrain_as": "dense", "ensemble": "mc_dropout"}
    files.write_text(root / "experiments/xmoe/methods/apart.yaml", yaml.safe_dump(ensemble | {"members": 10, "dropout": 0.1}))
    setting = SETTING | {"ensembles": {"methods": ["apart"], "training_sets": ["constructed_pos"]}}
    files.write_text(root / "experiments/xmoe/profiles/cpu.yaml", yaml.safe_dump(setting))
    write(root, rows() + single + judged("apart", [("constructed_pos", ("f1",))], DIVERSITY))
    tabulate(root)
    after = content(root)
    assert {name for name in before if before[name] != after[name]} == {f"table4_uncertainty.{kind}" for kind in ("csv", "md", "tex")}
    table = list(csv.DictReader((root / "results/cpu/xmoe/table4_uncertainty.csv").open()))
    found = [row for row in table if row["method"] == "apart"]
    assert {row["task"] for row in found} == {"constructed_pos"}  # on the other task it is not fine-tuned
    assert {(row["models"], row["label"]) for row in found} == {
        ("10", "Passes, 10 members"),
        ("30", "Passes, 10 members, ensemble of 3 seeds"),
    }
    disagreement = [row["value"] for row in found if (row["measure"], row["models"], row["shift"]) == ("disagreement", "10", "zero_shot")]
    assert disagreement == ["0.250000"]
    assert not any(row["models"] == "1" and row["measure"] in DIVERSITY for row in table)
    shown = markdown_tables(after["table4_uncertainty.md"].decode())["`constructed_pos` (POS), zero-shot: mean over 2 languages"]
    assert ["Passes, 10 members", "0.2 ± 0.0 (3)"] in [row[:2] for row in shown]
    assert b"MC dropout" in after["table4_uncertainty.md"]
    assert b"MC dropout" not in before["table4_uncertainty.md"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("records", ",dense,", ",dens,", r"records\.csv: column 'method' holds 'dens' \(did you mean 'dense'\?\)"),
        ("records", ",accuracy,", ",acuracy,", r"records\.csv: column 'metric' holds 'acuracy' \(did you mean 'accuracy'\?\)"),
        ("records", ",f1,", ",f1_typo,", r"records\.csv: column 'metric' holds 'f1_typo'; should be one of"),
        ("records", ",f1,", ",f1_1_shot,", r"records\.csv: column 'metric' holds 'f1_1_shot'"),
        ("records", ",accuracy,", ",accu\0racy,", r"records\.csv:\d+: column 'metric' has the value 'accu\\x00racy': should hold no NUL"),
        ("provenance", ",dense,", ",dens,", r"provenance\.csv: column 'method' holds 'dens' \(did you mean 'dense'\?\)"),
        ("provenance", "cpu,xmoe,", "cpu,e3,", r"provenance\.csv: column 'paper' holds 'e3'; should be xmoe"),
        ("costs", ",dense,", ",dens,", r"costs\.csv: column 'method' holds 'dens' \(did you mean 'dense'\?\)"),
        ("costs", "cpu,xmoe,", "real,xmoe,", r"costs\.csv: column 'profile' holds 'real'; should be cpu"),
    ],
)
def test_records_edited_by_hand_are_named(root, name, old, new, message):
    tabulate(root)
    path = experiment_of(root).results / f"{name}.csv"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MoebenchError, match=message):
        tables(experiment_of(root))
