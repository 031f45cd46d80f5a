"""Tokenizers from ``tokenizer.json``: ids against SentencePiece and a greedy search, exact character ranges, refusals."""

import io
import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from moebench.data import corpus, hub_tokenizer, tokenizer
from moebench.data.hub_tokenizer import HubTokenizer, from_checkpoint, load
from moebench.data.tokenizer import MARK
from moebench.errors import MoebenchError

XLMR = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdehinoprst.!éÉ第一<>[]", *(f"##{letter}" for letter in "abcdehinoprst"), "the", "cat", "##at", "##er", "e", "CLS", "mask"]
ALPHABET = "abcdehilnorst .,!<>[]" + " \t\n\u00a0\u3000\u2028" + MARK + "e\u0301é" + "第一" + "ｈｅＷ" + "\U0001f600" + "\u0915\u094d\ud800"
TEXTS = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters()), max_size=40)


def sentences() -> list[str]:
    generator = random.Random(3)
    words = [
        "".join(generator.choices(["abcdehinort<>.!", "бвгдежзик", "第一日本語"][i % 3], k=generator.randint(1, 6))) for i in range(150)
    ]
    return [" ".join(generator.choices(words, k=8)) for _ in range(400)]


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a protocol buffer."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at

    at, result = 0, []
    while at < len(message):
        key, at = varint(at)
        if key & 7 == 2:
            length, at = varint(at)
            result.append((key >> 3, message[at : at + length]))
            at += length
        else:
            at = at + 4 if key & 7 == 5 else varint(at)[1]
    return result


def write(folder, built: tokenizers.Tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    return folder


def unigram(folder, split: bool) -> sentencepiece.SentencePieceProcessor:
    """Train a SentencePiece model and write it as transformers writes XLM-R's (`split`) or CamemBERT's (newer) vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        control_symbols=["<mask>"],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    normaliser = next(value for field, value in fields(model.getvalue()) if field == 3)
    charsmap = next(value for field, value in fields(normaliser) if field == 2)
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    built = tokenizers.Tokenizer(models.Unigram(vocabulary, 3, False))
    built.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    metaspace = pre_tokenizers.Metaspace()
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]) if split else metaspace
    built.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    built.add_special_tokens(XLMR)
    built.enable_truncation(5)
    built.enable_padding(length=9)
    write(folder, built)
    return pieces


def wordpiece(folder, lowercase: bool = False):
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([BERT[0], "[unused1]", *BERT[1:], *WORDS]))}
    built = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.add_special_tokens(BERT)
    return write(folder, built)


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
    for surface, (start, stop) in zip(surfaces(ours, ids), offsets, strict=True):
        assert 0 <= start <= stop <= len(text)
        assert text[start:stop] == text[start:stop].strip()
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
        ("mbert", "a\ud800 \x00b", ["a", "b"], ["a", "b"]),
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


def test_a_checkpoint_without_the_file_is_refused(tmp_path):
    with pytest.raises(MoebenchError, match=r"tokenizer\.json: not there; put it beside the weights"):
        from_checkpoint(tmp_path, tmp_path / "prepared")
