"""How it is shown: quality, out-of-distribution detection, corruptions, few examples, diversity and operations, with two figures."""

from __future__ import annotations

from functools import cache

from moebench.models.shapes import Vision
from moebench.protocols.vision import figures, layout, numbers
from moebench.results.tables import Document, Expected, Figure, Measured, title

FILES = """\
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
"""
"""Rows of the list of files in the README beside the results."""
NOTES = """\
In `records.csv` the task is the name of the set; `corrupted_<name>` has its severity, `s1` to `s5`, as language. Accuracies are in percent,
all other measures fractions or nats; the temperature stands under the validation set that it was fitted on. `<measure>_<score>` of an
`ood_` set is a measure of detection by that score. The task `model` holds sizes, `fewshot` the accuracies from few examples. A deep
ensemble has records like a run, under the seed from which its members are counted, but no row in `provenance.csv` and `costs.csv`: it
trains nothing.

`records.csv`, the tables and the figures are the same byte for byte when made again from the same runs; seconds, memory, versions and
commits are not. What the measures are stands in `docs/METRICS.md`.
"""
"""What that README says about them."""

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
        shape = Vision(image=IMAGE, patch=patch, layers=layers, width=width, heads=heads, inner=4 * width)
        with torch.device("meta"):  # shapes without weights
            dense = ViT(shape, CLASSES)
            vmoe = ViT(shape, CLASSES, Mixture(variant="vmoe", experts=EXPERTS, last=LAST, options={"k": 2}))
            e3 = ViT(shape, CLASSES, Mixture(variant="e3", experts=EXPERTS, last=LAST, members=2, options={"k": 1}))
        found[size] = {"dense": flops_per_image(dense), "vmoe": flops_per_image(vmoe, 2), "e3": flops_per_image(e3, 1)}
    return found


def tables(expected: Expected, measured: Measured) -> list[Document | Figure]:
    """Make the tables and figures; the first is the one to look at."""
    setting = expected.experiment.setting
    every = numbers.Expected(**vars(expected), shots=setting.shots if setting.draws else ())
    found = measured.records
    table1, table2 = numbers.table1_quality(found, every), numbers.table2_ood(found, every)
    table3, table4 = numbers.table3_corruption(found, every), numbers.table4_fewshot(found, every)
    table5, table6 = numbers.table5_diversity(found, every), numbers.table6_flops(found, analytic_flops(), every)
    return [
        Document("table1_quality", title(every, "quality and calibration"), layout.table1_blocks(table1, every), table1),
        Document("table2_ood", title(every, "out-of-distribution detection"), layout.table2_blocks(table2, every), table2),
        Document("table3_corruption", title(every, "corruption and shift"), layout.table3_blocks(table3, every), table3),
        Document("table4_fewshot", title(every, "few examples a class"), layout.table4_blocks(table4, every), table4),
        Document("table5_diversity", title(every, "diversity of members"), layout.table5_blocks(table5, every), table5),
        Document("table6_flops", title(every, "operations against deep ensembles"), layout.table6_blocks(table6, every), table6),
        Document("costs", title(every, "what training cost"), layout.costs_blocks(measured.costs, every)),
        Figure("reliability", figures.reliability(measured.curves, every)),
        Figure("accuracy_rejection", figures.accuracy_rejection(measured.curves, every)),
    ]
