"""Tokenizer: exact character ranges, reproducible training, the bundled vocabulary."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_bundle import EVERY_TEXT, NORMALISATION, PIECES, write_bundle
from tiny_texts import FORMS, SCRIPTS, in_form
from tiny_texts import TEXTS as SCRIPT_TEXTS

from moebench.data import tokenizer
from moebench.data.bundled import Bundle
from moebench.data.tokenizer import Tokenizer
from moebench.errors import MoebenchError

MARK = "\u2581"
REAL = Path(os.environ.get("MOEBENCH_BUNDLE") or Path(__file__).parents[2] / "data" / "downloads" / "e5-small-q4.bin")

ALPHABET = (
    "abcdehilnorst .,!"
    + " \t\n\u00a0\u3000\u2028"
    + MARK
    + "e\u0301\u0327"
    + "日本語"
    + "ｈｅＷ！"
    + "\U0001f600\U00010348"
    + "\u0915\u094d"
)
ALPHABET += "\x00\x01ﬁ㎥ﷺ\x85\ud800"
TEXTS = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters()), max_size=40)


def texts(seed: int = 0) -> list[str]:
    """Sentences of made-up words in three scripts."""
    generator = random.Random(seed)
    alphabets = ["abcdehilnorst", "бвгдежзик", "अकखगघनम"]
    words = ["".join(generator.choices(alphabets[i % 3], k=generator.randint(2, 7))) for i in range(150)]
    return [" ".join(generator.choices(words, k=8)) + "." for _ in range(400)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tokenizer.train(texts(), 250, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    write_bundle(folder / "tiny.bin")
    return tokenizer.from_bundle(Bundle(folder / "tiny.bin"), EVERY_TEXT, folder)


def surfaces(ours: Tokenizer, ids: list[int]) -> list[str]:
    return [ours._pieces.id_to_piece(number) for number in ids]


def test_the_words_of_a_small_lexicon_are_pieces_where_the_vocabulary_has_room(tmp_path):
    ours = tokenizer.train(texts(), 2000, tmp_path)
    words = sorted({word.removesuffix(".") for text in texts() for word in text.split(" ")})
    assert len(words) > 100
    assert all(surfaces(ours, ours.encode(word)[0]) == [MARK + word] for word in words)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_trained_ranges_are_exact(trained, text):
    ids, offsets = trained.encode(text)
    assert len(ids) == len(offsets)
    covered = [0] * len(text)
    for surface, (start, stop) in zip(surfaces(trained, ids), offsets, strict=True):
        for index in range(start, stop):
            covered[index] += 1
        if surface == MARK:
            assert start == stop
        elif surface != "<unk>":
            assert text[start:stop] == surface.removeprefix(MARK)
    assert covered == [int(not (character.isspace() or character == MARK)) for character in text]
    assert offsets == sorted(offsets)
    assert ids == trained.encode_batch([text])[0]


RULE = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
OWN = "".join(chr(code) for code, new in NORMALISATION.items() if RULE.normalize(chr(code)) != RULE.normalize(new))
"""What the tiny bundle says otherwise."""


@settings(max_examples=500, deadline=None)
@given(text=SCRIPT_TEXTS)
@example(text="Chẩn đoán \u1112\u1161\u11ab\u1100\u1173\u11af \u0627\u0654 \u0438\u0306 \u30cf\u309a \uff8a\uff9f \u0bc6\u0bbe")
def test_the_bundled_tokenizer_normalises_as_nmt_nfkc_does(bundled, text):
    text = text.translate(dict.fromkeys(map(ord, OWN)) | tokenizer.SURROGATES)
    assert bundled._normaliser.normalize(text) == RULE.normalize(text)


@settings(max_examples=500, deadline=None)
@given(text=st.one_of(TEXTS, SCRIPT_TEXTS))
def test_bundled_ranges_are_exact_up_to_the_normalisation(bundled, text):
    ids, offsets = bundled.encode(text)
    normalise = bundled._normaliser.normalize
    plain = text.translate(tokenizer.SURROGATES)
    covered = [0] * len(text)
    for surface, (start, stop) in zip(surfaces(bundled, ids), offsets, strict=True):
        for index in range(start, stop):
            covered[index] += 1
        if surface not in ("<unk>", MARK):
            assert surface.removeprefix(MARK) in normalise(plain[start:stop])
    for surface, (start, stop) in zip(surfaces(bundled, ids), offsets, strict=True):
        if surface not in ("<unk>", MARK) and covered[start:stop] == [1] * (stop - start):
            assert surface.removeprefix(MARK) == normalise(plain[start:stop]).removeprefix(MARK)
    for place, (character, count) in enumerate(zip(plain, covered, strict=True)):
        new = normalise(character)
        if new:
            assert count >= 1
        elif character.isspace() or character == MARK:
            assert count <= 1  # one can be dropped inside a piece
        else:
            assert count >= (place > 0 and covered[place - 1] > 0)
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert [stop for _, stop in offsets] == sorted(stop for _, stop in offsets)
    assert ids == bundled.encode_batch([text])[0]


@pytest.mark.parametrize(
    ("text", "pieces", "ranges"),
    [
        ("the cat", ["▁the", "▁cat"], ["the", "cat"]),
        ("  ｔｈｅ\u00a0\tcat ", ["▁the", "▁cat"], ["ｔｈｅ", "cat"]),
        ("ﬁne", ["▁fi", "ne"], ["ﬁ", "ne"]),
        ("c\x01at", ["▁cat"], ["c\x01at"]),
        ("cat\u200b sat\u200c. \u200ethe", ["▁cat", "▁sat", "▁", ".", "▁the"], ["cat\u200b", "sat\u200c", "", ".", "the"]),
        ("e\u0301 fine\u0301", ["▁é", "▁fin", "é"], ["e\u0301", "fin", "e\u0301"]),
        ("\x01", [], []),
        ("", [], []),
        ("日本語", ["▁日本", "語"], ["日本", "語"]),
        ("!cat", ["▁", "!", "cat"], ["", "!", "cat"]),
        ("\U0001f600\U0001f601 cat", ["▁", "<unk>", "▁cat"], ["", "\U0001f600\U0001f601", "cat"]),
        ("㎥", ["▁", "m", "3"], ["", "㎥", "㎥"]),
    ],
)
def test_bundled_examples(bundled, text, pieces, ranges):
    ids, offsets = bundled.encode(text)
    assert surfaces(bundled, ids) == pieces
    assert [text[start:stop] for start, stop in offsets] == ranges


def test_text_never_yields_a_special_piece(trained, bundled):
    for ours in (trained, bundled):
        ids, _ = ours.encode("<s> </s> <pad> <mask> <unk>")
        assert not {ours.bos, ours.eos, ours.pad, ours.mask} & set(ids)


def test_ids_of_the_special_pieces(trained, bundled):
    assert (trained.kind, trained.bos, trained.pad, trained.eos, trained.unk, trained.mask) == ("trained", 0, 1, 2, 3, 4)
    assert surfaces(trained, [0, 1, 2, 3, 4]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert (bundled.kind, bundled.bos, bundled.pad, bundled.eos, bundled.unk, bundled.mask) == ("bundled", 0, 1, 2, 3, 199)
    assert surfaces(bundled, list(range(bundled.size))) == PIECES


def test_a_trained_tokenizer_knows_every_character_of_its_text(trained):
    assert trained.size <= 250
    assert not any(trained.unk in ids for ids in trained.encode_batch(texts()))


def test_words_are_represented_by_their_first_piece_with_content(bundled):
    words = ["the", "!", "日本", "\x01", "\U0001f600", "", "\u00a0", "!cat"]
    ids, first = bundled.encode_words(words)
    assert [surfaces(bundled, ids)[index] for index in first] == ["▁the", "!", "▁日本", "<unk>", "<unk>", "<unk>", "<unk>", "!"]
    assert first == sorted(set(first))
    pieces = [bundled.encode(word)[0] or [bundled.unk] for word in words]
    assert ids == [number for word in pieces for number in word]


@settings(max_examples=100, deadline=None)
@given(words=st.lists(TEXTS, max_size=8))
def test_every_word_has_a_piece_of_its_own(trained, words):
    ids, first = trained.encode_words(words)
    ends = [0]
    for word in words:
        ends.append(ends[-1] + max(1, len(trained.encode(word)[0])))
    assert ends[-1] == len(ids)
    assert len(first) == len(words)
    for index, start, stop in zip(first, ends, ends[1:], strict=False):
        assert start <= index < stop
        assert stop == start + 1 or surfaces(trained, [ids[index]]) != [MARK]


def test_loading_gives_the_same_tokenizer_and_a_mixed_folder_is_refused(trained, tmp_path):
    tokenizer.train(texts(), 250, tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == trained.sha256
    assert [again.encode(text) for text in texts(1)[:20]] == [trained.encode(text) for text in texts(1)[:20]]
    model = tmp_path / "sentencepiece.model"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(MoebenchError, match=r"sentencepiece\.model"):
        Tokenizer.load(tmp_path)
    model.unlink()
    with pytest.raises(MoebenchError, match=r"sentencepiece\.model"):
        Tokenizer.load(tmp_path)


def test_training_gives_the_same_bytes_in_fresh_processes(tmp_path):
    program = "import sys; sys.path[:0] = sys.argv[2:]; import test_tokenizer as t; t.tokenizer.train(t.texts(), 250, t.Path(sys.argv[1]))"
    for name in ("a", "b"):
        environment = os.environ | {"PYTHONHASHSEED": str(ord(name))}
        folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name), *folders], check=True, env=environment)
    for file in ("sentencepiece.model", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_training_sees_long_documents_and_text_with_odd_spaces(tmp_path):
    long = " ".join(texts()) + "\tж\u00a0ш"
    assert len(long.encode()) > 10_000
    ours = tokenizer.train([long, "", "  "], 250, tmp_path)
    assert ours.unk not in ours.encode("ж ш")[0]


@pytest.mark.parametrize(("given_texts", "vocabulary"), [([], 100), ([" \t"], 100), (["abcdefghij"], 8)])
def test_training_that_cannot_work_says_so(tmp_path, given_texts, vocabulary):
    with pytest.raises(MoebenchError, match=f"tokens.vocabulary {vocabulary}"):
        tokenizer.train(given_texts, vocabulary, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, MoebenchError])
def test_a_failure_of_the_texts_is_passed_on_as_it_is(tmp_path, error):
    def failing():
        yield "abc"
        raise error("corpus.txt")

    with pytest.raises(error, match=r"corpus\.txt"):
        tokenizer.train(failing(), 100, tmp_path)


def test_the_hand_written_model_agrees_with_a_search_over_all_segmentations(bundled, tmp_path):
    """Unigram: the segmentation whose log-probabilities sum highest, found here by a dynamic programme over the pieces."""
    write_bundle(tmp_path / "tiny.bin")
    scores = {piece: score for piece, score in Bundle(tmp_path / "tiny.bin").pieces() if not piece.startswith("<")}
    for text in ("the cat sat on the mat", "fine hello", "日本語 world", "catsat", "finefi"):
        line = MARK + text.replace(" ", MARK)
        best: list[tuple[float, list[str]]] = [(0.0, [])]
        for stop in range(1, len(line) + 1):
            options = [(best[i][0] + scores[line[i:stop]], [*best[i][1], line[i:stop]]) for i in range(stop) if line[i:stop] in scores]
            best.append(max(options, default=(-1e10, [])))
        assert surfaces(bundled, bundled.encode(text)[0]) == best[-1][1]


def test_sentencepiece_reads_the_model_file_on_its_own(trained, tmp_path):
    tokenizer.train(texts(), 250, tmp_path)
    alone = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.model"))
    for text in texts(2)[:20]:
        assert alone.encode(text) == trained.encode(text)[0]


@pytest.mark.skipif(not REAL.is_file(), reason="the real weights are not there (data/downloads or MOEBENCH_BUNDLE)")
def test_the_real_vocabulary(tmp_path):
    ours = tokenizer.from_bundle(Bundle(REAL), ["Hello world", "Ｈｅｌｌｏ\u00a0 world 第一", "第一"], tmp_path)
    assert ours.rows == sorted({0, 1, 2, 3, 250001, *(ours.rows[piece] for piece in ours.encode("Hello world 第一")[0])})
    pieces, offsets = ours.encode("Hello world")
    assert ([ours.rows[piece] for piece in pieces], offsets) == ([35378, 8999], [(0, 5), (6, 11)])
    text = "Ｈｅｌｌｏ\u00a0 world 第一"
    assert [text[start:stop] for start, stop in ours.encode(text)[1]] == ["Ｈｅｌｌｏ", "world", "", "第一"]
    ids, first = ours.encode_words(["第一", "Hello"])
    assert [ours._pieces.id_to_piece(ids[index]) for index in first] == ["第一", "▁Hello"]


@pytest.mark.skipif(not REAL.is_file(), reason="the real weights are not there (data/downloads or MOEBENCH_BUNDLE)")
def test_the_real_vocabulary_cuts_every_form_of_a_text_alike(tmp_path):
    """But for the joiner U+200D, a space to this checkpoint as it once was to SentencePiece, the bundle says what the library does."""
    own = Bundle(REAL).normalisation()
    assert [code for code, new in own.items() if RULE.normalize(chr(code)) != RULE.normalize(new)] == [0x200D]
    ours = tokenizer.from_bundle(Bundle(REAL), [in_form(text, form) for text in SCRIPTS for form in FORMS], tmp_path)
    for text in SCRIPTS:
        pieces = ours.encode(RULE.normalize(text).replace(MARK, " "))[0]
        for form in FORMS:
            assert ours.encode(in_form(text, form))[0] == pieces, (text, form)


def test_a_part_of_the_bundled_vocabulary_cuts_its_texts_as_the_whole_does(bundled, tmp_path):
    texts = ["the cat sat on the mat", "hello world", "fine é", "日本語 cat", "ﬁne"]
    write_bundle(tmp_path / "tiny.bin")
    part = tokenizer.from_bundle(Bundle(tmp_path / "tiny.bin"), texts, tmp_path)
    assert part.size < bundled.size
    assert part.rows == sorted(part.rows)
    for text in texts:
        assert surfaces(part, part.encode(text)[0]) == surfaces(bundled, bundled.encode(text)[0])
        assert [part.rows[piece] for piece in part.encode(text)[0]] == [bundled.rows[piece] for piece in bundled.encode(text)[0]]
    for name in ("bos", "pad", "eos", "unk", "mask"):
        assert part.rows[getattr(part, name)] == bundled.rows[getattr(bundled, name)]
    assert Tokenizer.load(tmp_path).rows == part.rows
    assert part.encode("xyz")[0][-1] == part.unk
