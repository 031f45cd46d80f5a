"""Experts in use and experts that a token reaches: prepared classes of words, measures against loops, tables and figures."""

import csv
import io
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from moebench.data import lm_tokenizer
from moebench.data.choices import ChoiceSource
from moebench.experiment import Run
from moebench.files import read_json, write_json
from moebench.models.build import load_weights
from moebench.moe.contract import Routing
from moebench.pipeline.evaluate import evaluate
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.pipeline.tabulate import tabulate
from moebench.pipeline.train import train
from moebench.protocols.language_model.batches import batch_of, open_rows
from moebench.protocols.language_model.build import build
from moebench.protocols.language_model.config import ACTIVATION, DIVERSITY, DIVERSITY_OF, METRICS, TOKEN_ACTIVATION, WORD_CLASSES
from moebench.protocols.language_model.examination import first_choices
from moebench.protocols.language_model.figures import SHARES

MULTI_HEAD = {"label": "MH-MoE", "layer": "moe", "router": "mhmoe_topk", "losses": {"balance": 0.02}, "options": {"k": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_paper, project):
    """A small paper with two constructed texts and models with and without sub-tokens, all examined after a few steps."""
    texts = {"pivot": {"source": "constructed"}, "second": {"source": "constructed", "language": 1}}
    pretrain = {"steps": 4, "batch": 4, "rate": 0.003}
    setting = {"pretrain": pretrain, "sparse_every": 2, "experts": 6, "beside": "F1", "seeds": [0, 1]}
    methods = {
        "dense": {"label": "Dense", "layer": "dense"},
        "moe": {"label": "MoE", "layer": "moe", "router": "topk", "losses": {"balance": 0.02}, "options": {"k": 2}},
        "soft": {"label": "Soft MoE", "layer": "soft_moe"},
        "heads": MULTI_HEAD | {"multi_head": {"heads": 2, "parity": "none"}},
        "one_each": MULTI_HEAD | {"label": "one each", "options": {"k": 1}, "multi_head": {"heads": 4, "parity": "parameters"}},
    }
    paper = write_paper(
        tmp_path_factory.mktemp("paper"),
        ("data", "texts", texts),
        ("data", "tasks", {}),
        *(("setting", key, value) for key, value in setting.items()),
        ("setting", "decoder", "layers", 4),
        ("methods", methods),
    )
    shutil.copy(project / "experiments/mhmoe/published.yaml", paper.home)
    for name, value in planned(paper).items():
        write_json(paper.plan_folder / f"{name}.json", value)
    prepare(paper)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(paper.root)
        for run in paper.runs:
            train(paper, run)
    paper.baselines_folder.mkdir(parents=True)
    return paper


def examination(method):
    return Run("finetune", method, 0, "examination", f"{method}-0", "examination")


def measures_of(paper, method):
    rows = read_json(paper.folder(examination(method)) / "measures.json")
    return {(row["language"], row["metric"]): (row["value"], row["n"]) for row in rows if row["task"] == "routing"}


def routings_of(paper, method, text):
    """What every sparse block decides on a held-out text, and how many sub-tokens a token has."""
    run = examination(method)
    pieces = lm_tokenizer.load(paper.prepared / "tokenizer")
    decoder = build(json.loads(paper.plan_file(run).read_text())["config"], pieces.size).eval()
    load_weights(decoder, paper.start(run))
    batch = batch_of(open_rows(paper.prepared / "validation", text)[:], pieces)
    with torch.no_grad():
        _, reports = decoder(batch["ids"], positions_BS=batch["positions"])
    return [(aux.routing, aux.heads) for aux in reports if aux.routing is not None]


# ---------------------------------------------------------------------------------------------------- classes of words


@pytest.mark.parametrize(("text", "number"), [("pivot", 0), ("second", 1)])
def test_every_piece_has_the_class_of_the_word_that_it_is_part_of(finished, text, number):
    pieces = lm_tokenizer.load(finished.prepared / "tokenizer")
    ids = open_rows(finished.prepared / "validation", text)[:].ravel().tolist()
    classes = np.load(finished.prepared / "classes" / f"{text}.npy")
    assert classes.shape == (12, 32)
    code = ChoiceSource(finished.data.constructed, number).word_classes()
    words, seen = [], 0
    for piece, found in zip(ids, classes.ravel().tolist(), strict=True):
        if piece in (pieces.bos, pieces.eos):
            assert found == 0
            words.append((None, set(), 0))
            continue
        form = pieces.decode([piece])
        if form.startswith(" ") or words[-1][0] is None:
            words.append(("", set(), 0))
        before, together, count = words[-1]
        words[-1] = (before + form.strip(), together | {found}, count + 1)
    for word, found, _ in words[:-1]:  # the last may be cut off
        if word is not None:
            assert found == {code[word]}
            seen += 1
    assert seen > 100
    assert any(count > 1 for _, _, count in words)


def test_classes_belong_to_what_examinations_read_and_to_nothing_that_is_trained_on(finished):
    listed = {part: set(json.loads((finished.prepared / "parts" / f"{part}.json").read_text())) for part in ("train", "examination")}
    assert {"classes/pivot.npy", "classes/second.npy"} <= listed["examination"]
    assert not any(name.startswith("classes") for name in listed["train"])


# ------------------------------------------------------------------------------------------------------------ measures


@pytest.mark.parametrize(("method", "heads", "k"), [("moe", 1, 2), ("heads", 2, 2), ("one_each", 4, 1)])
def test_examined_diversity_is_that_of_a_loop_over_tokens(finished, method, heads, k):
    found = measures_of(finished, method)
    for text in ("pivot", "second"):
        classes = np.load(finished.prepared / "classes" / f"{text}.npy").ravel()
        reached, first = [], []
        for routing, split in routings_of(finished, method, text):
            assert split == heads
            sets = [set() for _ in range(len(classes))]
            best = [set() for _ in range(len(classes))]
            for unit in range(len(classes) * heads):
                mine = routing.expert[routing.token == unit].tolist()
                assert len(mine) == k
                sets[unit // heads] |= set(mine)
                best[unit // heads].add(max(mine, key=lambda expert: routing.scores[unit, expert]))
            reached.append([len(one) for one in sets])
            first.append([len(one) for one in best])
        assert len(reached) == 2
        reached, first, experts = np.mean(reached, axis=0), np.mean(first, axis=0), routing.scores.shape[1]
        assert found[text, "diversity"] == (pytest.approx(reached.mean()), len(classes))
        assert found[text, "diversity_first"] == (pytest.approx(first.mean()), len(classes))
        assert found[text, "diversity_random"][0] == pytest.approx(experts * (1 - (1 - k / experts) ** heads))
        assert found[text, "diversity_first_random"][0] == pytest.approx(experts * (1 - (1 - 1 / experts) ** heads))
        for word, codes in {"function": (1,), "content": (2, 3), "homonym": (3,)}.items():
            mine = np.isin(classes, codes)
            wanted = (pytest.approx(reached[mine].mean()), mine.sum()) if mine.any() else None
            assert found.get((text, f"diversity_{word}")) == wanted
        if heads == 1:
            assert {found[text, name][0] for name in ("diversity", "diversity_random", "diversity_content")} == {k}
            assert found[text, "diversity_first"][0] == 1
    assert ("pivot", "diversity_homonym") in found
    assert ("second", "diversity_homonym") not in found  # its endings tell nouns from verbs


@pytest.mark.parametrize(("method", "chosen"), [("moe", 2), ("heads", 4), ("one_each", 4)])
def test_experts_in_use_are_counted_over_all_held_out_text(finished, method, chosen):
    found = measures_of(finished, method)
    texts = [routings_of(finished, method, text) for text in ("pivot", "second")]
    cells = [sum(np.bincount(text[place][0].expert, minlength=text[place][0].scores.shape[1]) for text in texts) for place in (0, 1)]
    experts, tokens = len(cells[0]), 2 * 12 * 32
    for metrics, shares, units in ((ACTIVATION, (0, 0.1, 0.5, 1), chosen * tokens), (TOKEN_ACTIVATION, (0.1, 0.5, 1), tokens)):
        for metric, share in zip(metrics, shares, strict=True):
            active = sum(int(count) / units > share / experts for layer in cells for count in layer)
            assert found["all", metric] == (pytest.approx(active / (2 * experts)), tokens), metric
    assert found["all", "activation_0"][0] >= found["all", "activation_1"][0] > 0
    # what METRICS.md says of counts: share times selections a token times tokens
    for place, layer in zip(("layer02", "layer04"), cells, strict=True):
        shares = [found[f"{place}.expert{expert + 1:03d}", "load"][0] for expert in range(experts)]
        assert np.array(shares) * found[place, "experts_per_token"][0] * tokens == pytest.approx(layer)
    assert {metric for _, metric in found} <= set(METRICS)


def test_a_text_whose_words_have_no_classes_is_examined_without_them(finished, monkeypatch):
    monkeypatch.chdir(finished.root)
    run = examination("heads")
    before = measures_of(finished, "heads")
    (finished.prepared / "classes" / "pivot.npy").rename(finished.prepared / "classes" / "away.npy")
    shutil.rmtree(finished.folder(run))
    train(finished, run)
    after = measures_of(finished, "heads")
    assert before.keys() - after.keys() == {("pivot", f"diversity_{word}") for word in WORD_CLASSES}
    for key, (value, n) in after.items():
        assert before[key] == (pytest.approx(value, abs=1e-12), n)
    (finished.prepared / "classes" / "away.npy").rename(finished.prepared / "classes" / "pivot.npy")
    shutil.rmtree(finished.folder(run))
    train(finished, run)
    assert measures_of(finished, "heads") == before


def test_where_experts_are_mixed_or_there_are_none_there_is_nothing_to_count(finished):
    for method in ("soft", "dense"):
        assert not {metric for _, metric in measures_of(finished, method)} & {*ACTIVATION, *TOKEN_ACTIVATION, *DIVERSITY, *DIVERSITY_OF}


def test_first_choices_are_the_best_of_those_that_were_taken():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.2], [0.0, 0.0, 0.0], [0.7, 0.8, 0.6]])
    token, expert = torch.tensor([3, 0, 1, 0, 1, 3]), torch.tensor([2, 2, 1, 0, 0, 0])
    unit, first = first_choices(Routing(token, expert, torch.ones(6), scores))
    assert dict(zip(unit.tolist(), first.tolist(), strict=True)) == {0: 2, 1: 0, 3: 0}  # of equal ones the first; token 2 has none


# --------------------------------------------------------------------------------------------------- tables and figures


@pytest.fixture(scope="module")
def shown(finished):
    assert evaluate(finished) == []
    tabulate(finished)
    return {path.name: path.read_text(encoding="utf-8") for path in finished.results.iterdir()}


def test_the_share_of_experts_in_use_stands_beside_the_published_values(finished, shown):
    table = shown["activation.md"]
    ours = table[: table.index("## Published")]
    (row,) = (line for line in ours.splitlines() if line.startswith("| MH-MoE |"))
    folders = [finished.folder(Run("finetune", "heads", seed, "examination")) for seed in (0, 1)]
    found = [one["value"] for folder in folders for one in read_json(folder / "measures.json") if one["metric"] == "activation_1"]
    assert f"| {100 * np.mean(found):.1f} ± {100 * np.std(found, ddof=1):.1f} (2) |" in row
    assert "| X-MoE | 8.33 |" in table
    assert "| MH-MoE | 90.71 |" in table
    assert "threshold, which is not published" in table
    assert "Dense, experts a token and 7 more: no experts" in table
    assert "Soft MoE, chosen at all, % and 6 more: experts are mixed, not chosen" in table


def test_experts_that_a_token_reaches_are_shown_by_text_and_class_of_word(finished, shown):
    lines = [line for line in shown["diversity.md"].splitlines() if line.startswith("|")]
    assert lines[0].count("|") == 10
    assert [tuple(line.split(" | ")[:2]) for line in lines[2:]] == [
        (f"| {text}", label) for text in ("pivot", "second") for label in ("MH-MoE", "one each")
    ]
    assert "a substitute" in shown["diversity.md"]
    assert "missing" not in shown["diversity.md"]
    assert lines[2].split(" | ")[6].endswith("(2)")  # homonyms of the pivot
    assert lines[4].split(" | ")[6] == "—"
    rows = list(csv.DictReader(io.StringIO(shown["diversity.csv"])))
    assert {row["metric"] for row in rows} == {*DIVERSITY, *DIVERSITY_OF}
    assert ">homonym<" in shown["diversity.svg"]


def test_a_heat_map_has_a_row_a_sparse_block_and_a_cell_an_expert(finished, shown):
    rows = list(csv.DictReader(io.StringIO(shown["heat_map.csv"])))
    counts = {name: sum(row["method"] == name for row in rows) for name in finished.methods}
    assert counts == {"dense": 0, "moe": 12, "soft": 12, "one_each": 12} | {"heads": counts["heads"]}
    assert counts["heads"] > 12  # more experts, each narrower
    assert {row["block"] for row in rows} == {"2", "4"}
    mine = measures_of(finished, "heads")
    for row in rows:
        if row["method"] == "heads":
            key = (f"layer{int(row['block']):02d}.expert{int(row['expert']):03d}", "load")
            assert float(row["share"]) == pytest.approx(mine[key][0], abs=1e-6)
    mesh = ElementTree.fromstring(shown["heat_map.svg"]).findall(".//*[@id]")
    cells = [len(part) for part in mesh if part.get("id").startswith("QuadMesh")]
    assert sorted(cells) == sorted([len(SHARES) - 1, *(count for count in counts.values() if count)])  # the first: the scale of colours
    for label in ("MoE", "Soft MoE", "MH-MoE", "one each"):
        assert f">{label}<" in shown["heat_map.svg"]


def test_all_of_it_is_the_same_byte_for_byte_when_made_again(finished, shown):
    tabulate(finished)
    assert {path.name: path.read_text(encoding="utf-8") for path in finished.results.iterdir()} == shown
