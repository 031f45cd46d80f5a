"""CoNLL-U, CoNLL columns, named TSV columns, files of several languages, corpus folders, and the choice among variants of a test file."""

import json
import os
import tracemalloc
from pathlib import Path

import networkx  # DVC's, and that of XTREME's script
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data import formats
from moebench.data.catalogue import ENTITY_LABELS, NLI_LABELS, PARAPHRASE_LABELS, UPOS_LABELS
from moebench.data.files import HELD_OUT_DOCUMENTS, FilesSource
from moebench.data.formats import LabelsStripped, columns, conllu, languages, pairs, sentences, squad
from moebench.data.schema import check
from moebench.data.text_settings import TextData
from moebench.errors import MoebenchError

LABELS = ("contradiction", "entailment", "neutral")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def source(folder: Path, *tasks: str, **options) -> FilesSource:
    return FilesSource(folder, TextData(source="files", tasks=tasks, tokens={"source": "bundled"}, **options))


# ----------------------------------------------------------------------------------------------------------------- CoNLL-U


def token(number, form, tag, head=0, deps="_"):
    return f"{number}\t{form}\t_\t{tag}\t_\t_\t{head}\t_\t{deps}\t_\n"


def span(first, last, form):
    return f"{first}-{last}\t{form}\t_\t_\t_\t_\t_\t_\t_\t_\n"


FRENCH = (
    "# newdoc id = n1\n# sent_id = 1\n# text = Il parle du chat.\n"
    + token(1, "Il", "PRON", 2)
    + token(2, "parle", "VERB", 0)
    + span(3, 4, "du")
    + token(3, "de", "ADP", 5)
    + token(4, "le", "DET", 5)
    + token("4.1", "gros", "ADJ", "_", "5:amod")
    + token(5, "chat", "NOUN", 2)
    + token(6, ".", "PUNCT", 2)
    + "\n"
)


def treebank(folder, text, name="fr_x-ud-test.conllu", language="fr"):
    return conllu(write(folder / name, text), UPOS_LABELS, language)


def test_comments_and_empty_nodes_are_no_words_and_a_multiword_token_is_one(tmp_path):
    rows, reports = treebank(tmp_path, FRENCH + "# text = Oui\n" + token(1, "Oui", "INTJ") + "\n\n")
    assert rows == [
        {"id": "fr_x-ud-test:4", "words": ["Il", "parle", "du", "chat", "."], "tags": ["PRON", "VERB", "ADP", "NOUN", "PUNCT"]},
        {"id": "fr_x-ud-test:14", "words": ["Oui"], "tags": ["INTJ"]},
    ]
    assert reports == ["1 multiword tokens; each is one word with its head's tag"]
    for row in rows:
        check("tagging", row, UPOS_LABELS)


def test_a_token_that_is_a_hash_is_a_word(tmp_path):
    rows, _ = treebank(tmp_path, token(1, "#", "SYM") + token(2, "1", "NUM"))
    assert rows[0]["words"] == ["#", "1"]


@pytest.mark.parametrize(
    ("language", "words", "tag"),
    [
        # The word nearest the root decides: German "zum" where the article governs nothing, Spanish "dárselo" with its verb.
        ("de", [("ADP", 4), ("DET", 1)], "ADP"),
        ("es", [("VERB", 0), ("PRON", 1), ("PRON", 1)], "VERB"),
        ("es", [("PRON", 2), ("VERB", 0)], "VERB"),
        # At the same height the order of tags decides, which differs between languages.
        ("de", [("DET", 9), ("ADP", 9)], "ADP"),
        ("pt", [("AUX", 9), ("PRON", 9)], "PRON"),
        ("es", [("PRON", 9), ("AUX", 9)], "AUX"),
        ("it", [("PRON", 9), ("ADV", 9)], "ADV"),
        # A tag that a language's order does not know comes after those that it knows; heads in a circle end.
        ("es", [("PUNCT", 9), ("DET", 9)], "DET"),
        ("de", [("NOUN", 2), ("VERB", 1)], "VERB"),
    ],
)
def test_the_tag_of_a_multiword_token_is_its_heads(tmp_path, language, words, tag):
    text = span(1, len(words), "fused") + "".join(token(i, f"w{i}", upos, head) for i, (upos, head) in enumerate(words, start=1))
    text += "".join(token(i, f"v{i}", "NOUN") for i in range(len(words) + 1, 10))
    rows, _ = treebank(tmp_path, text, language=language)
    assert rows[0]["words"][0] == "fused"
    assert rows[0]["tags"][0] == tag
    assert len(rows[0]["words"]) == 10 - len(words)


def test_edges_of_deps_count_as_those_of_head(tmp_path):
    # "I'm big and bad": by HEAD alone both words of "I'm" hang on "big"; by DEPS the subject also hangs on "bad", which "'m" does not.
    text = (
        span(1, 2, "I'm")
        + token(1, "I", "PRON", 3, "3:nsubj|5:nsubj|5.1:nsubj")
        + token(2, "'m", "AUX", 3, "3:cop")
        + token(3, "big", "ADJ", 0, "0:root")
        + token(4, "and", "CCONJ", 5, "5:cc")
        + token(5, "bad", "ADJ", 3, "3:conj:and")
    )
    rows, _ = treebank(tmp_path, text, language="en")
    assert rows[0]["tags"][0] == "AUX"
    rows, _ = treebank(tmp_path, text.replace("|5:nsubj|5.1:nsubj", "|5.1:nsubj"), language="en")
    assert rows[0]["tags"][0] == "PRON"


EDGES = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=6, max_size=6)


@given(EDGES, st.permutations(formats._RANKS[""].split()))
def test_the_head_has_the_fewest_ancestors_as_networkx_counts_them(heads, tags):
    graph = networkx.DiGraph((head, word) for word, several in enumerate(heads, start=1) for head in several)
    tag = min(
        (len(networkx.ancestors(graph, word)), formats._RANKS[""].split().index(tags[word - 1]), tags[word - 1]) for word in range(1, 7)
    )[-1]
    sentence = formats.Sentence(list("abcdef"), tags[:6], [tuple(several) for several in heads], [(1, 6, "abcdef")])
    assert sentence.surface("en") == (["abcdef"], [tag])


def test_circles_of_deps_and_heads_beyond_the_sentence_end(tmp_path):
    text = span(1, 2, "ab") + token(1, "a", "NOUN", 99, "2:x") + token(2, "b", "VERB", 1, "1:x|2:x")
    assert treebank(tmp_path, text)[0][0]["tags"] == ["VERB"]


def test_spaces_and_joiners_inside_words_go(tmp_path):
    rows, reports = treebank(tmp_path, token(1, "10 000", "NUM") + token(2, "می\u200cروم", "VERB"))
    assert rows[0]["words"] == ["10000", "میروم"]
    assert reports == ["2 words hold spaces or zero-width non-joiners; taken out"]


def test_withheld_text_is_left_out_and_a_lone_underscore_stays(tmp_path):
    withheld = "".join(token(i, "_", tag) for i, tag in enumerate(("NOUN", "VERB", "PUNCT"), start=1)) + "\n"
    kept = "".join(token(i, form, "SYM") for i, form in enumerate(("a", "_", "b", "c"), start=1))
    rows, reports = treebank(tmp_path, withheld + kept)
    assert [row["words"] for row in rows] == [["a", "_", "b", "c"]]
    assert reports == ["1 sentences have '_' for words, their text is withheld; left out"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1\ta\tNOUN\n", [":1:", "expected 10 tab-separated columns (CoNLL-U), found 3"]),
        (token(1, "a", "NOUN") + token(3, "b", "VERB"), [":2:", "id '3' is out of sequence, word 2 is due"]),
        (token(1, "a", "NOUN") + span(1, 2, "ab") + token(2, "b", "VERB"), [":2:", "'1-2' is out of sequence"]),
        (span(1, 2, "ab") + token(1, "a", "NOUN") + "\n" + token(1, "b", "VERB"), [":2:", "ends inside a multiword token"]),
        (token(1, " ", "NOUN"), [":1:", "word is empty"]),
        (token(1, "a", "NOUN") + token(2, "b", "_"), [":2:", "tag is missing here"]),
        (token(1, "a", "NOUN") + token(2, "b", "NOUNS"), [":2:", "unknown tag 'NOUNS'", "did you mean 'NOUN'"]),
        ("# only a comment\n", ["holds no sentences"]),
    ],
)
def test_bad_conllu_is_named(tmp_path, text, parts):
    with pytest.raises(MoebenchError) as error:
        treebank(tmp_path, text)
    for part in ["fr_x-ud-test.conllu", *parts]:
        assert part in str(error.value)
    assert not isinstance(error.value, LabelsStripped)


def test_stripped_conllu_is_noticed(tmp_path):
    with pytest.raises(LabelsStripped, match="labels stripped"):
        treebank(tmp_path, token(1, "a", "_") + token(2, "b", "_"))


FORM = st.text(st.characters(exclude_characters="\t\n\r\0\ufeff\u200c _", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.tuples(FORM, st.sampled_from(UPOS_LABELS)), min_size=1, max_size=5), min_size=1, max_size=4).filter(
        lambda written: len({tag for sentence in written for _, tag in sentence}) > 1
    )
)
def test_conllu_gives_the_rows_that_the_same_words_as_tsv_give(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("same")
    ours = "\n".join("# c\n" + "".join(token(i, *word) for i, word in enumerate(words, start=1)) for words in written)
    tsv = "\n".join("".join(f"{form}\t{tag}\n" for form, tag in words) for words in written)
    rows, _ = treebank(folder, ours)
    same, _ = sentences(write(folder / "test-fr.tsv", tsv), UPOS_LABELS)
    assert [(row["words"], row["tags"]) for row in rows] == [(row["words"], row["tags"]) for row in same]


# ----------------------------------------------------------------------------------------------------------------- columns

CONLL = "-DOCSTART- -X- O O\n\nWolff NNP I-NP B-PER\n, , O O\n\nNew NNP I-NP B-LOC\nYork NNP I-NP I-LOC\n"


@pytest.mark.parametrize("tab", [" ", "\t", "   "])
def test_columns_take_the_first_and_the_last(tmp_path, tab):
    rows, _ = columns(write(tmp_path / "test-de.conll", CONLL.replace(" ", tab)), ENTITY_LABELS)
    assert rows == [
        {"id": "test-de:3", "words": ["Wolff", ","], "tags": ["B-PER", "O"]},
        {"id": "test-de:6", "words": ["New", "York"], "tags": ["B-LOC", "I-LOC"]},
    ]


def test_columns_take_off_a_common_prefix(tmp_path):
    rows, reports = columns(write(tmp_path / "test-de.bio", "de:Bonn B-LOC\nde:: O\n"), ENTITY_LABELS)
    assert rows[0]["words"] == ["Bonn", ":"]
    assert reports == ["tokens carry the prefix 'de:'; taken off"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a x O\nb B-PER\n", r":2: expected 3 columns \(token, \.\.\., tag\) as on line 1, found 2"),
        ("a x B-PER\nb x I-LOC\n", ":2: tag 'I-LOC' follows 'B-PER'"),
        ("a x O\nb x B-MISC\n", ":2: unknown tag 'B-MISC'"),
        ("-DOCSTART- -X- O O\n\n", "holds no tokens"),
    ],
)
def test_bad_columns_are_named(tmp_path, text, part):
    with pytest.raises(MoebenchError, match=part):
        columns(write(tmp_path / "test-de.conll", text), ENTITY_LABELS)


@pytest.mark.parametrize("text", ["a\nb\n\nc\n", "a x _\nb x _\n"])
def test_stripped_columns_are_noticed(tmp_path, text):
    with pytest.raises(LabelsStripped):
        columns(write(tmp_path / "test-de.conll", text), ENTITY_LABELS)


UNER = (
    "# sent_id = n1\n# text = Mr # Smith likes New York\n"
    "1\tMr\tO\t-\tann\n2\t#\tO\t-\tann\n3\tSmith\tB-PER\t-\tann\n\n"
    "# sent_id = n2\n1\tNew York\tB-LOC\t-\t-\n2\tTimes\tB-OTH\t-\t-\n"
)


def test_universal_ner_is_read_by_its_columns(tmp_path):
    rows, reports = columns(write(tmp_path / "test-en.iob2", UNER), ENTITY_LABELS)
    assert rows == [
        {"id": "test-en:3", "words": ["Mr", "#", "Smith"], "tags": ["O", "O", "B-PER"]},
        {"id": "test-en:8", "words": ["New York", "Times"], "tags": ["B-LOC", "O"]},
    ]
    assert reports == ["1 tokens are tagged OTH, which is not of the official annotation; read as O"]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("\t-\tann\n3", "\t-\n3", ":4: expected 5 tab-separated columns (number, token, tag and two more, Universal NER), found 4"),
        ("\n3\t", "\n4\t", ":5: number '4' is out of sequence, word 3 is due"),
        ("B-PER", "B-PERS", ":5: unknown tag 'B-PERS'"),
        ("Smith", " ", ":5: the token is empty"),
    ],
)
def test_bad_universal_ner_is_named(tmp_path, old, new, part):
    with pytest.raises(MoebenchError) as error:
        columns(write(tmp_path / "test-en.iob2", UNER.replace(old, new)), ENTITY_LABELS)
    assert part in str(error.value)


def test_five_columns_with_the_tag_last_are_conll(tmp_path):
    rows, _ = columns(write(tmp_path / "test-en.conll", "1\ta\tb\tc\tO\n2\ta\tb\tc\tB-PER\n"), ENTITY_LABELS)
    assert rows[0]["words"] == ["1", "2"]


# ------------------------------------------------------------------------------------------------------------ TSV headers

XNLI_HEADER = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpromptID\tlabel1\n"


def xnli_original(*rows):
    return XNLI_HEADER + "".join(f'{language}\t{label}\t( "x" )\t{a}\t{b}\t7\tneutral\n' for language, label, a, b in rows)


def test_named_columns_are_found_and_languages_are_told_apart(tmp_path):
    text = xnli_original(("ar", "neutral", "p", "h0"), ("de", "entailment", 'er "sagt"', "h1"), ("de", "contradiction", "q", "h2"))
    path = write(tmp_path / "xnli.test.tsv", text)
    assert languages(path) == ["ar", "de"]
    rows, _ = pairs(path, NLI_LABELS, "de")
    assert rows == [
        {"id": "xnli.test:3", "text_a": 'er "sagt"', "text_b": "h1", "label": "entailment", "group": "0"},
        {"id": "xnli.test:4", "text_a": "q", "text_b": "h2", "label": "contradiction", "group": "1"},
    ]
    with pytest.raises(MoebenchError, match="holds no row of language 'sw'"):
        pairs(path, NLI_LABELS, "sw")


def test_the_training_set_of_xnli_spells_a_label_in_its_own_way(tmp_path):
    path = write(tmp_path / "multinli.train.en.tsv", "premise\thypo\tlabel\na\tb\tcontradictory\nc\td\tneutral\n")
    rows, reports = pairs(path, NLI_LABELS)
    assert [row["label"] for row in rows] == ["contradiction", "neutral"]
    assert reports == ["1 labels are spelled contradictory; read as contradiction"]
    assert languages(path) == []
    with pytest.raises(MoebenchError, match="no column 'language'"):
        pairs(path, NLI_LABELS, "en")


def test_a_headless_file_that_names_columns_in_its_text_is_data(tmp_path):
    rows, _ = pairs(write(tmp_path / "dev-en.tsv", "premise\tsentence2\t1\na\tb\t0\n"), PARAPHRASE_LABELS)
    assert len(rows) == 2


# ---------------------------------------------------------------------------------------------------- questions by language


def question(name, answered=True):
    answer = {"text": "fox" if answered else "", "answer_start": 4 if answered else 0}
    return {"paragraphs": [{"context": "the fox runs " + name, "qas": [{"id": name, "question": "who?", "answers": [answer]}]}]}


def goldp(*names, answered=True):
    return json.dumps({"version": "TyDiQA-GoldP-1.1-for-SQuAD-1.1", "data": [question(name, answered) for name in names]})


def test_languages_of_questions_come_from_their_ids(tmp_path):
    path = write(tmp_path / "tydiqa-goldp-v1.1-dev.json", goldp("english-12-0", "swahili--3-1", "english-7-2"))
    assert languages(path) == ["en", "sw"]
    assert [row["id"] for row in squad(path, "en")[0]] == ["english-12-0", "english-7-2"]
    assert [row["id"] for row in squad(path)[0]] == ["english-12-0", "swahili--3-1", "english-7-2"]
    with pytest.raises(MoebenchError, match="no question of language 'te'"):
        squad(path, "te")
    assert languages(write(tmp_path / "train-v1.1.json", goldp("5733be284776f41900661182", "a0-1"))) == []


# -------------------------------------------------------------------------------------------------------- originals as found


def nli(premises, word, labelled=True):
    return "".join(f"{word} {i}\t{word} {i} {label}" + (f"\t{label}\n" if labelled else "\n") for i in range(premises) for label in LABELS)


def test_the_labelled_variant_beside_a_stripped_file_is_chosen(tmp_path):
    home = tmp_path / "xtreme/xnli"
    write(home / "train-en.tsv", nli(25, "train"))
    write(home / "dev-en.tsv", nli(2, "dev"))
    write(home / "dev-sw.tsv", nli(2, "jaribu"))
    for language in ("en", "de", "sw"):
        write(home / f"test-{language}.tsv", nli(3, language, labelled=False))
    write(home / "labelled/test-de.tsv", nli(3, "de"))
    original = [("en", label, f"p{i}", f"h{i} {label}") for i in range(2) for label in LABELS]
    write(home / "XNLI-1.0/xnli.test.tsv", xnli_original(*original))
    files = source(tmp_path, "xnli")
    assert files.choices() == {
        "xnli.de": "xtreme/xnli/labelled/test-de.tsv",
        "xnli.en": "xtreme/xnli/XNLI-1.0/xnli.test.tsv, rows of en",
        "xnli.sw": "xtreme/xnli/dev-sw.tsv",
        "xnli.train": "xtreme/xnli/train-en.tsv",
        "xnli.validation": "xtreme/xnli/dev-en.tsv",
    }
    assert {language: len(rows) for language, rows in files.test("xnli").items()} == {"de": 9, "en": 6, "sw": 6}
    assert files.reports() == [
        "xtreme/xnli/test-de.tsv: labels stripped; xtreme/xnli/labelled/test-de.tsv stands in",
        "xtreme/xnli/test-en.tsv: labels stripped; xtreme/xnli/XNLI-1.0/xnli.test.tsv, rows of en stands in",
        "xtreme/xnli/test-sw.tsv: labels stripped; xtreme/xnli/dev-sw.tsv stands in",
    ]
    assert "xtreme/xnli/XNLI-1.0/xnli.test.tsv" in files.files()


def test_a_labelled_original_that_is_trained_on_is_no_test_set(tmp_path):
    write(tmp_path / "xnli/labelled/test-en.tsv", nli(25, "test"))
    write(tmp_path / "xnli/dev-en.tsv", nli(2, "dev"))
    files = source(tmp_path, "xnli", train_files={"xnli": "xnli/labelled/test-en.tsv"})
    assert files.choices()["xnli.en"] == "xnli/dev-en.tsv"
    assert len(files.train("xnli")) + len(files.validation("xnli")) == 75


def test_xnli_and_pawsx_as_published(tmp_path):
    labels = [(language, label, f"{language}{i}", label) for i in range(4) for label in LABELS for language in ("en", "th")]
    write(tmp_path / "xnli/XNLI-1.0/xnli.test.tsv", xnli_original(*labels))
    write(tmp_path / "xnli/XNLI-1.0/xnli.dev.tsv", xnli_original(*(("en", label, "dev", label) for label in LABELS)))
    write(tmp_path / "xnli/XNLI-MT-1.0/multinli/multinli.train.en.tsv", "premise\thypo\tlabel\n" + nli(12, "mt"))
    header = "id\tsentence1\tsentence2\tlabel\n"
    write(tmp_path / "pawsx/x-final/en/train.tsv", header + "1\ta\tb\t1\n2\tc\td\t0\n")
    write(tmp_path / "pawsx/x-final/ko/test_2k.tsv", header + "1\te\tf\t1\n2\tg\th\t0\n")
    write(tmp_path / "pawsx/x-final/en/dev_2k.tsv", header + "1\ti\tj\t1\n2\tk\tl\t0\n")
    write(tmp_path / "pawsx/x-final/ko/translated_train.tsv", header + "1\tx\ty\t1\n")
    files = source(tmp_path, "xnli", "pawsx")
    assert files.languages == ("en", "ko", "th")
    assert {language: len(rows) for language, rows in files.test("xnli").items()} == {"en": 12, "th": 12}
    assert [row["text_a"] for row in files.validation("xnli")] == ["dev"] * 3
    assert len(files.train("xnli")) == 36
    assert files.choices()["pawsx.ko"] == "pawsx/x-final/ko/test_2k.tsv"
    assert files.choices()["pawsx.en"] == "pawsx/x-final/en/dev_2k.tsv"
    assert not any("translated" in name for name in files.files())


def test_treebanks_of_a_language_are_one_set(tmp_path):
    for name, sentence in (("en_ewt", "A"), ("en_gum", "B")):
        folder = tmp_path / "udpos" / f"UD_English-{name[3:].upper()}"
        write(
            folder / f"{name}-ud-train.conllu", "\n".join(token(1, f"{sentence}{i}", "NOUN") + token(2, ".", "PUNCT", 1) for i in range(12))
        )
        write(folder / f"{name}-ud-dev.conllu", token(1, sentence, "NOUN") + token(2, "!", "PUNCT", 1))
    write(tmp_path / "udpos/UD_French-X/fr_x-ud-test.conllu", FRENCH)
    write(tmp_path / "udpos/UD_French-Y/fr_y-ud-test.conllu", token(1, "_", "NOUN") + token(2, "_", "PUNCT", 1))
    write(tmp_path / "udpos/test-fr.tsv", "Il\nparle\n")
    files = source(tmp_path, "udpos")
    assert files.choices() == {
        "udpos.en": "udpos/UD_English-EWT/en_ewt-ud-dev.conllu + udpos/UD_English-GUM/en_gum-ud-dev.conllu",
        "udpos.fr": "udpos/UD_French-X/fr_x-ud-test.conllu + udpos/UD_French-Y/fr_y-ud-test.conllu",
        "udpos.train": "udpos/UD_English-EWT/en_ewt-ud-train.conllu + udpos/UD_English-GUM/en_gum-ud-train.conllu",
        "udpos.validation": "udpos/UD_English-EWT/en_ewt-ud-train.conllu + udpos/UD_English-GUM/en_gum-ud-train.conllu, every 10th group",
    }
    assert [row["tags"] for row in files.test("udpos")["fr"]] == [["PRON", "VERB", "ADP", "NOUN", "PUNCT"]]
    assert len(files.train("udpos")) + len(files.validation("udpos")) == 24
    assert any("text is withheld" in report for report in files.reports())
    (tmp_path / "udpos/UD_French-X/fr_x-ud-test.conllu").unlink()
    with pytest.raises(MoebenchError, match=r"fr_y-ud-test\.conllu: no sentence has its text"):
        source(tmp_path, "udpos").test("udpos")


def test_panx_as_published_and_as_columns(tmp_path):
    write(tmp_path / "panx/en/train", "\n".join(f"en:Paris{i}\tB-LOC\nen:.\tO\n" for i in range(20)))
    write(tmp_path / "panx/de/test", "de:Bonn\tB-LOC\nde:.\tO\n\n")
    write(tmp_path / "panx/test-fr.iob2", "Lyon B-LOC\n. O\n")
    files = source(tmp_path, "panx")
    assert {language: rows[0]["words"] for language, rows in files.test("panx").items()} == {"de": ["Bonn", "."], "fr": ["Lyon", "."]}
    assert files.train("panx")[0]["words"] == ["Paris1", "."]


def test_tydiqa_as_published(tmp_path):
    home = tmp_path / "tydiqa"
    write(home / "tydiqa-goldp-v1.1-train/tydiqa-goldp-v1.1-train.json", goldp(*(f"english-{i}-0" for i in range(11)), "korean-1-0"))
    for code in ("ko", "sw"):
        write(home / f"tydiqa-goldp-v1.1-dev/tydiqa.goldp.{code}.dev.json", goldp("12", "13", answered=False))
    write(home / "tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-korean.json", goldp("korean-5-0"))
    write(home / "tydiqa-goldp-v1.1-dev.json", goldp("swahili-5-0", "swahili-6-0", "korean-5-0"))
    files = source(tmp_path, "tydiqa")
    assert {row["id"].split("-")[0] for row in files.train("tydiqa")} == {"english"}
    assert {language: len(rows) for language, rows in files.test("tydiqa").items()} == {"ko": 1, "sw": 2}
    assert files.choices()["tydiqa.sw"] == "tydiqa/tydiqa-goldp-v1.1-dev.json, rows of sw"
    assert files.choices()["tydiqa.train"] == "tydiqa/tydiqa-goldp-v1.1-train/tydiqa-goldp-v1.1-train.json, rows of en"
    (home / "tydiqa-goldp-v1.1-dev.json").unlink()
    with pytest.raises(MoebenchError, match=r"tydiqa\.goldp\.sw\.dev\.json: labels stripped .* put tydiqa-goldp-v1\.1-dev\.json of https"):
        source(tmp_path, "tydiqa").test("tydiqa")


def test_cross_language_pairs_of_mlqa(tmp_path):
    home = tmp_path / "mlqa/MLQA_V1"
    write(tmp_path / "squad/train-v1.1.json", goldp(*map(str, range(12))))
    write(home / "test/test-context-hi-question-vi.json", goldp("a", answered=False))
    write(home / "labelled/test-context-hi-question-vi.json", goldp("a"))
    write(home / "dev/dev-context-hi-question-vi.json", goldp("b"))
    write(home / "dev/dev-context-vi-question-hi.json", goldp("c"))
    write(home / "dev/dev-context-vi-question-vi.json", goldp("d"))
    files = source(tmp_path, "mlqa")
    assert {pair: rows[0]["id"] for pair, rows in files.test("mlqa").items()} == {"hi-vi": "a", "vi": "d", "vi-hi": "c"}
    assert list(source(tmp_path, "mlqa", languages=("vi",)).test("mlqa")) == ["vi"]


@pytest.mark.parametrize(
    ("task", "stripped", "advice"),
    [
        ("xnli", {"xnli/test-de.tsv": nli(2, "a", labelled=False)}, "XNLI-1.0.zip"),
        ("pawsx", {"pawsx/test-de.tsv": "a\tb\nc\td\n"}, "x-final.tar.gz"),
        ("udpos", {"udpos/test-de.tsv": "a\nb\n"}, "universaldependencies.org"),
        ("panx", {"panx/test-de.tsv": "a\nb\n"}, "unpack the archive de.tar.gz of WikiANN"),
        ("panx", {"panx/test-th.tsv": "a\nb\n"}, "unpack the archive th.tar.gz of WikiANN"),
        ("xquad", {"xquad/xquad.de.json": goldp("1", answered=False)}, "google-deepmind/xquad"),
        ("mlqa", {"mlqa/MLQA_V1/test/test-context-de-question-de.json": goldp("1", answered=False)}, "MLQA_V1.zip"),
        ("tydiqa", {"tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.ko.dev.json": goldp("1", answered=False)}, "tydiqa-goldp-v1.1-dev.json"),
    ],
)
def test_where_nothing_is_labelled_the_file_to_get_is_named(tmp_path, task, stripped, advice):
    training = {
        "xnli": ("xnli/train-en.tsv", nli(12, "t")),
        "pawsx": ("pawsx/train-en.tsv", "a\tb\t1\nc\td\t0\n"),
        "udpos": ("udpos/train-en.tsv", "a\tNOUN\n.\tPUNCT\n"),
        "panx": ("panx/train-en.tsv", "a\tB-LOC\n.\tO\n"),
        "tydiqa": ("tydiqa/tydiqa-goldp-v1.1-train.json", goldp("1")),
    }.get(task, ("squad/train-v1.1.json", goldp("1")))
    for name, text in [training, *stripped.items()]:
        write(tmp_path / name, text)
    with pytest.raises(MoebenchError, match="labels stripped") as error:
        source(tmp_path, task).test(task)
    assert advice in str(error.value)
    assert str(tmp_path) in str(error.value).split("place: ")[1]


def test_each_file_is_shown_before_it_is_read(tmp_path):
    write(tmp_path / "xnli/train-en.tsv", nli(12, "train"))
    write(tmp_path / "xnli/test-de.tsv", nli(2, "de"))
    write(tmp_path / "c/a.txt", "one\n")
    shown = []
    options = {"corpus_files": {"en": "c"}}
    files = FilesSource(tmp_path, TextData(source="files", tasks=["xnli"], tokens={"source": "bundled"}, **options), shown.append)
    files.test("xnli")
    files.train("xnli")
    files.train("xnli")
    list(files.documents("validation"))
    assert shown == ["xnli/test-de.tsv", "xnli/train-en.tsv", "c/a.txt"]


# ------------------------------------------------------------------------------------------------------------------ corpora


def test_a_folder_of_texts_is_one_corpus(tmp_path):
    write(tmp_path / "xnli/train-en.tsv", nli(12, "train"))
    write(tmp_path / "xnli/test-de.tsv", nli(2, "de"))
    lines = [f"document {i}" for i in range(250)]
    write(tmp_path / "corpus/en/b/01.txt", "\n".join(lines[120:]) + "\n")
    write(tmp_path / "corpus/en/a.txt", "\n".join(lines[:120]))
    write(tmp_path / "corpus/en/notes.md", "not a text\n")
    write(tmp_path / "corpus/en/._a.txt", "not a text\n")
    files = source(tmp_path, "xnli", corpus_files={"en": "corpus/en"})
    held = [text for _, text in files.documents("validation")]
    assert held == lines[::HELD_OUT_DOCUMENTS]
    assert sorted(held + [text for _, text in files.documents("train")]) == sorted(lines)
    assert {"corpus/en/a.txt", "corpus/en/b/01.txt"} <= set(files.files())
    assert not any(name.endswith(".md") for name in files.files())
    (tmp_path / "empty").mkdir()
    with pytest.raises(MoebenchError, match=r"corpus_files\.en: the folder .*empty holds no file \*\.txt"):
        source(tmp_path, "xnli", corpus_files={"en": "empty"})
    with pytest.raises(MoebenchError, match=r"train_files\.xnli: .*corpus is a folder"):
        source(tmp_path, "xnli", train_files={"xnli": "corpus"})


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    write(tmp_path / "xnli/train-en.tsv", nli(12, "train"))
    write(tmp_path / "xnli/test-de.tsv", nli(2, "de"))

    def peak(documents):
        write(tmp_path / "corpus/en/a.txt", "".join(f"{i} {'word ' * 40}\n" for i in range(documents)))
        files = source(tmp_path, "xnli", corpus_files={"en": "corpus/en"})
        tracemalloc.start()
        assert sum(1 for _ in files.documents("train")) == documents * 99 // 100
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(100)
    assert peak(8000) < peak(1000) + 20_000


# ------------------------------------------------------------------------------------------------------------ a real folder

REAL = os.environ.get("MOEBENCH_FOLDER")


@pytest.mark.skipif(not REAL, reason="MOEBENCH_FOLDER names no folder of original files")
def test_blank_answers_of_a_real_folder_are_noticed():
    folder = Path(str(REAL))
    home = (folder / "xtreme" if (folder / "xtreme").is_dir() else folder) / "tydiqa/tydiqa-goldp-v1.1-dev"
    blank = [path for path in sorted(home.glob("tydiqa.goldp.*.dev.json")) if '"text": ""' in path.read_text(encoding="utf-8")]
    if not blank:
        pytest.skip("no file with blank answers")
    for path in blank:
        with pytest.raises(LabelsStripped):
            squad(path)
    with pytest.raises(MoebenchError, match=r"labels stripped .* put tydiqa-goldp"):
        source(folder, "tydiqa").test("tydiqa")
