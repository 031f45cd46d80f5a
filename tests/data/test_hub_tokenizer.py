"""Tokenizers from ``tokenizer.json``: ids against SentencePiece and a greedy search, exact character ranges, refusals."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_texts import LETTERS, UNCLEAR
from tiny_texts import TEXTS as SCRIPT_TEXTS
from tiny_vocabularies import WORDS, sentences, unigram, wordpiece

from moebench.data import corpus, hub_tokenizer, tokenizer
from moebench.data.hub_tokenizer import HubTokenizer, from_checkpoint, load
from moebench.data.normaliser import MARK, SURROGATES
from moebench.errors import MoebenchError

ALPHABET = "abcdehilnorst .,!<>[]" + " \t\n\u00a0\u3000\u2028" + MARK + "e\u0301é" + "第一" + "ｈｅＷ" + "\U0001f600" + "\u0915\u094d\ud800"
TEXTS = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters()), max_size=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def reference(folders):
    return unigram(folders / "xlmr", split=True)


@pytest.fixture(scope="module")
def xlmr(folders, reference):
    return from_checkpoint(folders / "xlmr", folders / "xlmr-prepared")


@pytest.fixture(scope="module")
def camembert(folders):
    unigram(folders / "camembert", split=False)
    return from_checkpoint(folders / "camembert", folders / "camembert-prepared")


@pytest.fixture(scope="module")
def mbert(folders):
    return from_checkpoint(wordpiece(folders / "mbert"), folders / "mbert-prepared")


@pytest.fixture(scope="module")
def uncased(folders):
    return from_checkpoint(wordpiece(folders / "uncased", lowercase=True), folders / "uncased-prepared")


def surfaces(ours: HubTokenizer, ids: list[int]) -> list[str]:
    return [ours._hub.id_to_token(number) for number in ids]


# ----------------------------------------------------------------------------------------------------------------- ids


def test_ids_are_those_of_sentencepiece_untruncated_and_unpadded(xlmr, reference):
    texts = [*sentences()[:50], "Ａｂ  cd\u00a0第一 ﬁne e\u0301!", "", "  ", "xyz 第"]
    assert xlmr.encode_batch(texts) == [reference.encode(text) for text in texts]


@settings(max_examples=500, deadline=None)
@given(text=SCRIPT_TEXTS)
@example(text="ze\u0302\u0301 \u1112\u1161\u11ab \u0627\u0654 \uff8a\uff9f \u0bc6\u0bbe ﬃ")
def test_ids_are_those_of_sentencepiece_on_any_text(xlmr, reference, text):
    assert xlmr.encode(text)[0] == reference.encode(text.translate(SURROGATES))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(UNCLEAR + "the ca" + LETTERS), max_size=20))
@example(text="the\x85cat \x85 \x85")
def test_ids_are_those_of_sentencepiece_where_white_space_is_unclear(xlmr, reference, text):
    assert xlmr.encode(text)[0] == reference.encode(text.translate(SURROGATES))
    assert xlmr.encode_batch([text]) == [reference.encode(text.translate(SURROGATES))]


def test_a_piece_with_a_next_line_is_found(folders, xlmr):
    content = json.loads((folders / "xlmr" / "tokenizer.json").read_text())
    content["model"]["vocab"].append(["a\x85b", 0.0])
    (folders / "next-line").mkdir()
    (folders / "next-line" / "tokenizer.json").write_text(json.dumps(content))
    ours = from_checkpoint(folders / "next-line", folders / "next-line-prepared")
    assert ours.encode("\u3000a\x85b") == ([xlmr.encode("x第")[0][0], xlmr.size], [(1, 1), (1, 4)])


def greedy(word: str) -> list[str]:
    """WordPiece: the longest piece first, or one unknown piece for the whole word."""
    pieces, at = [], 0
    while at < len(word):
        ends = [end for end in range(len(word), at, -1) if ("##" if at else "") + word[at:end] in WORDS]
        if not ends:
            return ["[UNK]"]
        pieces.append(("##" if at else "") + word[at : ends[0]])
        at = ends[0]
    return pieces


def test_ids_are_those_of_a_greedy_search(mbert):
    for word in ("the", "cat", "theater", "catch", "cabcabr", "hat", "tea", "xa", "bx", "e", "other"):
        assert surfaces(mbert, mbert.encode(word)[0]) == greedy(word)


def test_ids_of_the_special_pieces(xlmr, mbert):
    assert (xlmr.kind, xlmr.bos, xlmr.pad, xlmr.eos, xlmr.unk, xlmr.mask) == ("hub", 0, 1, 2, 3, 4)
    assert (mbert.kind, mbert.pad, mbert.unk, mbert.bos, mbert.eos, mbert.mask) == ("hub", 0, 2, 3, 4, 5)
    assert mbert.size == len(set(WORDS)) + 6


def test_text_never_yields_a_special_piece(xlmr, camembert, mbert, uncased):
    for ours in (xlmr, camembert, mbert, uncased):
        for text in ("<s> </s> <pad> <mask> <unk>", "a<s>b<mask>", "[CLS] [SEP] [PAD][MASK]", "the[CLS]cat"):
            for ids in (ours.encode(text)[0], ours.encode_batch([text])[0], ours.encode_words(text.split())[0]):
                assert not {ours.bos, ours.eos, ours.pad, ours.mask} & set(ids)
    assert "".join(surfaces(xlmr, xlmr.encode("<s>")[0])).startswith(f"{MARK}<")


# -------------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("name", ["xlmr", "camembert", "mbert", "uncased"])
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_ranges_rise_hold_no_outer_space_and_cover_every_plain_character(request, name, text):
    ours = request.getfixturevalue(name)
    ids, offsets = ours.encode(text)
    assert len(ids) == len(offsets)
    assert offsets == sorted(offsets)
    assert [stop for _, stop in offsets] == sorted(stop for _, stop in offsets)
    covered = [0] * len(text)
    letters = text.replace("\x85", "x") if name in ("xlmr", "camembert") else text  # a letter to their rules
    for surface, (start, stop) in zip(surfaces(ours, ids), offsets, strict=True):
        assert 0 <= start <= stop <= len(text)
        assert letters[start:stop] == letters[start:stop].strip()
        if surface == MARK and name in ("xlmr", "camembert"):
            assert start == stop
        for index in range(start, stop):
            covered[index] += 1
    for character, count in zip(text, covered, strict=True):
        if character in "abcdehilnorst.,!<>[]第一\U0001f600":
            assert count == 1
    assert ids == ours.encode_batch([text])[0]


@pytest.mark.parametrize(
    ("name", "text", "pieces", "ranges"),
    [
        ("mbert", "The  cat.", ["[UNK]", "cat", "."], ["The", "cat", "."]),
        ("uncased", " The CATer", ["the", "cat", "##er"], ["The", "CAT", "er"]),
        ("uncased", "cAÉt", ["c", "##a", "##e", "##t"], ["c", "A", "É", "t"]),
        ("mbert", "第一the", ["第", "一", "the"], ["第", "一", "the"]),
        ("mbert", "a\ud800 \x00b", ["a", "b"], ["a\ud800", "b"]),
        ("uncased", "cAE\u0301t e\u0301", ["c", "##a", "##e", "##t", "e"], ["c", "A", "E\u0301", "t", "e\u0301"]),
        ("mbert", "", [], []),
    ],
)
def test_wordpiece_examples(request, name, text, pieces, ranges):
    ours = request.getfixturevalue(name)
    ids, offsets = ours.encode(text)
    assert surfaces(ours, ids) == pieces
    assert [text[start:stop] for start, stop in offsets] == ranges


@pytest.mark.parametrize("name", ["xlmr", "camembert"])
def test_the_ranges_of_a_unigram_model_are_its_surfaces(request, name):
    ours = request.getfixturevalue(name)
    for text in (*sentences()[:100], "  第一  abc\t!a ", f"{MARK}a{MARK}{MARK}第"):
        ids, offsets = ours.encode(text)
        for surface, (start, stop) in zip(surfaces(ours, ids), offsets, strict=True):
            if surface != "<unk> ":
                assert text[start:stop] == surface.removeprefix(MARK)
            if surface == MARK:
                assert not text[start:].startswith((" ", MARK))


# --------------------------------------------------------------------------------------------------- what others need


def test_words_are_represented_by_their_first_piece_with_content(xlmr, mbert):
    assert surfaces(xlmr, xlmr.encode("x第")[0])[0] == MARK
    for ours in (xlmr, mbert):
        words = ["the", "x第", "", "\x00", "\u00a0", "cat", "xx"]
        ids, first = ours.encode_words(words)
        assert ids == [number for word in words for number in (ours.encode(word)[0] or [ours.unk])]
        assert len(first) == len(words) == len(set(first))
        assert all(surfaces(ours, [ids[index]]) != [MARK] for index in first)


def test_it_comes_back_from_its_folder_and_so_does_every_other_kind(xlmr, folders, tmp_path):
    again = load(folders / "xlmr-prepared")
    assert isinstance(again, HubTokenizer)
    assert (again.sha256, again.size) == (xlmr.sha256, xlmr.size)
    assert again.encode_batch(sentences()[:9]) == xlmr.encode_batch(sentences()[:9])
    assert tokenizer.train(sentences(), 250, tmp_path).sha256 == load(tmp_path).sha256
    assert load(tmp_path).kind == "trained"


def test_the_corpus_packs_with_it(mbert, tmp_path):
    class Source:
        def documents(self, split):
            yield from [("en", "the cat sat"), ("en", "a hat")]

        def parallel(self, split):
            yield "en", "the cat", "fr", "cat the"

    corpus.pack(Source(), mbert, 8, 1, tmp_path)
    assert json.loads((tmp_path / "train.json").read_text())["kind"][-1] == "translation"


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_changed_or_missing_file_is_refused(folders, tmp_path):
    from_checkpoint(wordpiece(tmp_path / "source"), tmp_path / "prepared")
    path = tmp_path / "prepared" / hub_tokenizer.MODEL
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(MoebenchError, match=r"hub\.json: SHA-256 is .*; prepare the data again"):
        load(tmp_path / "prepared")
    path.unlink()
    with pytest.raises(MoebenchError, match=r"hub\.json: cannot be read"):
        load(tmp_path / "prepared")


def change(content, **changes):
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = content
        for key in parents:
            inner = inner[key]
        inner[last] = value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "BPE"}, "'model.type' has the value 'BPE'; only 'Unigram' and 'WordPiece'"),
        ({"added_tokens": []}, r"special tokens, none, lack"),
        ({"model": 3}, "not a tokenizer of the tokenizers library"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Precompiled"}]}},
            r"key 'normalizer' has the steps Lowercase, Precompiled; SentencePiece's rules \(Precompiled\) can only be the first",
        ),
        ({"normalizer": {"type": "Unheard"}}, "the tokenizers library .* cannot read it"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, r"the text of a special token, .* would become its id \(\[0, 3, 4, 5\]\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, changes, message):
    path = wordpiece(tmp_path / "source") / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content, **changes)
    path.write_text(json.dumps(content))
    with pytest.raises(MoebenchError, match=message) as caught:
        from_checkpoint(tmp_path / "source", tmp_path / "prepared")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_rules_of_sentencepiece_that_come_first_in_a_nested_sequence_are_found(folders, reference):
    content = json.loads((folders / "xlmr" / "tokenizer.json").read_text())
    first, *others = content["normalizer"]["normalizers"]
    content["normalizer"]["normalizers"] = [{"type": "Sequence", "normalizers": [first]}, *others]
    (folders / "nested").mkdir()
    (folders / "nested" / "tokenizer.json").write_text(json.dumps(content))
    text = "ze\u0302\u0301 \u1112\u1161\u11ab \uff8a\uff9f"
    assert from_checkpoint(folders / "nested", folders / "nested-prepared").encode(text)[0] == reference.encode(text)


@pytest.mark.parametrize("rules", [None, 3, "!!", "YWJj", "/" * 40])
def test_damaged_rules_of_sentencepiece_are_refused(tmp_path, rules):
    unigram(tmp_path, split=True)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["normalizers"][0]["precompiled_charsmap"] = rules
    path.write_text(json.dumps(content))
    with pytest.raises(MoebenchError, match=r"tokenizer\.json: the tokenizers library .* cannot read it"):
        from_checkpoint(tmp_path, tmp_path / "prepared")


def test_a_checkpoint_without_the_file_is_refused(tmp_path):
    with pytest.raises(MoebenchError, match=r"tokenizer\.json: not there; put it beside the weights"):
        from_checkpoint(tmp_path, tmp_path / "prepared")
