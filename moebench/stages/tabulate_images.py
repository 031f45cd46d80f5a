"""Stage ``tabulate`` of papers on images: tables as CSV, Markdown and LaTeX, and figures, from records and published numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from moebench import config_images as config
from moebench.errors import MoebenchError, nearest
from moebench.files import write_text
from moebench.results import image_figures, image_layout, images, published, records
from moebench.results.rendering import latex, markdown
from moebench.stages.evaluate_images import methods_of
from moebench.stages.tabulate import csv_of

README = """\
# Results of {paper} under the profile `{profile}`

All files are made by `moebench evaluate` and `moebench tabulate`; none is edited by hand.

| file | what it holds |
|---|---|
| `records.csv` | every measured number in long form, a row a method, seed, set and metric; `n`: on how many images |
| `provenance.csv` | of each run: hash of its configuration, fingerprint of its code, commit, versions, hardware |
| `costs.csv`, `costs.md` | of each run: seconds, peak memory, parameters; the second in short, for each method |
| `curves.csv` | the points of the figures, of every method and seed |
| `table1_quality.csv` `.md` `.tex` | accuracy, proper scores and calibration on the test set; sizes; published values |
| `table2_ood.csv` `.md` `.tex` | detection of out-of-distribution sets by seven scores |
| `table3_corruption.csv` `.md` `.tex` | quality under corruptions, by severity, and under shift |
| `table4_fewshot.csv` `.md` `.tex` | accuracy from few examples a class, on features of the pre-trained models |
| `table5_diversity.csv` `.md` `.tex` | how much the members of ensembles differ |
| `table6_flops.csv` `.md` `.tex` | operations an image against deep ensembles, of the published sizes and of those trained here |
| `reliability.svg` | accuracy over confidence: the baseline and the first dense model, E³ and deep ensemble, images of all seeds together |
| `accuracy_rejection.svg` | accuracy where the least confident images are left out: the same methods, mean over seeds |

In `records.csv` the task is the name of the set; `corrupted_<name>` has its severity, `s1` to `s5`, as language. Accuracies are in percent,
all other measures fractions or nats; the temperature stands under the validation set that it was fitted on. `<measure>_<score>` of an
`ood_` set is a measure of detection by that score. The task `model` holds sizes, `fewshot` the accuracies from few examples. A deep
ensemble has records like a run, under the seed from which its members are counted, but no row in `provenance.csv` and `costs.csv`: it
trains nothing.

`records.csv`, the tables and the figures are the same byte for byte when made again from the same runs; seconds, memory, versions and
commits are not. What the measures are stands in `docs/METRICS.md`.

In LaTeX: `\\input{{table1_quality.tex}}` with the packages `booktabs` and `graphicx`.
"""

SIZES = {
    "S/32": (32, 8, 512, 8),
    "B/32": (32, 12, 768, 12),
    "B/16": (16, 12, 768, 12),
    "L/32": (32, 24, 1024, 16),
    "L/16": (16, 24, 1024, 16),
    "H/14": (14, 32, 1280, 16),
}
"""Patch, blocks, width, heads of the public configurations; the inner width is four times the width."""
IMAGE, CLASSES, EXPERTS, LAST = 224, 1000, 32, 2


@cache
def analytic_flops() -> dict[str, dict[str, float]]:
    """Forward operations an image of the published sizes: ``dense``, ``vmoe`` (K = 2) and ``e3`` (K = 1, M = 2), experts in the Last-2."""
    import torch

    from moebench.models.vit import Mixture, ViT, flops_per_image

    found = {}
    for size, (patch, layers, width, heads) in SIZES.items():
        shape = config.Vision(image=IMAGE, patch=patch, layers=layers, width=width, heads=heads, inner=4 * width)
        with torch.device("meta"):  # shapes without weights
            dense = ViT(shape, CLASSES)
            vmoe = ViT(shape, CLASSES, Mixture(variant="vmoe", experts=EXPERTS, last=LAST, options={"k": 2}))
            e3 = ViT(shape, CLASSES, Mixture(variant="e3", experts=EXPERTS, last=LAST, members=2, options={"k": 1}))
        found[size] = {"dense": flops_per_image(dense), "vmoe": flops_per_image(vmoe, 2), "e3": flops_per_image(e3, 1)}
    return found


def expectation(root: Path, profile: str, paper: str, measured: pd.DataFrame) -> images.Expected:
    """Put together what the tables should hold, from the configuration and from what the records say about their data.

    Raises:
        MoebenchError: the records hold another profile's or paper's, or mix data; the baseline does not run; a method names a published row
            that does not exist.
    """
    setting, methods = config.setting(root, paper, profile), methods_of(root, profile, paper)
    if setting.baseline not in methods:
        path = root / "experiments" / paper / "profiles" / f"{profile}.yaml"
        raise MoebenchError(
            f"{path}: key 'baseline' has the value {setting.baseline!r}, which does not run; methods are: {', '.join(methods)}"
        )
    numbers = published.load(root, paper)
    rows = [row for table in numbers.tables.values() for row in table.rows]
    for name, method in methods.items():
        if method.published is not None and method.published not in rows:
            path = root / "experiments" / paper / "methods" / f"{name}.yaml"
            raise MoebenchError(
                f"{path}: key 'published' has the value {method.published!r}{nearest(method.published, rows)};"
                f" rows of published.yaml are: {', '.join(dict.fromkeys(rows))}"
            )
    where = root / "results" / profile / paper / "records.csv"
    for column, wanted in (("profile", profile), ("paper", paper)):
        if set(measured[column]) - {wanted}:
            raise MoebenchError(f"{where}: column {column!r} holds {', '.join(sorted(set(measured[column])))}; should be {wanted} alone")
    data = sorted(set(measured["data"]))
    if len(data) > 1:
        raise MoebenchError(f"{where}: column 'data' holds several values, {', '.join(data)}; run evaluate again")
    return images.Expected(
        profile=profile,
        paper=paper,
        data=data[0] if data else "",
        methods=methods,
        seeds=setting.seeds,
        baseline=setting.baseline,
        shots=setting.shots if setting.draws else (),
        published=numbers,
        notes=setting.notes,
    )


def tabulate_images(root: Path, profile: str, paper: str) -> None:
    """Write tables, figures and a ``README.md`` beside the records, ``results/<profile>/<paper>/``; cells without a number say why.

    Raises:
        MoebenchError: records or published numbers are missing or damaged. Nothing was changed then.
    """
    folder = root / "results" / profile / paper
    measured = records.read(folder / "records.csv", records.RECORDS)
    costs = records.read(folder / "costs.csv", records.COSTS)
    points = records.read(folder / "curves.csv", images.CURVES)
    expected = expectation(root, profile, paper, measured)
    table1 = images.table1_quality(measured, expected)
    table2 = images.table2_ood(measured, expected)
    table3 = images.table3_corruption(measured, expected)
    table4 = images.table4_fewshot(measured, expected)
    table5 = images.table5_diversity(measured, expected)
    table6 = images.table6_flops(measured, analytic_flops(), expected)
    files = {"README.md": README.format(paper=expected.published.paper, profile=profile)}
    for name, what, table, blocks in (
        ("table1_quality", "quality and calibration", table1, image_layout.table1_blocks(table1, expected)),
        ("table2_ood", "out-of-distribution detection", table2, image_layout.table2_blocks(table2, expected)),
        ("table3_corruption", "corruption and shift", table3, image_layout.table3_blocks(table3, expected)),
        ("table4_fewshot", "few examples a class", table4, image_layout.table4_blocks(table4, expected)),
        ("table5_diversity", "diversity of members", table5, image_layout.table5_blocks(table5, expected)),
        ("table6_flops", "operations against deep ensembles", table6, image_layout.table6_blocks(table6, expected)),
    ):
        title = image_layout.title(what, expected)
        files[f"{name}.csv"] = csv_of(table)
        files[f"{name}.md"] = markdown(title, blocks)
        files[f"{name}.tex"] = latex(title, f"tab:{paper}-{profile}-{name}", blocks)
    files["costs.md"] = markdown(image_layout.title("what training cost", expected), image_layout.costs_blocks(costs, expected))
    files["reliability.svg"] = image_figures.reliability(points, expected)
    files["accuracy_rejection.svg"] = image_figures.accuracy_rejection(points, expected)
    for name, text in files.items():
        write_text(folder / name, text)
