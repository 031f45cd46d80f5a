"""The source that reads the hub: against folders in the hub's layout, written here; no network."""

import fnmatch
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import yaml

from moebench import config
from moebench.data.catalogue import TASKS, UPOS_LABELS
from moebench.data.files import HELD_OUT, HELD_OUT_DOCUMENTS
from moebench.data.hub import HubSource, Sources
from moebench.data.schema import check
from moebench.data.text_settings import TextData
from moebench.errors import MoebenchError

datasets = pytest.importorskip("datasets")
import huggingface_hub  # noqa: E402
from datasets import ClassLabel, Dataset, Features, Sequence, Value  # noqa: E402

ROOT = Path(__file__).parents[2]
NLI = ("entailment", "neutral", "contradiction")
TEXT = Value("string")
PAIRS = Features({"premise": TEXT, "hypothesis": TEXT, "label": ClassLabel(names=list(NLI))})
ENTITIES = Features(
    {"tokens": Sequence(TEXT), "ner_tags": Sequence(ClassLabel(names=["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]))}
)
WORDS = Features(
    {
        "sent_id": TEXT,
        "tokens": Sequence(TEXT),
        "upos": Sequence(TEXT),
        "head": Sequence(Value("uint16")),
        "mwt": [{"id": TEXT, "form": TEXT, "feats": TEXT, "misc": TEXT}],
    }
)
QUESTIONS = Features(
    {
        "id": TEXT,
        "title": TEXT,
        "context": TEXT,
        "question": TEXT,
        "answers": {"text": Sequence(TEXT), "answer_start": Sequence(Value("int32"))},
    }
)


def parquet(folder: Path, name: str, features: Features, rows: list[dict], **options) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(path, **options)
    return path


def card(folder: Path, **configs: dict[str, str]) -> None:
    """The dataset card that tells `datasets.load_dataset` which files are what."""
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': entries})}---\n# Card\n")


def nli(count: int, word: str) -> list[dict]:
    return [{"premise": f"{word} {i // 3}", "hypothesis": f"{word} {i}", "label": i % 3} for i in range(count)]


def question(name: str, context: str = "the fox runs", text: str = "fox", start: int = 4) -> dict:
    answers = {"text": [text], "answer_start": [start]}
    return {"id": name, "title": "t", "context": context, "question": "who?", "answers": answers}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Datasets as the hub keeps them, below ``<owner>/<name>``."""
    folder = tmp_path_factory.mktemp("hub")
    xnli = folder / "facebook/xnli"
    parquet(xnli, "en/train-00000-of-00002.parquet", PAIRS, nli(60, "train"))
    parquet(xnli, "en/train-00001-of-00002.parquet", PAIRS, nli(60, "more"))
    parquet(xnli, "en/validation-00000-of-00001.parquet", PAIRS, nli(6, "dev"))
    parquet(xnli, "en/test-00000-of-00001.parquet", PAIRS, nli(9, "test"))
    parquet(xnli, "de/test-00000-of-00001.parquet", PAIRS, nli(9, "prüf"))
    parquet(xnli, "de/train-00000-of-00001.parquet", PAIRS, nli(9, "translated"))
    card(
        xnli,
        en={split: f"en/{split}-*" for split in ("train", "validation", "test")},
        de={split: f"de/{split}-*" for split in ("train", "test")},
    )

    ud = folder / "commul/universal_dependencies"
    sentence = {"sent_id": "1", "tokens": ["Hi", "!"], "upos": ["INTJ", "PUNCT"], "head": [0, 1], "mwt": []}
    for split in ("train", "dev", "test"):
        parquet(ud, f"parquet/en_ewt/{split}.parquet", WORDS, [sentence] * 3)
    french = {"sent_id": "2", "tokens": ["de", "le", "10 000"], "upos": ["ADP", "DET", "NUM"], "head": [3, 3, 0]}
    withheld = {"sent_id": "3", "tokens": ["_", "_"], "upos": ["NOUN", "PUNCT"], "head": [0, 1], "mwt": []}
    parquet(
        ud, "parquet/fr_gsd/test.parquet", WORDS, [french | {"mwt": [{"id": "1-2", "form": "du", "feats": None, "misc": None}]}, withheld]
    )

    panx = folder / "unimelb-nlp/wikiann"
    for split in ("train", "validation", "test"):
        parquet(panx, f"en/{split}-00000-of-00001.parquet", ENTITIES, [{"tokens": ["New", "York", "."], "ner_tags": [5, 6, 0]}] * 2)

    parquet(
        folder / "rajpurkar/squad",
        "plain_text/train-00000-of-00001.parquet",
        QUESTIONS,
        [question(f"s{i}", f"the fox {i // 2}") for i in range(40)],
    )
    mlqa = folder / "google/xtreme"
    for pair in ("en.en", "de.de", "de.en", "en.de"):
        parquet(mlqa, f"MLQA.{pair}/test-00000-of-00001.parquet", QUESTIONS, [question(pair)])
    tydiqa = folder / "google-research-datasets/tydiqa/secondary_task"
    names = [f"{language}-{i}-0" for i in range(11) for language in ("english", "korean")]
    parquet(tydiqa, "train-00000-of-00001.parquet", QUESTIONS, [question(name, f"the fox {i}") for i, name in enumerate(names)])
    # The hub's copy took white space off the front of contexts and left the offsets as they were.
    parquet(tydiqa, "validation-00000-of-00001.parquet", QUESTIONS, [question("korean-7-0", start=6), question("english-7-0")])
    wiki = folder / "wikimedia/wikipedia"
    for language in ("en", "de"):
        parquet(
            wiki,
            f"20231101.{language}/train-00000-of-00001.parquet",
            Features({"text": TEXT}),
            [{"text": f"{language} {i}"} for i in range(250)],
        )
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project with `data/sources.yaml`, on a machine without network and with an empty cache."""
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sources.yaml", tmp_path / "data/sources.yaml")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("tried to download"))
    return tmp_path


def by_hand(hub: Path, root: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(hub / name, root / "data/downloads" / name)


def source(root: Path, *tasks: str, **options) -> HubSource:
    return HubSource(root, TextData(source="files", tasks=tasks, tokens={"source": "bundled"}, **options))


def sources(root: Path, change) -> None:
    path = root / "data/sources.yaml"
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


# ------------------------------------------------------------------------------------------------------- data/sources.yaml


def test_every_real_task_has_its_sets_and_every_dataset_its_commit():
    found = config.load(ROOT / "data/sources.yaml", Sources)
    real = [task for task in TASKS.values() if not task.constructed]
    assert set(found.tests) == {task.name for task in real}
    assert set(found.training) == {task.train for task in real}
    assert all(len(dataset.revision) in (0, 40) for dataset in found.datasets.values())
    assert {name: len(entry.configs) for name, entry in found.tests.items()} == {
        "xnli": 15, "pawsx": 7, "udpos": 33, "panx": 40, "xquad": 11, "mlqa": 49, "tydiqa": 9,
    }  # fmt: skip
    for name, entry in found.tests.items():
        assert all(2 <= len(part) <= 3 for pair in entry.configs for part in pair.split("-")), name
        assert {part for pair in entry.configs for part in pair.split("-")} <= set(found.corpus.configs)
    for task in real:
        dataset = found.datasets[found.tests[task.name].dataset]
        keys = {"pair": {"text_a", "text_b", "label"}, "tagging": {"words", "tags"}, "qa": {"id", "context", "question", "answers"}}[
            task.kind
        ]
        assert keys <= set(dataset.columns)
        assert set(dataset.labels) <= set(task.labels)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda value: value["datasets"]["facebook/xnli"].update(revision="main"), "revision 'main' is no commit of 40 hexadecimal digits"),
        (lambda value: value["tests"].update(xlni=value["tests"]["xnli"]), r"unknown set 'xlni' \(did you mean 'xnli'\?\)"),
        (
            lambda value: value["training"]["xnli"].update(dataset="facebook/xnl"),
            r"no dataset 'facebook/xnl' \(did you mean 'facebook/xnli'",
        ),
        (lambda value: value["training"]["xnli"].update(splt="a"), "unknown key 'training.xnli.splt'"),
    ],
)
def test_a_wrong_list_is_named(root, change, part):
    sources(root, change)
    with pytest.raises(MoebenchError, match=part):
        source(root, "xnli")


# ---------------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_every_kind(hub, root):
    by_hand(hub, root, "facebook/xnli", "unimelb-nlp/wikiann", "rajpurkar/squad", "google/xtreme", "google-research-datasets/tydiqa")
    found = source(root, "xnli", "panx", "mlqa", "tydiqa", languages=("en", "de"))
    with pytest.raises(MoebenchError, match="no parquet file of unimelb-nlp/wikiann de test"):
        found.test("panx")["en"].__iter__().__next__()
    sources(root, lambda value: value["tests"]["panx"]["configs"].pop("de"))
    found = source(root, "xnli", "panx", "mlqa", "tydiqa", languages=("en", "de"))
    assert found.languages == ("en", "de")
    german = list(found.test("xnli")["de"])
    assert german[:4] == [
        {"id": f"de-test:{i}", "text_a": f"prüf {i // 3}", "text_b": f"prüf {i}", "label": NLI[i % 3], "group": str(i // 3)}
        for i in range(4)
    ]
    assert list(found.test("xnli")["de"]) == german
    train = list(found.train("xnli"))
    assert [row["text_b"] for row in train] == [row["hypothesis"] for row in nli(60, "train") + nli(60, "more")]
    assert [row["text_a"] for row in found.validation("xnli")] == ["dev 0"] * 3 + ["dev 1"] * 3
    assert next(iter(found.train("panx"))) == {"id": "en-train:0", "words": ["New", "York", "."], "tags": ["B-LOC", "I-LOC", "O"]}
    assert {pair: [row["id"] for row in rows] for pair, rows in found.test("mlqa").items()} == {
        "de": ["de.de"], "de-en": ["de.en"], "en": ["en.en"], "en-de": ["en.de"],
    }  # fmt: skip
    for task in found._tasks:
        for rows in found.test(task.name).values():
            for row in rows:
                check(task.kind, row, task.labels)
    with pytest.raises(MoebenchError, match="'xquad' is not configured"):
        found.test("xquad")
    with pytest.raises(MoebenchError, match="unknown training set 'xlni'"):
        found.train("xlni")


def test_datasets_reads_the_same_folder_alike(hub):
    read = datasets.load_dataset(str(hub / "facebook/xnli"), "de", split="test")
    assert read["hypothesis"][:] == [row["hypothesis"] for row in nli(9, "prüf")]


def test_groups_are_held_out_where_no_split_validates(hub, root):
    by_hand(hub, root, "rajpurkar/squad", "google/xtreme", "google-research-datasets/tydiqa")
    found = source(root, "mlqa", "tydiqa", languages=("en",))
    train, validation = list(found.train("squad")), list(found.validation("squad"))
    assert [row["id"] for row in validation] == ["s0", "s1", f"s{2 * HELD_OUT}", f"s{2 * HELD_OUT + 1}"]
    assert sorted(row["id"] for row in train + validation) == sorted(f"s{i}" for i in range(40))
    rows = list(found.train("tydiqa")) + list(found.validation("tydiqa"))
    assert sorted(row["id"] for row in rows) == sorted(f"english-{i}-0" for i in range(11))
    assert found.choices()["squad.validation"] == "rajpurkar/squad plain_text train (put in place by hand), every 10th group"


def test_an_answer_moves_to_where_its_text_stands(hub, root):
    by_hand(hub, root, "google-research-datasets/tydiqa")
    sources(root, lambda value: value["datasets"]["google-research-datasets/tydiqa"].update(revision=""))
    found = source(root, "tydiqa", languages=("en", "ko"))
    assert [row["answers"] for row in found.test("tydiqa")["ko"]] == [[{"text": "fox", "start": 4}]]
    assert found.reports() == [
        "google-research-datasets/tydiqa secondary_task validation, ids korean-*: 1 answers moved to where their text stands"
    ]


def test_words_are_those_that_conllu_gives(hub, root):
    by_hand(hub, root, "commul/universal_dependencies")
    found = source(root, "udpos", languages=("en", "fr"))
    rows = list(found.test("udpos")["fr"])
    assert rows == [{"id": "fr-test:0", "words": ["du", "10000"], "tags": ["ADP", "NUM"]}]
    check("tagging", rows[0], UPOS_LABELS)
    assert [report.split(": ")[1] for report in found.reports()] == [
        "1 multiword tokens; each is one word with its head's tag",
        "1 sentences have '_' for words, their text is withheld; left out",
    ]


IM_BIG = {"sent_id": "4", "tokens": ["I", "'m", "big", "bad"], "upos": ["PRON", "AUX", "ADJ", "ADJ"], "head": [3, 3, 0, 3]}
IM_BIG |= {"mwt": [{"id": "1-2", "form": "I'm", "feats": None, "misc": None}]}


@pytest.mark.parametrize(
    ("deps", "tag", "report"),
    [
        (["3:nsubj|4:nsubj", "3:cop|8.1:cop", "0:root", "3:conj"], "AUX", None),
        (["[('nsubj', 3), ('nsubj', 4)]", "[('cop', 3), ('cop', (8, '.', 1))]", "[('root', 0)]", "None"], "AUX", None),
        ([None, "_", "", "None"], "PRON", None),
        (["{3}", "3:cop", "0:root", "3:conj"], "PRON", "1 words with DEPS in a form that is not read; their HEAD alone counts"),
        (None, "PRON", None),
    ],
)
def test_edges_of_deps_count_where_the_dataset_has_them(hub, root, deps, tag, report):
    """By HEAD alone both words of "I'm" hang on "big", and the pronoun ranks first; by DEPS it also hangs on "bad"."""
    by_hand(hub, root, "commul/universal_dependencies")
    features, row = (Features(WORDS | {"deps": Sequence(TEXT)}), IM_BIG | {"deps": deps}) if deps else (WORDS, IM_BIG)
    parquet(root / "data/downloads/commul/universal_dependencies", "parquet/en_ewt/test.parquet", features, [row])
    found = source(root, "udpos", languages=("en",))
    assert [(row["words"], row["tags"]) for row in found.test("udpos")["en"]] == [(["I'm", "big", "bad"], [tag, "ADJ", "ADJ"])]
    assert report is None or f"commul/universal_dependencies en_ewt test: {report}" in found.reports()


def test_limits_draw_rows_in_their_order(hub, root):
    by_hand(hub, root, "facebook/xnli", "rajpurkar/squad", "google/xtreme")
    whole = source(root, "xnli", "mlqa", languages=("en", "de"))
    cut = source(root, "xnli", "mlqa", languages=("en", "de"), max_train=7, max_test=3)
    for few, all_rows, limit in (
        (cut.train("xnli"), list(whole.train("xnli")), 7),
        (cut.validation("xnli"), list(whole.validation("xnli")), 3),
        (cut.train("squad"), list(whole.train("squad")), 7),
        (cut.test("xnli")["de"], list(whole.test("xnli")["de"]), 3),
    ):
        places = [all_rows.index(row) for row in few]
        assert len(places) == limit
        assert places == sorted(set(places))
    only = source(root, "xnli", "mlqa", languages=("en", "de"), max_test=3)
    assert list(only.train("xnli")) == list(whole.train("xnli"))


OTHER_ORDER = Features({"premise": TEXT, "hypothesis": TEXT, "label": ClassLabel(names=["neutral", "entailment", "contradiction"])})
NO_LABEL = {"premise": "a", "hypothesis": "b", "label": -1}
NO_TEXT = Features({"premise": TEXT, "label": Value("int8")})
UNLABELLED = "this split is published without labels"


@pytest.mark.parametrize(
    ("task", "features", "row", "part"),
    [
        ("xnli", PAIRS, NO_LABEL, f"row 0 has no label; {UNLABELLED}"),
        ("xnli", OTHER_ORDER, NO_LABEL, "numbers neutral, entailment, contradiction; .* says entailment, neutral, contradiction"),
        ("xnli", NO_TEXT, {"premise": "a", "label": 1}, "no column 'hypothesis'"),
        ("mlqa", QUESTIONS, question("q", text=""), f"question 'q' has no answer; {UNLABELLED}"),
        ("mlqa", QUESTIONS, question("q", text="cat"), "the answer 'cat' does not stand in its context"),
    ],
)
def test_bad_rows_are_named(hub, root, task, features, row, part):
    names = {"xnli": ["facebook/xnli"], "mlqa": ["google/xtreme", "rajpurkar/squad"]}[task]
    by_hand(hub, root, *names)
    folder = root / "data/downloads" / names[0] / {"xnli": "en", "mlqa": "MLQA.en.en"}[task]
    next(folder.glob("test-*")).unlink()
    parquet(folder, "test-0.parquet", features, [row])
    with pytest.raises(MoebenchError, match=part):
        list(source(root, task, languages=("en",)).test(task)["en"])


# --------------------------------------------------------------------------------------------------------- where files lie


def test_without_network_it_fails_at_once_and_says_what_to_fetch_and_where_to_put_it(root):
    shown = []
    found = HubSource(
        root, TextData(source="files", tasks=["xnli", "xquad"], tokens={"source": "bundled"}, languages=["en", "de"]), shown.append
    )
    with pytest.raises(MoebenchError) as error:
        list(found.train("xnli"))
    message = str(error.value)
    assert message.startswith("7 sets are not here and cannot be fetched from the hub (ConnectionError: no network).")
    assert (
        "hf download facebook/xnli --repo-type dataset --revision b8dd5d7af51114dbda02c0e3f6133f332186418e --cache-dir data/downloads"
        ' --include README.md "*de/test*" "*en/test*" "*en/train*" "*en/validation*"'
    ) in message
    assert "hf download rajpurkar/squad" in message
    assert f"{root}/data/downloads/<owner>/<name>" in message
    assert shown == ["fetch facebook/xnli de test"]


def test_an_unpinned_dataset_is_refused_unless_its_files_are_here(hub, root):
    sources(root, lambda value: value["datasets"]["facebook/xnli"].update(revision=""))
    with pytest.raises(
        MoebenchError, match=r"sources\.yaml: datasets\.facebook/xnli has no revision; pin the commit .*facebook/xnli/commits/main"
    ):
        source(root, "xnli")
    by_hand(hub, root, "facebook/xnli")
    assert len(list(source(root, "xnli", languages=("en",)).test("xnli")["en"])) == 9


def test_files_and_revision_follow_the_commit_or_the_content(hub, root):
    pinned = source(root, "xnli", languages=("en", "de"))
    before = pinned.revision
    assert set(pinned.files().values()) == {"b8dd5d7af51114dbda02c0e3f6133f332186418e"}
    assert set(pinned.files()) == {f"facebook/xnli {name}" for name in ("de test", "en test", "en train", "en validation")}
    by_hand(hub, root, "facebook/xnli")
    local = source(root, "xnli", languages=("en", "de"))
    names = ("de/test-00000-of-00001", "en/test-00000-of-00001", "en/train-00000-of-00002", "en/train-00001-of-00002")
    assert set(local.files()) == {f"facebook/xnli/{name}.parquet" for name in (*names, "en/validation-00000-of-00001")}
    assert local.revision != before
    assert source(root, "xnli", languages=("de", "en")).revision == local.revision
    parquet(root / "data/downloads/facebook/xnli", "de/test-00000-of-00001.parquet", PAIRS, nli(9, "anders"))
    assert source(root, "xnli", languages=("en", "de")).revision != local.revision


def test_a_missing_part_is_noticed(hub, root):
    by_hand(hub, root, "facebook/xnli")
    (root / "data/downloads/facebook/xnli/en/train-00001-of-00002.parquet").unlink()
    with pytest.raises(MoebenchError, match=r"no parquet file of facebook/xnli en train"):
        list(source(root, "xnli", languages=("en",)).train("xnli"))


def test_what_is_fetched_is_the_splits_alone_and_once(hub, root, monkeypatch):
    calls = []

    def download(name, *, repo_type, revision, cache_dir, allow_patterns, etag_timeout):
        """What the hub does: the files of a name that fit a pattern, below the commit's folder."""
        calls.append((name, repo_type, revision))
        target = Path(cache_dir) / f"datasets--{name.replace('/', '--')}" / "snapshots" / revision
        for path in (hub / name).rglob("*.*"):
            relative = path.relative_to(hub / name).as_posix()
            if any(fnmatch.fnmatch(relative, pattern) for pattern in allow_patterns):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / relative)

    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: asked.append((name, revision)))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = source(root, "xnli", "udpos", languages=("en", "de"), max_train=5)
    with pytest.raises(
        MoebenchError, match="commul/universal_dependencies de_gsd test at 6b8168e1a6c048c9f8c731aca07daa7aaba228c6: the hub has no file"
    ):
        list(found.train("xnli"))
    sources(root, lambda value: value["tests"]["udpos"]["configs"].pop("de"))
    found = source(root, "xnli", "udpos", languages=("en", "de"), max_train=5)
    assert len(list(found.train("xnli"))) == 5
    assert len(list(found.train("udpos"))) == 3
    snapshot = root / "data/downloads/datasets--facebook--xnli/snapshots/b8dd5d7af51114dbda02c0e3f6133f332186418e"
    assert sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet")) == [
        "de/test-00000-of-00001.parquet", "en/test-00000-of-00001.parquet", "en/train-00000-of-00002.parquet",
        "en/train-00001-of-00002.parquet", "en/validation-00000-of-00001.parquet",
    ]  # fmt: skip
    assert {kind for _, kind, _ in calls} == {"dataset"}
    assert asked.count(("facebook/xnli", "b8dd5d7af51114dbda02c0e3f6133f332186418e")) == 1
    before = len(calls)
    again = source(root, "xnli", "udpos", languages=("en", "de"), max_train=5)
    assert list(again.test("xnli")["de"]) == list(found.test("xnli")["de"])
    assert len(calls) == before
    (root / "cache").mkdir()
    shutil.move(root / "data/downloads/datasets--facebook--xnli", root / "cache")
    assert len(list(source(root, "xnli", languages=("en",)).test("xnli")["en"])) == 9
    assert len(calls) == before


def test_unknown_languages_and_tasks_are_refused(root):
    with pytest.raises(MoebenchError, match=r"languages: no test set of 'dee' \(did you mean 'de'\?\)"):
        source(root, "xnli", languages=("en", "dee"))
    with pytest.raises(MoebenchError, match="task 'pawsx' has test sets of de, en, es"):
        source(root, "xnli", "pawsx", languages=("sw",))
    with pytest.raises(MoebenchError, match="no task 'constructed_nli'"):
        source(root, "constructed_nli")


# ------------------------------------------------------------------------------------------------------------------- corpus


def test_documents_are_streamed_and_split(hub, root):
    by_hand(hub, root, "facebook/xnli", "wikimedia/wikipedia")
    found = source(root, "xnli", languages=("en", "de"), corpus={})
    held = list(found.documents("validation"))
    assert held == [(language, f"{language} {i}") for language in ("de", "en") for i in range(0, 250, HELD_OUT_DOCUMENTS)]
    train = list(found.documents("train"))
    assert sorted(held + train) == sorted((language, f"{language} {i}") for language in ("de", "en") for i in range(250))
    assert list(found.parallel("train")) == []
    assert list(source(root, "xnli", languages=("en", "de")).documents("train")) == []


def test_memory_does_not_grow_with_the_set(hub, root):
    import pyarrow

    by_hand(hub, root, "facebook/xnli", "wikimedia/wikipedia")

    def peak(documents: int) -> tuple[int, int]:
        rows = [{"text": f"{i} " + "word " * 100} for i in range(documents)]
        folder = root / "data/downloads/wikimedia/wikipedia"
        parquet(folder, "20231101.en/train-00000-of-00001.parquet", Features({"text": TEXT}), rows, batch_size=500)
        found = source(root, "xnli", languages=("en",), corpus={})
        del rows
        start, high = pyarrow.total_allocated_bytes(), 0
        tracemalloc.start()
        for number, _ in enumerate(found.documents("train")):
            if number % 100 == 0:
                high = max(high, pyarrow.total_allocated_bytes() - start)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python, high

    peak(1000)
    small, large = peak(2000), peak(16000)
    assert large[0] < small[0] + 300_000
    assert large[1] < small[1] + 1_000_000  # 16,000 documents are 8 MB


def test_the_module_needs_no_library_of_the_hub_until_rows_are_asked_for():
    code = "import sys, moebench.data.hub; sys.exit(any(name in sys.modules for name in ('datasets', 'huggingface_hub', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
