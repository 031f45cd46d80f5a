"""The parsers of original formats: what they read equals what was written, and each kind of damage is named with file and line."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data import formats
from moebench.data.catalogue import ENTITY_LABELS, NLI_LABELS, PARAPHRASE_LABELS, UPOS_LABELS
from moebench.data.formats import LabelsStripped, columns, conllu, documents, pairs, sentences, squad
from moebench.data.schema import check
from moebench.errors import MoebenchError

LABEL = st.sampled_from(NLI_LABELS)
# Any text in one TSV cell: U+2028, U+0085 and other separators that str.splitlines would split at included; not blank, no surrogates.
CELL = st.text(st.characters(exclude_characters='\t\n\r\0\ufeff"', exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
QUOTING = st.text(st.characters(exclude_characters="\t\n\r\0\ufeff", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def file(folder: Path, content: str | bytes, name: str = "dev-xx.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


WORD = "{}\ta\t_\tNOUN\t_\t_\t0\t_\t_\t_\n"


def nli(folder, content):
    return pairs(file(folder, content), NLI_LABELS)


def upos(folder, content):
    return sentences(file(folder, content), UPOS_LABELS)


def entities(folder, content):
    return sentences(file(folder, content), ENTITY_LABELS)


def question(name="q1", start=4, text="fox", context="the fox runs", asked="who runs?"):
    return {"context": context, "qas": [{"id": name, "question": asked, "answers": [{"text": text, "answer_start": start}]}]}


def qa(folder, *paragraphs, **dump):
    return squad(file(folder, json.dumps({"data": [{"paragraphs": list(paragraphs)}]}, **dump), "train.json"))


# ------------------------------------------------------------------------------------------------------------------- pairs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, LABEL), min_size=1, max_size=9), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_pairs_read_back_what_was_written(folder, rows, end, mark, final):
    text = ("\ufeff" if mark else "") + end.join("\t".join(row) for row in rows) + (end if final else "")
    found, _ = nli(folder, text)
    assert [(row["text_a"], row["text_b"], row["label"]) for row in found] == rows
    assert [row["id"] for row in found] == [f"dev-xx:{line}" for line in range(1, len(rows) + 1)]
    for row in found:
        check("pair", row, NLI_LABELS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(QUOTING, QUOTING, LABEL), min_size=1, max_size=9))
def test_pairs_take_off_the_quoting_of_the_csv_module(folder, rows):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t").writerows(rows)
    found, reports = nli(folder, buffer.getvalue())
    assert [(row["text_a"], row["text_b"], row["label"]) for row in found] == rows
    quoted = sum('"' in cell for row in rows for cell in row)
    assert [report for report in reports if "quotation" in report] == (
        [f"{quoted} texts stand in CSV quotation marks; taken off"] if quoted else []
    )


def test_marks_of_an_unquoted_file_stay(folder):
    rows, reports = nli(folder, '"Go", he said.\tHe said ""go"".\tneutral\n"a ""b"" c"\td\tentailment\n')
    assert [row["text_a"] for row in rows] == ['"Go", he said.', '"a ""b"" c"']
    assert reports == []
    # The csv module would have written """Go""".
    assert nli(folder, '"Go"\tb\tneutral\n')[0][0]["text_a"] == '"Go"'


def test_pairs_with_original_header(folder):
    text = "id\tsentence1\tsentence2\tlabel\n10\ta b\tb a\t1\n11\tc d\td c\t0\n"
    rows, _ = pairs(file(folder, text, "test-de.tsv"), PARAPHRASE_LABELS)
    assert [(row["id"], row["text_a"], row["text_b"], row["label"]) for row in rows] == [
        ("test-de:2", "a b", "b a", "1"),
        ("test-de:3", "c d", "d c", "0"),
    ]


def test_groups_are_premise_numbers_and_a_returning_premise_keeps_its_own(folder):
    premises = ["p", "p", "p", "q", "r", "r", "p", "s"]
    rows, _ = nli(folder, "".join(f"{premise}\th{i}\t{NLI_LABELS[i % 3]}\n" for i, premise in enumerate(premises)))
    assert [row["group"] for row in rows] == ["0", "0", "0", "1", "2", "2", "0", "4"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\tb\tneutral\nc\td\n", [":2:", "expected 3 tab-separated columns", "found 2", "label is missing here"]),
        ("a\tb\tneutral\nc\td\t\n", [":2:", "label is missing here"]),
        ("a\tb\tneutral\nc\td\te\tneutral\n", [":2:", "found 4"]),
        ("a\tb\tneutral\n\nc\td\tneutral\n", [":2:", "found 1"]),
        ("a\tb\tneutral\n  \td\tentailment\n", [":2:", "first text is empty"]),
        ("a\t\tneutral\n", [":1:", "second text is empty"]),
        (
            "a\tb\tneutral\nc\td\tentailmnt\n",
            [":2:", "unknown label 'entailmnt'", "did you mean 'entailment'", "contradiction, entailment, neutral"],
        ),
        ("a\tb\tneutral\nc\0\td\tentailment\n", [":2:", "NUL"]),
        ("", ["is empty"]),
        (" \n\n", ["is empty"]),
        ("id\tsentence1\tsentence2\tlabel\n", ["no examples"]),
    ],
)
def test_bad_pairs_are_named(folder, text, parts):
    with pytest.raises(MoebenchError) as error:
        nli(folder, text)
    for part in ["dev-xx.tsv", *parts]:
        assert part in str(error.value)
    assert not isinstance(error.value, LabelsStripped)


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\nc\td\n",
        "a\tb\t\nc\td\t\n",
        "a\tb\t-\nc\td\t-\n",
        "a\tb\tneutral\n" * formats.DUMMY_FROM,
        "id\tsentence1\tsentence2\n1\ta\tb\n",
        "id\tsentence1\tsentence2\tlabel\n1\ta\tb\n",
    ],
)
def test_stripped_pairs_are_noticed(folder, text):
    with pytest.raises(LabelsStripped, match=r"dev-xx\.tsv: labels stripped"):
        nli(folder, text)


def test_few_equal_labels_are_labels(folder):
    assert len(nli(folder, "a\tb\tneutral\n" * (formats.DUMMY_FROM - 1))[0]) == formats.DUMMY_FROM - 1


def test_byte_offset_and_line_of_wrong_encoding(folder):
    good = "Straße\tb\tneutral\n".encode()
    with pytest.raises(MoebenchError, match=rf"dev-xx\.tsv:2: not UTF-8 at byte offset {len(good) + 3} \(byte 0xdf\)"):
        nli(folder, good + "Straße\tb\tneutral\n".encode("latin-1").replace(b"Stra", b"Str"))
    with pytest.raises(MoebenchError, match="UTF-16"):
        nli(folder, "a\tb\tneutral\n".encode("utf-16"))


def test_control_characters_are_kept_and_reported(folder):
    rows, reports = nli(folder, "a\tb\tneutral\nc\x08\td\rd\tneutral\n")
    assert rows[1]["text_a"] == "c\x08"
    assert rows[1]["text_b"] == "d\rd"
    assert reports == ["line 2: 2 control characters in the file, the first is U+0008 here; kept"]


def test_missing_file_is_named(folder):
    with pytest.raises(MoebenchError, match=r"absent\.tsv: cannot be read"):
        pairs(folder / "absent.tsv", NLI_LABELS)


# -------------------------------------------------------------------------------------------------------------------- tags


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(CELL, st.sampled_from(UPOS_LABELS)), min_size=1, max_size=5), min_size=1, max_size=5).filter(
        lambda sentences: len({tag for sentence in sentences for _, tag in sentence}) > 1
    ),
    st.integers(1, 3),
)
def test_sentences_read_back_what_was_written(folder, written, blanks):
    found, _ = upos(folder, ("\n" * blanks).join("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in written))
    assert [list(zip(row["words"], row["tags"], strict=True)) for row in found] == written
    lines = [1]
    for sentence in written[:-1]:
        lines.append(lines[-1] + len(sentence) + blanks)
    assert [row["id"] for row in found] == [f"dev-xx:{line}" for line in lines]


def test_language_prefixes_go_line_by_line_if_most_tokens_have_one(folder):
    rows, reports = entities(folder, "en:New\tB-LOC\nen:York\tI-LOC\n\nen:de:x\tO\n")
    assert [row["words"] for row in rows] == [["New", "York"], ["de:x"]]
    assert reports == ["tokens carry the prefix 'en:'; taken off"]
    rows, reports = entities(folder, "zh-yue:香\tB-LOC\nzh:港\tI-LOC\n\nsimple:10:30\tO\nde::\tO\n")
    assert [row["words"] for row in rows] == [["香", "港"], ["10:30", ":"]]
    assert reports == ["tokens carry the prefix 'de:', 'simple:', 'zh-yue:', 'zh:'; taken off"]
    rows, reports = entities(folder, "en:New\tB-LOC\nen:York\tI-LOC\nCity\tI-LOC\n")
    assert rows[0]["words"] == ["New", "York", "City"]
    assert reports == ["tokens carry the prefix 'en:'; taken off", "line 3: 1 tokens of the file lack the prefix, the first here; kept"]
    rows, reports = entities(folder, "en:New\tB-LOC\nYork\tI-LOC\n")
    assert rows[0]["words"] == ["en:New", "York"]
    assert reports == []


@pytest.mark.parametrize("space", [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace() and chr(code) not in "\t\n\r "])
def test_only_tabs_and_spaces_separate(folder, space):
    token, text = f"a{space}b", f"{space}a{space}"
    written = f"{token}\tNOUN\n{text}\tVERB\n"
    assert upos(folder, written)[0][0]["words"] == [token, text]
    spaced = written.replace("\t", " ")
    assert columns(file(folder, spaced, "dev-xx.conll"), UPOS_LABELS)[0][0]["words"] == [token, text]
    treebank = "".join(f"{i}\t{form}\t_\t{tag}\t_\t_\t0\t_\t_\t_\n" for i, (form, tag) in enumerate([(token, "NOUN"), (text, "VERB")], 1))
    assert conllu(file(folder, treebank, "xx.conllu"), UPOS_LABELS)[0][0]["words"] == [token, text]
    assert nli(folder, f"{token}\t{text}\tneutral\n")[0][0]["text_b"] == text
    context = f"{text} fox{space}"
    asked = {"context": context, "qas": [{"id": "q", "question": text, "answers": [{"text": text, "answer_start": 0}]}]}
    row = qa(folder, asked)[0][0]
    assert (row["context"], row["question"], row["answers"]) == (context, text, [{"text": text, "start": 0}])
    assert list(documents(file(folder, f"\t{text} \r\n{space}\n", "corpus.txt"))) == [(1, text), (2, "")]


@pytest.mark.parametrize("read", [sentences, columns, conllu])
def test_a_line_of_another_space_is_no_blank_line(folder, read):
    with pytest.raises(MoebenchError, match=":2: "):
        read(
            file(folder, "a\tNOUN\n\u3000\nb\tVERB\n" if read is not conllu else WORD.format(1) + "\u3000\n" + WORD.format(1)), UPOS_LABELS
        )


def test_opening_inside_tag_is_kept_and_reported(folder):
    rows, reports = entities(folder, "#\tO\nU\tI-ORG\n\nA\tI-PER\nB\tI-PER\n")
    assert [row["tags"] for row in rows] == [["O", "I-ORG"], ["I-PER", "I-PER"]]
    assert reports == ["line 2: 2 entities of the file open with an I- tag, the first here; kept"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\tB-PER\nb\tI-LOC\n", [":2:", "'I-LOC' follows 'B-PER'", "'B-LOC' or 'I-PER'"]),
        ("a\tO\nb\tB-PERS\n", [":2:", "unknown tag 'B-PERS'", "did you mean 'B-PER'"]),
        ("a\tO\nb\n", [":2:", "expected 2 tab-separated columns (token, tag), found 1"]),
        ("a\tO\n\nb\tc\tB-PER\n", [":3:", "found 3"]),
        ("a\tO\n \tB-PER\n", [":2:", "token is empty"]),
        ("en:a\tO\nen:\tB-PER\n", [":2:", "token is empty"]),
        ("a\tO\nb\t\nc\tB-PER\n", [":2:", "tag is missing"]),
    ],
)
def test_bad_tags_are_named(folder, text, parts):
    with pytest.raises(MoebenchError) as error:
        entities(folder, text)
    for part in ["dev-xx.tsv", *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["a\nb\n\nc\n", "a\t\nb\t\n", "a\t_\nb\t_\n", "a\tO\n" * formats.DUMMY_FROM])
def test_stripped_tags_are_noticed(folder, text):
    with pytest.raises(LabelsStripped, match="labels stripped"):
        entities(folder, text)


# ------------------------------------------------------------------------------------------------------------------- SQuAD


@settings(max_examples=60, deadline=None)
@given(st.data(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip()))
def test_squad_reads_back_what_was_written(folder, data, context):
    start = data.draw(st.sampled_from([place for place, character in enumerate(context) if character.strip()]))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    rows, _ = qa(folder, question("é-1", start, text, context), ensure_ascii=data.draw(st.booleans()))
    assert rows == [{"id": "é-1", "context": context, "question": "who runs?", "answers": [{"text": text, "start": start}]}]
    check("qa", rows[0], ())


def test_a_repeated_question_id_is_numbered(folder):
    rows, reports = qa(folder, question("7"), question("8"), question("7"), question("7"))
    assert [row["id"] for row in rows] == ["7", "8", "7#2", "7#3"]
    assert reports == ["2 questions use an id again; numbered with #2 and so on"]


@pytest.mark.parametrize(("start", "moved"), [(5, 4), (0, 4), (18, 20), (formats.REALIGN_WINDOW + 20, 20), (12, 4), (-2, 4)])
def test_a_misaligned_answer_moves_to_the_nearest_place(folder, start, moved):
    context = "the fox saw another fox" + " " * 60
    assert [place for place in range(len(context)) if context.startswith("fox", place)] == [4, 20]
    rows, reports = qa(folder, question("a"), question("q", start, "fox", context), indent=1)
    assert rows[1]["answers"] == [{"text": "fox", "start": moved}]
    line = 1 + json.dumps({"data": [{"paragraphs": [question("a"), question("q", start, "fox", context)]}]}, indent=1).split('"q"')[
        0
    ].count("\n")
    assert reports == [f"line {line}: question 'q': answer 'fox' moved from character {start} to {moved}"]


def test_an_answer_out_of_reach_is_an_error(folder):
    context = "fox" + "." * 100
    with pytest.raises(
        MoebenchError, match=r"train\.json:1: question 'q': the answer 'fox' is not at character 60 .* there stands '\.\.\.'"
    ):
        qa(folder, question("q", 60, "fox", context))
    with pytest.raises(MoebenchError, match="not at character 2"):
        qa(folder, question("q", 2, "cat", "the fox"))


def test_stripped_answers_are_noticed(folder):
    empty = question("a", 0, "")
    missing = question("b") | {"qas": [{"id": "b", "question": "?", "answers": []}]}
    with pytest.raises(LabelsStripped, match="no question has an answer text"):
        qa(folder, empty, missing)
    for bad, name in ((empty, "a"), (missing, "b")):
        with pytest.raises(MoebenchError, match=rf"train\.json:1: question '{name}': the answer is missing or empty") as error:
            qa(folder, question("good"), bad)
        assert not isinstance(error.value, LabelsStripped)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"data": [\n{"paragraphs": [', [":2:", "not valid JSON", "cut short"]),
        ('{"data": [\n{"paragraphs": "ab', [":2:", "cut short"]),
        ('{"data": \n\n x}', [":3:", "not valid JSON"]),
        ("[1, 2]", ["not SQuAD JSON", "top level.data is missing"]),
        ('{"data": {}}', ["top level.data is dict, not list"]),
        ('{"data": [{"title": "a"}]}', ["data[0].paragraphs is missing"]),
        ('{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}', ["data[0].paragraphs[0].context is int, not str"]),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": []}]}]}', ["holds no questions"]),
        (json.dumps({"data": [{"paragraphs": [question(asked=" ")]}]}), ["question 'q1'", "the question is empty"]),
        (json.dumps({"data": [{"paragraphs": [question(context="the fox\0")]}]}), ["question 'q1'", "NUL"]),
        (json.dumps({"data": [{"paragraphs": [question(start="4")]}]}), ["answers[0].answer_start is str, not int"]),
        (json.dumps({"data": [{"paragraphs": [question(start=True)]}]}), ["answers[0].answer_start is bool, not int"]),
    ],
)
def test_bad_squad_is_named(folder, text, parts):
    with pytest.raises(MoebenchError) as error:
        squad(file(folder, text, "train.json"))
    for part in ["train.json", *parts]:
        assert part in str(error.value)


def test_control_characters_of_json_are_reported(folder):
    rows, reports = qa(folder, question("q", 4, "fox", "the fox\u0081"))
    assert rows[0]["context"].endswith("\u0081")
    assert reports == ["1 texts hold control characters, the first is U+0081 of question 'q'; kept"]


# --------------------------------------------------------------------------------------------------------------- documents


def test_documents_are_lines(folder):
    path = file(folder, "\ufeffone\u2028still one\r\n\r\nthree", "xx.txt")
    assert list(documents(path)) == [(1, "one\u2028still one"), (2, ""), (3, "three")]


def test_bad_documents_are_named(folder):
    with pytest.raises(MoebenchError, match=r"xx\.txt:2: not UTF-8 at byte offset 6 \(byte 0xff\)"):
        list(documents(file(folder, b"good\nb\xffd\n", "xx.txt")))
    with pytest.raises(MoebenchError, match=r"xx\.txt: is empty"):
        list(documents(file(folder, b"", "xx.txt")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"paragraphs": [{"context": "a \\ud800", "qas": []}]}]}', r"paragraphs\[0\]\.context holds half a character"),
        ('{"data": [' + "9" * 5000 + "]}", "a number too long"),
        ('{"data": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_odd_json_is_named(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(MoebenchError, match=rf"train\.json.*{message}"):
        squad(path)
