"""Zero-shot tasks as they are prepared: in every constructed language, and XNLI from its own files."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moebench.data.choices import ChoiceSource
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import read_jsonl
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.protocols.language_model.harness import local_tasks, write_tasks
from moebench.protocols.language_model.prepare import xnli_row
from moebench.protocols.language_model.shallow import WordCounts

SECOND = (("data", "texts", "second", {"source": "constructed", "language": 1}), ("data", "tasks", {"role": 0, "role_second": 0}))


def test_a_task_is_prepared_in_the_language_of_its_text_with_its_own_shallow_baselines(write):
    paper = write(*SECOND)
    prepare(paper)
    folder = paper.prepared / "tasks"
    assert sorted(path.name for path in folder.iterdir()) == ["role.jsonl", "role.yaml", "role_second.jsonl", "role_second.yaml"]
    items = read_jsonl(folder / "role_second.jsonl")
    assert items == ChoiceSource(paper.data.constructed, 1).items("role")
    assert local_tasks(folder)["role_second"].config.task == "role_second"

    paper.baselines_folder.mkdir(parents=True)
    paper.protocol.baselines.baselines(paper, paper.baselines_folder)
    answers = {name: read_jsonl(paper.baselines_folder / f"unigram/choices/{name}.jsonl") for name in ("role", "role_second")}
    assert [row["label"] for row in answers["role_second"]] == [item["label"] for item in items]
    counts = WordCounts(ChoiceSource(paper.data.constructed, 1).documents("train"))
    for item, row in zip(items, answers["role_second"], strict=True):
        expected = [counts.unigram("", choice) for choice in item["choices"]]
        np.testing.assert_allclose(row["loglikelihoods"], expected)
    assert answers["role"] != answers["role_second"]


# ------------------------------------------------------------------------------------------------------------------ XNLI

PAIRS = [
    ("He is at home .", "He is outside .", "contradiction"),
    ("He is at home .", "He is in .", "entailment"),
    ("She reads .", "She reads a long book .", "neutral"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """XNLI as XTREME leaves it: test files without labels, development files with them; German and English; and some English text."""
    home = tmp_path / "files" / "xtreme" / "xnli"
    home.mkdir(parents=True)
    for language in ("de", "en"):
        rows = [(f"{language} {first}", f"{language} {second}", label) for first, second, label in PAIRS]
        (home / f"dev-{language}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
        (home / f"test-{language}.tsv").write_text("".join("\t".join(row[:2]) + "\n" for row in rows))
    lines = [f"Premise {n} .\tHypothesis {n} .\t{PAIRS[n % 3][2]}\n" for n in range(30)]
    (home / "train-en.tsv").write_text("".join(lines))
    text = [f"This is line {n} of {n % 7} about {n % 11} things ." for n in range(900)]
    (tmp_path / "files" / "text.txt").write_text("\n".join(text))
    monkeypatch.setenv("MOEBENCH_FOLDER", str(tmp_path / "files"))
    return home


BENCHMARKS = {"source": "files", "tasks": ["xnli"], "corpus_files": {"en": "text.txt"}, "tokens": {"source": "bundled"}}


def xnli(*names, **more):
    return (
        ("data", "texts", {"en": {"source": "benchmarks", "language": "en"}}),
        ("data", "constructed", None),
        ("data", "benchmarks", BENCHMARKS | more),
        ("data", "tasks", dict.fromkeys(names, 0)),
        ("data", "validation_rows", 2),
    )


def test_xnli_is_prepared_from_its_labelled_files_in_the_harness_own_words(write, folder):
    paper = write(*xnli("xnli_de", "xnli_en"))
    prepare(paper)
    assert read_jsonl(paper.prepared / "tasks" / "xnli_de.jsonl") == [
        {"id": "dev-de:1", "premise": "de He is at home .", "hypothesis": "de He is outside .", "label": 2},
        {"id": "dev-de:2", "premise": "de He is at home .", "hypothesis": "de He is in .", "label": 0},
        {"id": "dev-de:3", "premise": "de She reads .", "hypothesis": "de She reads a long book .", "label": 1},
    ]
    task = local_tasks(paper.prepared / "tasks")["xnli_de"]
    row = next(iter(task.test_docs()))
    assert task.doc_to_text(row) == ""
    assert task.doc_to_choice(row) == [f"de He is at home ., richtig? {word}, de He is outside ." for word in ("Ja", "Auch", "Nein")]
    assert task.doc_to_target(row) == 2
    assert "tasks" in paper.protocol.prepare.parts(paper)["examination"]
    assert paper.protocol.prepare.plan(paper).config["lm_eval"]


def test_a_language_without_a_labelled_file_is_named(write, folder):
    with pytest.raises(MoebenchError, match=r"smoke\.yaml: key 'tasks' names 'xnli_fr', and .*files has no labelled XNLI file .*: de, en$"):
        prepare(write(*xnli("xnli_de", "xnli_fr")))
    (folder / "dev-de.tsv").unlink()
    with pytest.raises(MoebenchError, match=r"test-de\.tsv: labels stripped"):
        prepare(write(*xnli("xnli_de")))


def test_the_files_of_xnli_decide_what_is_planned_and_shots_are_refused(write, folder):
    before = planned(write(*xnli("xnli_de")))["prepare"]
    (folder / "dev-de.tsv").write_text((folder / "dev-de.tsv").read_text().replace("outside", "out"))
    assert planned(write(*xnli("xnli_de")))["prepare"] != before
    with pytest.raises(MoebenchError, match=r"tasks.xnli_de 3: should be 0, as XNLI's files of one language have no examples to show"):
        write(*xnli(), ("data", "tasks", {"xnli_de": 3})).check()


REAL = Path(os.environ.get("MOEBENCH_FOLDER", "nowhere"))


@pytest.mark.skipif(not (REAL / "xtreme" / "xnli").is_dir(), reason="no XNLI below MOEBENCH_FOLDER")
def test_the_real_files_are_asked_in_the_languages_of_the_profile(project, tmp_path):
    from moebench.data.files import FilesSource

    data = Experiment(project, "mhmoe", "real").data
    tests = FilesSource(REAL, data.benchmarks).test("xnli")
    items = {name: [xnli_row(row) for row in tests[name.removeprefix("xnli_")]] for name in data.xnli}
    assert len(items) == 14
    assert len({tuple(row["label"] for row in rows) for rows in items.values()}) == 1  # they translate each other
    assert len({row["premise"] for rows in items.values() for row in rows}) > 13 * len({row["premise"] for row in items["xnli_en"]})
    counts = Counter(row["label"] for row in items["xnli_en"])
    assert sum(counts.values()) == data.benchmarks.max_test["xnli"]
    assert min(counts[label] for label in range(3)) > 0.25 * sum(counts.values())
    write_tasks(tmp_path, {name: rows[:9] for name, rows in items.items()})
    texts = set()
    for task in local_tasks(tmp_path).values():
        task.build_all_requests()
        assert len(task.instances) == 27
        texts |= {instance.args[1] for instance in task.instances}
    assert len(texts) == 14 * 27
