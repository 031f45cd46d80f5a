"""The tables and figures of a paper on images from made-up records: means, differences, holes, operations, the same bytes."""

import random
import statistics as stdlib
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from moebench import published
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.pipeline.tabulate import tables, tabulate
from moebench.protocols.vision import figures, layout, numbers
from moebench.protocols.vision.config import Method
from moebench.protocols.vision.numbers import DETECTION, DIVERSITY, MORE_QUALITY, QUALITY, SCORES, Expected
from moebench.protocols.vision.tables import analytic_flops
from moebench.results import records

LOSSES = {"importance": 0.01, "load": 0.01, "balance": 0}
METHODS = {
    "vit": {"label": "ViT", "variant": "dense"},
    "e3": {
        "label": "E³ & more",
        "variant": "e3",
        "members": 2,
        "options": {"k": 1},
        "losses": LOSSES,
        "published": "E³-S/32, E=8, K=1, M=2, Last-2",
        "pretrain_as": "vmoe",
    },
    "vmoe": {"label": "V-MoE", "variant": "vmoe", "options": {"k": 2}, "losses": LOSSES},
    "deep": {"label": "Deep ensemble", "variant": "deep", "of": {"vit": [0, 1]}},
}
SEEDS = (0, 1, 2)
OPTIMISATION = {"steps": 10, "batch": 2, "rate": 0.001}
SETTING = {
    "seeds": list(SEEDS),
    "baseline": "vmoe",
    "vision": {"image": 28, "patch": 14, "channels": 1, "layers": 4, "width": 4, "heads": 2, "inner": 8},
    "experts": 4,
    "pretrain": OPTIMISATION,
    "finetune": OPTIMISATION,
    "shots": [1, 5],
    "notes": {"vision": "far too small"},
}
FLOPS = {"vit": 1e6, "vmoe": 1.1e6, "e3": 1.25e6, "deep": 2e6}
CORRUPTIONS = [(f"corrupted_{name}", f"s{severity}") for name in ("blur", "noise") for severity in (1, 4)]


@pytest.fixture(scope="module")
def expected(project):
    return Expected(
        experiment=Experiment(project, "e3", "cpu"),
        about=Experiment(project, "e3", "cpu").about,
        data="images-1",
        methods={name: Method.model_validate(method) for name, method in METHODS.items()},
        seeds=SEEDS,
        baseline="vmoe",
        published=published.load(project / "experiments/e3/published.yaml"),
        notes={"vision": "far too small"},
        shots=(1, 5),
    )


def value_of(*key):
    return random.Random(repr(key)).random()


def rows():
    found = []
    for name, method in METHODS.items():
        several = name in ("e3", "deep")
        scores = [score for score in SCORES if several or score != "mutual_information"]
        cells = [("downstream_test", "", metric) for metric in (*QUALITY, *MORE_QUALITY, *(DIVERSITY if several else ()))]
        cells += [("downstream_validation", "", "temperature"), *(("fewshot", "", f"accuracy_{k}_shot") for k in (1, 5))]
        cells += [(task, "", f"{measure}_{score}") for task in ("ood_far", "ood_near") for measure in DETECTION for score in scores]
        for task, language in (("shift_digits", ""), *CORRUPTIONS):
            cells += [(task, language, metric) for metric in (*QUALITY, *(("disagreement",) if several else ()))]
        for seed in SEEDS:
            found += [(name, seed, "finetune", *cell, value_of(name, seed, *cell)) for cell in cells]
            found += [(name, seed, "finetune", "model", "", "parameters", 1234.0), (name, seed, "finetune", "model", "", *_flops(name))]
            if method["variant"] != "deep" and "pretrain_as" not in method:
                found.append((name, seed, "pretrain", "upstream_test", "", "accuracy", 80.0 + seed))
    return found


def _flops(name):
    return "flops_per_image", FLOPS[name]


def frame(found):
    columns = ("method", "seed", "stage", "task", "language", "metric", "value")
    fixed = {"profile": "cpu", "data": "images-1", "paper": "e3", "n": 100}
    return pd.DataFrame([fixed | dict(zip(columns, row, strict=True)) for row in found], columns=list(records.RECORDS.columns))


def cell(table, of, measure, method):
    found = table[(table["set"] == of) & (table["measure"] == measure) & (table["method"] == method)].to_dict("records")
    assert len(found) == 1
    return found[0]


def test_a_cell_is_mean_and_deviation_over_seeds_and_its_difference_a_paired_t_test(expected):
    table = numbers.table1_quality(frame(rows()), expected)
    seeds = {name: [value_of(name, seed, "downstream_test", "", "nll") for seed in SEEDS] for name in METHODS}
    p_values = {}
    for name, values in seeds.items():
        found = cell(table, "downstream_test", "nll", name)
        assert (found["value"], found["sd"]) == (pytest.approx(stdlib.fmean(values)), pytest.approx(stdlib.stdev(values)))
        assert (found["n_seeds"], found["note"]) == (3, "")
        if name != "vmoe":
            test = stats.ttest_rel(values, seeds["vmoe"])
            interval = test.confidence_interval(0.95)
            assert found["difference"] == pytest.approx(stdlib.fmean(values) - stdlib.fmean(seeds["vmoe"]))
            assert (found["ci_low"], found["ci_high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
            assert found["p"] == pytest.approx(test.pvalue)
            p_values[name] = found["p"]
    smallest = min(p_values, key=p_values.get)
    assert cell(table, "downstream_test", "nll", smallest)["p_holm"] == pytest.approx(min(1, 3 * p_values[smallest]))
    assert cell(table, "downstream_test", "ece_scaled", "e3")["difference"] is None  # not a main column


def test_a_temperature_at_a_bound_is_said_beside_it(expected):
    bounded = [("vmoe", seed, "finetune", "downstream_validation", "", "temperature_at_bound", 1.0) for seed in (1, 0)]
    table = numbers.table1_quality(frame(rows() + bounded), expected)
    note = "temperature at a bound (0.01 or 100), as the validation set determines none: seed 0, seed 1"
    assert cell(table, "downstream_validation", "temperature", "vmoe")["note"] == note
    plain = layout.table1_blocks(numbers.table1_quality(frame(rows()), expected), expected)
    (said,) = [block for block in layout.table1_blocks(table, expected) if block not in plain]
    assert said.heading == "Temperatures at a bound"
    assert said.items == (f"V-MoE: {note}",)


def test_pretraining_stands_only_under_the_method_that_it_is_of(expected):
    table = numbers.table1_quality(frame(rows()), expected)
    assert cell(table, "upstream_test", "accuracy", "vit")["value"] == 81
    assert cell(table, "upstream_test", "accuracy", "e3")["note"] == "starts from the checkpoints of V-MoE: see there"
    assert cell(table, "upstream_test", "accuracy", "deep")["value"] is None


def test_corruption_is_the_plain_mean_over_cells_and_by_severity(expected):
    table = numbers.table3_corruption(frame(rows()), expected)
    for label, wanted in (("corrupted", CORRUPTIONS), ("corrupted s4", [one for one in CORRUPTIONS if one[1] == "s4"])):
        seeds = [stdlib.fmean(value_of("e3", seed, *one, "ece") for one in wanted) for seed in SEEDS]
        found = cell(table, label, "ece", "e3")
        assert (found["value"], found["sd"]) == (pytest.approx(stdlib.fmean(seeds)), pytest.approx(stdlib.stdev(seeds)))
    clean = stdlib.fmean(value_of("e3", seed, "downstream_test", "", "brier") for seed in SEEDS)
    assert cell(table, "clean", "brier", "e3")["value"] == pytest.approx(clean)
    lacking = [row for row in rows() if not (row[:2] == ("e3", 1) and row[3:6] == ("corrupted_blur", "s4", "ece"))]
    found = cell(numbers.table3_corruption(frame(lacking), expected), "corrupted s1", "ece", "e3")
    assert found["n_seeds"] == 2  # a seed counts with every cell or not at all
    assert found["note"].startswith("seed 1 is missing: `dvc repro experiments/e3/cpu/dvc.yaml:finetune@e3-downstream-1`")


def test_what_one_member_cannot_have_is_no_hole(expected):
    records_ = frame(rows())
    assert cell(numbers.table2_ood(records_, expected), "ood_near", "auroc_mutual_information", "vit")["note"] == "one member"
    found = cell(numbers.table2_ood(records_, expected), "ood_near", "auroc_energy", "deep")
    assert found["value"] == pytest.approx(stdlib.fmean(value_of("deep", seed, "ood_near", "", "auroc_energy") for seed in SEEDS))
    diverse = numbers.table5_diversity(records_, expected)
    assert set(diverse["method"]) == {"e3", "deep"}
    assert set(diverse["members"]) == {2}
    undefined = [row for row in rows() if not (row[:2] == ("deep", 2) and row[5] == "normalised_disagreement")]
    found = cell(numbers.table5_diversity(frame(undefined), expected), "downstream_test", "normalised_disagreement", "deep")
    assert (found["n_seeds"], found["note"]) == (2, "not defined for seed 2")


def test_few_shot_is_compared_at_each_number_of_shots(expected):
    table = numbers.table4_fewshot(frame(rows()), expected)
    assert list(dict.fromkeys(table["measure"])) == ["accuracy_1_shot", "accuracy_5_shot"]
    assert cell(table, "fewshot", "accuracy_5_shot", "deep")["p_holm"] is not None


def test_the_saving_is_against_as_many_dense_transformers(expected):
    table = numbers.table6_flops(frame(rows()), {"X/1": {"dense": 10.0, "vmoe": 11.0, "e3": 12.0}}, expected)
    found = {(row["section"], row["method"]): row for row in table.to_dict("records")}
    assert found["analytic", "e3"]["fewer_percent"] == pytest.approx(40)
    assert found["analytic", "vmoe"]["fewer_percent"] == pytest.approx(45)
    assert found["trained", "e3"]["ratio_to_dense"] == pytest.approx(1.25)
    assert found["trained", "e3"]["fewer_percent"] == pytest.approx(37.5)
    assert found["trained", "deep"]["fewer_percent"] == pytest.approx(0)


def test_the_published_saving_of_the_largest_model_is_found_again():
    """FLOPs by the closed form: an E³ of two members doubles all blocks from the first with experts on."""
    recomputed = analytic_flops()
    for size, (patch, layers, width) in {"S/32": (32, 8, 512), "B/16": (16, 12, 768), "H/14": (14, 32, 1280)}.items():
        tokens = (224 // patch) ** 2 + 1
        block = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * 4 * width
        outside = 2 * (tokens - 1) * 3 * patch**2 * width, 2 * width * 1000
        flops = recomputed[size]
        assert flops["dense"] == layers * block + sum(outside)
        # of an even number of blocks the last two odd ones, counted from 0, are the last and the third from the end
        assert flops["e3"] == pytest.approx(flops["dense"] + 3 * block + outside[1], rel=0.002)  # but for the routers
    assert 100 * (1 - flops["e3"] / flops["dense"] / 2) == pytest.approx(45, abs=0.5)


def test_ensembles_that_share_runs_are_named(expected):
    assert (expected.shared(), expected.repeated()) == (["deep"], [])
    alone = replace(expected, seeds=(0,))
    assert (alone.shared(), alone.repeated()) == ([], ["deep"])
    apart = Method(label="Apart", variant="deep", of={"vit": (0,), "vmoe": (0,)})
    assert replace(expected, methods=expected.methods | {"deep": apart}).shared() == []
    blocks = layout.table1_blocks(numbers.table1_quality(frame(rows()), expected), expected)
    assert "share member runs (Deep ensemble)" in blocks[0].text[1]


def test_costs_of_a_deep_ensemble_are_those_of_its_members(expected):
    run = {"profile": "cpu", "paper": "e3"} | dict.fromkeys(records.COSTS.values)
    costs = [
        run | {"method": name, "seed": seed, "stage": stage, "task": "t", "seconds": seconds + seed, "peak_memory_mb": 100.0 + seed}
        for stage, names, seconds in (("pretrain", ("vit", "vmoe"), 10.0), ("finetune", ("vit", "vmoe", "e3"), 1.0))
        for name in names
        for seed in SEEDS
    ]
    found = {row["label"]: row for row in numbers.training_costs(pd.DataFrame(costs), expected)}
    assert found["ViT"] == {"label": "ViT", "pretrain": 11, "finetune": 2, "peak_memory_mb": 102}
    assert found["Deep ensemble"] == {"label": "Deep ensemble", "pretrain": 22, "finetune": 4, "peak_memory_mb": 102}
    assert found["E³ & more"]["pretrain"] == 11  # of the V-MoE that it starts from
    assert {row["finetune"] for row in numbers.training_costs(pd.DataFrame(costs[:-1]), expected)} >= {None}


# ------------------------------------------------------------------------------------------------------------- the stage


def points(names=METHODS):
    key = {"profile": "cpu", "data": "images-1", "paper": "e3"}
    return [
        key
        | {"method": name, "seed": seed, "curve": curve, "point": point, "x": point / 4, "y": value_of(name, seed, curve, point), "n": 5}
        for name in names
        for seed in SEEDS
        for curve in ("reliability", "accuracy_rejection")
        for point in range(4)
    ]


def write(folder, measured, drawn):
    records.write(folder / "records.csv", frame(measured).to_dict("records"), records.RECORDS)
    records.write(folder / "curves.csv", drawn, records.CURVES)
    for name in ("provenance.csv", "costs.csv"):
        records.write(folder / name, [], records.FILES[name])


@pytest.fixture
def paper(tmp_path, write_paper):
    paper = write_paper(tmp_path, SETTING, METHODS)
    write(paper.results, rows(), points())
    return paper


TABLES = ("table1_quality", "table2_ood", "table3_corruption", "table4_fewshot", "table5_diversity", "table6_flops")


def content(paper):
    names = [f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")]
    return {
        name: (paper.results / name).read_bytes() for name in [*names, "README.md", "costs.md", "reliability.svg", "accuracy_rejection.svg"]
    }


def test_shuffled_records_give_the_same_bytes(paper):
    tables(paper)
    first = content(paper)
    for name in ("records.csv", "curves.csv"):
        path = paper.results / name
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *random.Random(3).sample(lines, len(lines))]) + "\n")
    tables(paper)
    assert content(paper) == first


def test_the_figures_do_not_depend_on_the_reader_s_settings(expected):
    import matplotlib

    drawn = pd.DataFrame(points(), columns=list(records.CURVES.columns))
    first = figures.reliability(drawn, expected)
    with matplotlib.rc_context({"lines.linewidth": 7, "axes.grid": True, "svg.hashsalt": "other", "font.size": 20}):
        assert figures.reliability(drawn, expected) == first
    assert "<dc:date>" not in first
    for label in ("V-MoE", "ViT", "E³ &amp; more", "Deep ensemble"):
        assert label in first


def test_every_document_names_profile_and_data_and_shows_the_cells(paper):
    tables(paper)
    found = {name: data.decode() for name, data in content(paper).items()}
    for name in TABLES:
        assert "(profile `cpu`, data `images-1`)" in found[f"{name}.md"].splitlines()[0]
        assert r"E³ \& more" in found[f"{name}.tex"]
    values = [value_of("e3", seed, "downstream_test", "", "nll") for seed in SEEDS]
    assert f"{stdlib.fmean(values):.3f} ± {stdlib.stdev(values):.3f} (3)" in found["table1_quality.md"]
    assert "| 1,234 | 1.25 |" in found["table1_quality.md"]
    assert "81.31" in found["table1_quality.md"]
    assert "`vision`: far too small." in found["table1_quality.md"]
    assert "AUROC of each score" in found["table2_ood.md"]
    assert "severity 4" in found["table3_corruption.md"]
    assert "E³ takes 32.2 to 45.3 % fewer" in found["table6_flops.md"]


def test_nothing_measured_makes_tables_of_holes(paper):
    write(paper.results, [], [])
    tables(paper)
    found = {name: data.decode() for name, data in content(paper).items()}
    for name in TABLES:
        assert "nothing measured yet" in found[f"{name}.md"].splitlines()[0]
        assert "`dvc repro experiments/e3/cpu/dvc.yaml:finetune@" in found[f"{name}.md"]
    assert "`dvc repro experiments/e3/cpu/dvc.yaml:pretrain@vmoe-0`" in found["table1_quality.md"]
    assert "finetune@vit-downstream-0`" in found["table5_diversity.md"]  # the ensemble's first member


def test_two_seeds_claim_nothing(paper):
    write(paper.results, [row for row in rows() if row[1] < 2], points())
    tables(paper)
    text = (paper.results / "table1_quality.md").read_text(encoding="utf-8")
    assert "p 0." not in text
    assert "finetune@vmoe-downstream-2`" in text


def test_the_stage_takes_records_over_and_old_figures_away(paper):
    write(paper.records_folder, rows(), points())
    tables(paper)
    beside = content(paper)
    (paper.records_folder / "curves.csv").unlink()
    (paper.results / "table9_old.md").touch()
    tabulate(paper)
    assert not (paper.results / "curves.csv").exists()
    assert not (paper.results / "table9_old.md").exists()
    found = content(paper)
    assert {name for name in beside if beside[name] != found[name]} == {"reliability.svg", "accuracy_rejection.svg"}


def test_mistakes_are_named(paper, write_paper):
    write(paper.results, [*rows(), ("vit", 9, "finetune", "a", "", "b", 1.0)], points())
    path = paper.results / "records.csv"
    path.write_text(path.read_text().replace("images-1,e3,vit,9", "images-2,e3,vit,9"))
    with pytest.raises(MoebenchError, match="holds several values, images-1, images-2"):
        tables(paper)
    write(paper.results, rows(), points())
    wrong = write_paper(paper.root, SETTING, METHODS | {"vit": METHODS["vit"] | {"published": "E³-S/32"}})
    with pytest.raises(MoebenchError, match=r"vit\.yaml: key 'published' has the value 'E³-S/32'"):
        tables(wrong)
    with pytest.raises(MoebenchError, match=r"key 'baseline' names 'vitt' \(did you mean 'vit'\?\); methods are: deep, e3, vit, vmoe"):
        tables(write_paper(paper.root, SETTING | {"baseline": "vitt"}, METHODS))


def test_evaluation_and_tables_import_no_torch():
    modules = "moebench.pipeline.evaluate, moebench.pipeline.tabulate, moebench.protocols.vision.scoring, moebench.protocols.vision.tables"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shallow_baselines_stand_by_themselves_in_the_first_table(expected):
    found = [*rows(), ("logistic_regression", 0, "baseline", "downstream_test", "", "accuracy", 92.25)]
    found += [("logistic_regression", 0, "baseline", "downstream_test", "", "nll", 0.3125)]
    found += [("svm", 0, "baseline", "downstream_test", "", "accuracy", 96.5)]
    table, without = (numbers.table1_quality(frame(each), expected) for each in (found, rows()))
    assert cell(table, "downstream_test", "accuracy", "svm")["value"] == 96.5
    assert table[table["method"].isin(list(METHODS))].to_csv() == without.to_csv()  # nothing else changes
    blocks = {block.heading: block for block in layout.table1_blocks(table, expected)}
    assert blocks["Shallow baselines"].rows == (
        ("Logistic regression", "92.25", "0.312", "—", "—"),
        ("SVM, Gaussian kernel", "96.50", "—", "—", "—"),
    )
    assert all(block.heading != "Shallow baselines" for block in layout.table1_blocks(without, expected))
