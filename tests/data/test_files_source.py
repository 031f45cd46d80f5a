"""The source of original files: which file serves for what, what is refused, and the numbers of examples of a real folder."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from moebench.data.catalogue import TASKS
from moebench.data.files import HELD_OUT, HELD_OUT_DOCUMENTS, FilesSource
from moebench.data.schema import check
from moebench.data.text_settings import TextData
from moebench.errors import MoebenchError

LABELS = ("contradiction", "entailment", "neutral")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def nli(premises: int, word: str) -> str:
    return "".join(f"{word} {i}\t{word} {i} {label}\t{label}\n" for i in range(premises) for label in LABELS)


def stripped(text: str) -> str:
    return re.sub(r"\t[^\t\n]*\n", "\n", text)


def tags(sentences: int, word: str) -> str:
    return "\n".join(f"{word}{i}\tNOUN\n.\tPUNCT\n" for i in range(sentences))


def squad(contexts: int, word: str, answered: bool = True) -> str:
    def paragraph(i: int) -> dict:
        context = f"{word} {i}: fox and hen"
        answers = [
            {"text": name, "answer_start": context.index(name)} if answered else {"text": "", "answer_start": 0} for name in ("fox", "hen")
        ]
        qas = [{"id": f"{word}{i}{j}", "question": f"{word}?", "answers": [answer]} for j, answer in enumerate(answers)]
        return {"context": context, "qas": qas}

    return json.dumps({"data": [{"paragraphs": [paragraph(i)]} for i in range(contexts)]})


def source(folder: Path, *tasks: str, **options) -> FilesSource:
    return FilesSource(folder, TextData(source="files", tasks=tasks, tokens={"source": "bundled"}, **options))


@pytest.fixture
def xnli(tmp_path):
    """English training, development and test file, German development and stripped test file, Swahili development file."""
    folder = tmp_path / "xnli"
    write(folder / "train-en.tsv", nli(25, "train"))
    write(folder / "dev-en.tsv", nli(3, "dev"))
    write(folder / "test-en.tsv", nli(4, "test"))
    write(folder / "dev-de.tsv", nli(3, "probe"))
    write(folder / "test-de.tsv", stripped(nli(4, "prüf")))
    write(folder / "dev-sw.tsv", nli(3, "jaribu"))
    return tmp_path


def texts(rows):
    return [row["text_b"] for row in rows]


def test_labelled_test_file_serves_and_development_file_stands_in(xnli):
    files = source(xnli, "xnli")
    assert files.languages == ("en", "de", "sw")
    test = files.test("xnli")
    assert {language: len(rows) for language, rows in test.items()} == {"en": 12, "de": 9, "sw": 9}
    assert all(text.startswith("probe") for text in texts(test["de"]))
    assert files.choices() == {
        "xnli.de": "xnli/dev-de.tsv",
        "xnli.en": "xnli/test-en.tsv",
        "xnli.sw": "xnli/dev-sw.tsv",
        "xnli.train": "xnli/train-en.tsv",
        "xnli.validation": "xnli/dev-en.tsv",
    }
    assert files.reports() == ["xnli/test-de.tsv: labels stripped; xnli/dev-de.tsv stands in"]
    assert len(files.train("xnli")) == 75
    assert all(text.startswith("dev ") for text in texts(files.validation("xnli")))


def test_validation_is_held_out_of_training_where_the_development_file_is_scored(xnli):
    write(xnli / "xnli/test-en.tsv", stripped(nli(4, "test")))
    files = source(xnli, "xnli")
    train, validation = files.train("xnli"), files.validation("xnli")
    assert files.choices()["xnli.en"] == "xnli/dev-en.tsv"
    assert files.choices()["xnli.validation"] == "xnli/train-en.tsv, every 10th group"
    assert sorted({row["text_a"] for row in validation}) == sorted(f"train {i}" for i in range(0, 25, HELD_OUT))
    assert len(validation) == 9
    assert not {row["text_a"] for row in train} & {row["text_a"] for row in validation}
    assert sorted(texts(train) + texts(validation)) == sorted(line.split("\t")[1] for line in nli(25, "train").splitlines())
    assert not set(texts(validation)) & set(texts(files.test("xnli")["en"]))


@pytest.mark.parametrize("below", ["", "xtreme"])
def test_both_layouts(tmp_path, below):
    write(tmp_path / below / "udpos/train-en.tsv", tags(20, "a"))
    write(tmp_path / below / "udpos/test-fr.tsv", tags(2, "b"))
    files = source(tmp_path, "udpos")
    assert files.choices()["udpos.fr"] == str(Path(below) / "udpos/test-fr.tsv")
    assert files.test("udpos")["fr"][0] == {"id": "test-fr:1", "words": ["b0", "."], "tags": ["NOUN", "PUNCT"]}
    assert [row["words"][0] for row in files.validation("udpos")] == ["a0", "a10"]


def test_limits_draw_rows_in_their_order_and_the_same_of_translations(xnli):
    whole, cut = source(xnli, "xnli"), source(xnli, "xnli", max_train=7, max_test=4)
    for few, all_rows, limit in (
        (cut.train("xnli"), whole.train("xnli"), 7),
        (cut.validation("xnli"), whole.validation("xnli"), 4),
        *((rows, whole.test("xnli")[language], 4) for language, rows in cut.test("xnli").items()),
    ):
        places = [all_rows.index(row) for row in few]
        assert len(places) == limit
        assert places == sorted(set(places))
    drawn: dict[int, set] = {}
    for language, rows in cut.test("xnli").items():
        every = whole.test("xnli")[language]
        drawn.setdefault(len(every), set()).add(tuple(every.index(row) for row in rows))
    assert all(len(places) == 1 for places in drawn.values())


def test_limits_may_be_given_by_name_and_wrong_names_are_refused(xnli):
    cut = source(xnli, "xnli", max_train={"xnli": 5}, max_test={"xnli": 2})
    assert (len(cut.train("xnli")), len(cut.validation("xnli")), {len(rows) for rows in cut.test("xnli").values()}) == (5, 2, {2})
    whole = source(xnli, "xnli")
    assert source(xnli, "xnli", max_train={}, max_test={}).train("xnli") == whole.train("xnli")
    with pytest.raises(ValueError, match=r"max_test names 'xnly' \(did you mean 'xnli'\?\); should be one of .*xnli"):
        source(xnli, "xnli", max_test={"xnly": 2})


def test_named_languages_alone_take_part_and_unknown_ones_are_refused(xnli):
    chosen = source(xnli, "xnli", languages=("sw", "en"))
    assert list(chosen.test("xnli")) == ["en", "sw"]
    assert chosen.languages == ("en", "sw")
    assert "xnli/dev-de.tsv" not in chosen.files()
    with pytest.raises(MoebenchError, match=r"languages: no test file of 'dee' \(did you mean 'de'\?\).*has: en, de, sw"):
        source(xnli, "xnli", languages=("en", "dee"))
    write(xnli / "udpos" / "train-en.tsv", tags(30, "train"))
    write(xnli / "udpos" / "dev-en.tsv", tags(3, "dev"))
    with pytest.raises(MoebenchError, match=r"task 'udpos' has test files of en, none of de"):
        source(xnli, "xnli", "udpos", languages=("de",))


def test_question_answering_sets(tmp_path):
    write(tmp_path / "squad/train-v1.1.json", squad(20, "train"))
    write(tmp_path / "xquad/xquad.en.json", squad(2, "x"))
    write(tmp_path / "xquad/xquad.th.json", squad(2, "ส"))
    write(tmp_path / "mlqa/MLQA_V1/dev/dev-context-de-question-de.json", squad(2, "d"))
    write(tmp_path / "mlqa/MLQA_V1/dev/dev-context-de-question-es.json", squad(2, "e"))
    write(tmp_path / "mlqa/MLQA_V1/test/test-context-de-question-es.json", squad(3, "t"))
    write(tmp_path / "mlqa/MLQA_V1/test/test-context-de-question-de.json", squad(3, "t", answered=False))
    write(tmp_path / "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json", squad(11, "y"))
    write(tmp_path / "tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.ko.dev.json", squad(2, "k"))
    files = source(tmp_path, "xquad", "mlqa", "tydiqa")
    assert files.languages == ("en", "de", "es", "ko", "th")
    assert {language: len(rows) for language, rows in files.test("mlqa").items()} == {"de": 4, "de-es": 6}
    assert files.choices()["mlqa.de"].endswith("dev-context-de-question-de.json")
    assert files.choices()["mlqa.de-es"].endswith("test-context-de-question-es.json")
    assert set(files.test("xquad")) == {"en", "th"}
    assert (len(files.train("squad")), len(files.validation("squad"))) == (36, 4)
    assert {row["context"].split(":")[0] for row in files.validation("squad")} == {"train 0", "train 10"}
    assert (len(files.train("tydiqa")), len(files.validation("tydiqa"))) == (18, 4)


def test_revision_and_files_follow_the_content(xnli):
    files = source(xnli, "xnli")
    assert files.files() == {
        f"xnli/{name}": hashlib.sha256((xnli / "xnli" / name).read_bytes()).hexdigest()
        for name in ("dev-de.tsv", "dev-en.tsv", "dev-sw.tsv", "test-de.tsv", "test-en.tsv", "train-en.tsv")
    }
    assert source(xnli, "xnli").revision == files.revision
    moved = xnli.rename(xnli.with_name("elsewhere"))
    assert source(moved, "xnli").revision == files.revision
    write(moved / "xnli/dev-sw.tsv", nli(3, "jaribio"))
    assert source(moved, "xnli").revision != files.revision
    write(moved / "xnli/dev-sw.tsv", nli(3, "jaribu"))
    (moved / "xnli/dev-sw.tsv").rename(moved / "xnli/dev-tr.tsv")
    assert source(moved, "xnli").revision != files.revision


def test_the_override_is_the_training_set(xnli):
    write(xnli / "other/mine.tsv", nli(12, "mine"))
    (xnli / "xnli/train-en.tsv").unlink()
    files = source(xnli, "xnli", train_files={"xnli": "other/mine.tsv"})
    assert all(text.startswith("mine") for text in texts(files.train("xnli")))
    assert "other/mine.tsv" in files.files()
    assert files.choices()["xnli.train"] == "other/mine.tsv"


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        ("train-en.tsv", {}, ["xnli/train-en.tsv: no such file", "training set 'xnli'", "train_files"]),
        ("", {"train_files": {"xnli": "other.tsv"}}, ["train_files.xnli", "other.tsv"]),
        ("", {"train_files": {"xnli": "../other.tsv"}}, ["train_files.xnli", "leaves the folder"]),
        ("", {"train_files": {"xlni": "xnli/train-en.tsv"}}, ["train_files names 'xlni'", "did you mean 'xnli'"]),
        ("", {"corpus_files": {"en": "corpus.txt"}}, ["corpus_files.en", "corpus.txt"]),
        ("", {"corpus_files": {"eng-GB": "xnli/dev-en.tsv"}}, ["corpus_files", "'eng-GB'", "2 or 3 lower-case letters"]),
    ],
)
def test_what_is_missing_is_named_at_once(xnli, change, options, parts):
    if change:
        (xnli / "xnli" / change).unlink()
    with pytest.raises((MoebenchError, ValidationError)) as error:
        source(xnli, "xnli", **options)
    for part in parts:
        assert part in str(error.value)


def test_folder_task_and_language_must_be_right(xnli):
    with pytest.raises(MoebenchError, match="MOEBENCH_FOLDER"):
        source(xnli / "absent", "xnli")
    with pytest.raises(MoebenchError, match="'constructed_nli' is not read from files"):
        source(xnli, "constructed_nli")
    write(xnli / "pawsx/train-en.tsv", "a\tb\t1\nc\td\t0\n")
    with pytest.raises(MoebenchError, match=r"no test file of task 'pawsx'.*test-de\.tsv or .*dev-de\.tsv"):
        source(xnli, "pawsx")
    with pytest.raises(MoebenchError, match="'udpos' is not configured"):
        source(xnli, "xnli").test("udpos")
    with pytest.raises(MoebenchError, match=r"unknown training set 'xnlii' \(did you mean 'xnli'\?\)"):
        source(xnli, "xnli").train("xnlii")
    write(xnli / "xnli/dev-english.tsv", nli(1, "a"))
    with pytest.raises(MoebenchError, match=r"dev-english\.tsv: the language 'english' should be"):
        source(xnli, "xnli")


def test_labels_stripped_without_a_stand_in_is_an_error(xnli):
    (xnli / "xnli/dev-de.tsv").unlink()
    with pytest.raises(MoebenchError, match=r"test-de\.tsv: labels stripped .* or put the development file dev-de\.tsv there"):
        source(xnli, "xnli").test("xnli")
    write(xnli / "xnli/dev-de.tsv", stripped(nli(3, "probe")))
    with pytest.raises(MoebenchError, match=r"dev-de\.tsv: labels stripped"):
        source(xnli, "xnli").choices()


def test_a_partly_labelled_test_file_is_an_error_not_a_fallback(xnli):
    path = xnli / "xnli/test-de.tsv"
    path.write_text(path.read_text() + "a\tb\tneutral\n")
    with pytest.raises(MoebenchError, match=r"test-de\.tsv:1: expected 3 .* label is missing here"):
        source(xnli, "xnli").test("xnli")


@pytest.mark.parametrize("scored", ["test-en.tsv", "dev-en.tsv"])
def test_training_on_scored_data_is_refused(xnli, scored):
    write(xnli / "xnli/train-en.tsv", (xnli / "xnli" / scored).read_text())
    with pytest.raises(MoebenchError, match=rf"train-en\.tsv: the training set 'xnli' has the content of .*{scored}"):
        source(xnli, "xnli").train("xnli")


def test_one_group_cannot_be_split(tmp_path):
    write(tmp_path / "xnli/train-en.tsv", nli(1, "train"))
    write(tmp_path / "xnli/dev-en.tsv", nli(2, "dev"))
    with pytest.raises(MoebenchError, match=r"train-en\.tsv: 1 groups of examples are too few to hold some out; the train set is empty"):
        source(tmp_path, "xnli").train("xnli")


def test_documents_split_and_report_blank_lines(xnli):
    lines = [f"document {i}" for i in range(250)]
    write(xnli / "corpus/en.txt", "\n".join([*lines[:40], "", *lines[40:], ""]) + "\n")
    write(xnli / "corpus/de.txt", "eins\nzwei\n")
    files = source(xnli, "xnli", corpus_files={"en": "corpus/en.txt", "de": "corpus/de.txt"})
    held = [text for language, text in files.documents("validation") if language == "en"]
    assert held == lines[::HELD_OUT_DOCUMENTS]
    train = list(files.documents("train"))
    assert train[0] == ("de", "zwei")
    assert sorted(held + [text for language, text in train if language == "en"]) == sorted(lines)
    assert files.reports() == ["corpus/en.txt: line 41: 2 blank lines in the file, the first here; no documents"]
    assert list(files.parallel("train")) == []
    assert {"corpus/de.txt", "corpus/en.txt"} <= set(files.files())


def test_a_part_of_the_training_file_serves_as_test_set_and_another_set_is_trained_on_it(tmp_path):
    write(tmp_path / "xquad/xquad.de.json", squad(4, "xquad"))
    write(tmp_path / "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json", squad(25, "train"))
    write(tmp_path / "tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.ko.dev.json", squad(3, "dev", answered=False))
    files = source(tmp_path, "xquad", "tydiqa", train_as={"squad": "tydiqa"}, test_from_train=["tydiqa"])
    test = files.test("tydiqa")
    assert test.keys() == {"en"}
    parts = {"train": files.train("tydiqa"), "validation": files.validation("tydiqa"), "test": test["en"]}
    contexts = {name: {int(row["context"].split()[1][:-1]) for row in rows} for name, rows in parts.items()}
    assert contexts["validation"] == {0, 10, 20}
    assert contexts["test"] == {1, 2, 11, 12, 21, 22}
    assert contexts["train"] == set(range(25)) - contexts["validation"] - contexts["test"]
    assert files.test("xquad").keys() == {"de"}
    assert {key: name for key, name in files.choices().items() if not key.startswith("xquad")} == {
        "tydiqa.en": "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json, groups 1 and 2 of every 10",
        "tydiqa.train": "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json",
        "tydiqa.validation": "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json, every 10th group",
    }
    assert not any("dev.ko" in name for name in files.files())


def test_the_texts_of_training_sets_join_the_corpus_once_each_and_never_those_held_out(xnli):
    files = source(xnli, "xnli", corpus_sets=["xnli"], train_languages={"xnli": "sw"})
    found = {split: list(files.documents(split)) for split in ("train", "validation")}
    texts = list(dict.fromkeys(text for row in files.train("xnli") for text in (row["text_a"], row["text_b"])))
    assert len(texts) == len({row["text_a"] for row in files.train("xnli")}) * 4
    assert found["validation"] == [("sw", text) for text in texts[::HELD_OUT_DOCUMENTS]]
    assert [text for _, text in found["train"]] == [text for number, text in enumerate(texts) if number % HELD_OUT_DOCUMENTS]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("train_as", {"squad": "tydi"}, r"train_as names 'tydi' \(did you mean 'tydiqa'\?\)"),
        ("train_languages", {"xnl": "de"}, r"train_languages names 'xnl' \(did you mean 'xnli'\?\)"),
        ("corpus_sets", ["panx"], "corpus_sets names 'panx'.*; should be one of xnli"),
        ("test_from_train", ["tydiqa"], "test_from_train names 'tydiqa'; should be one of xnli"),
    ],
)
def test_stand_ins_that_do_not_exist_are_named(xnli, key, value, complaint):
    with pytest.raises(ValidationError, match=complaint):
        source(xnli, "xnli", **{key: value})


# ------------------------------------------------------------------------------------------------------------- a real folder

REAL = os.environ.get("MOEBENCH_FOLDER")
STAND_INS = {
    "xnli": "xnli/labelled/test-en.tsv",
    "pawsx": "pawsx/labelled/test-de.tsv",
    "squad": "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json",
}


def examples(path: Path, kind: str) -> int:
    """Count a file's examples by other means than the parsers'."""
    text = path.read_text(encoding="utf-8-sig")
    if kind == "pair":
        return sum(1 for line in text.split("\n") if line) - text.startswith("id\tsentence1")
    if kind == "tagging":
        return len([block for block in re.split(r"\n(?:[ ]*\n)+", text) if block.strip()])
    return sum(len(paragraph["qas"]) for article in json.loads(text)["data"] for paragraph in article["paragraphs"])


@pytest.mark.skipif(not REAL, reason="MOEBENCH_FOLDER names no folder of original files")
@pytest.mark.parametrize("name", ["xnli", "pawsx", "udpos", "panx", "xquad", "mlqa", "tydiqa"])
def test_real_files_load_whole(name):
    folder, task = Path(str(REAL)), TASKS[name]
    below = "xtreme/" if (folder / "xtreme").is_dir() else ""
    default = {"squad": "squad/train-v1.1.json", "tydiqa": STAND_INS["squad"]}.get(task.train, f"{task.train}/train-en.tsv")
    choice = next((path for path in (default, STAND_INS.get(task.train, default)) if (folder / below / path).is_file()), None)
    if choice is None:
        pytest.skip(f"no training file for {name}")
    files = source(folder, name, train_files={task.train: below + choice})
    try:
        test = files.test(name)
    except MoebenchError as error:
        if "labels stripped" in str(error):
            pytest.skip(str(error))
        raise
    chosen = files.choices()
    for language, rows in test.items():
        path = folder / chosen[f"{name}.{language}"]
        assert len(rows) == examples(path, task.kind), path
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows[::10]:
            check(task.kind, row, task.labels)
    train, validation = files.train(task.train), files.validation(task.train)
    total = examples(folder / below / choice, task.kind)
    held = "every" in chosen[f"{task.train}.validation"]
    assert len(train) + (len(validation) if held else 0) == total
    if held:
        assert 0.05 < len(validation) / total < 0.15
        assert not {row["id"] for row in train} & {row["id"] for row in validation}
    assert files.languages[0] == "en"
    assert {part for language in test for part in language.split("-")} | {"en"} == set(files.languages)
