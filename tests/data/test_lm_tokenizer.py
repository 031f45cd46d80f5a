"""Tokenizers of language models: no text is lost, training repeats, checkpoints' files are read as their libraries read them."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_texts import TEXTS as SCRIPT_TEXTS

from moebench.data import lm_tokenizer
from moebench.errors import MoebenchError

ALPHABET = "abchelo .,!<>/s0123\n\r\t\u00a0\u2028\u2581\u2581\x00\x01é😀日本\ufeff\ufffd\x85"
TEXTS = st.one_of(st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs"])), max_size=40), SCRIPT_TEXTS)


def texts(seed: int = 0) -> list[str]:
    """Sentences of made-up words, some with line breaks and runs of spaces."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdehilnorst", k=generator.randint(2, 7))) for _ in range(150)]
    return [generator.choice([" ", "\n", "  "]).join(generator.choices(words, k=8)) + "." for _ in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def trained(folder):
    return lm_tokenizer.train(texts(), 500, folder)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
@example("")
@example("  two  spaces\n\n\n\tand </s> <unk> <0x41> \u2581 end ")
@example("\x00")
@example("a\ud800b")
def test_no_text_is_lost_but_lone_surrogates(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    assert not {trained.bos, trained.eos, trained.pad, 3} & set(ids)
    assert all(0 <= number < trained.size for number in ids)
    assert trained.decode([trained.bos, *ids, trained.eos, trained.pad]) == trained.decode(ids)


@settings(max_examples=200, deadline=None)
@given(left=TEXTS, right=TEXTS)
def test_a_text_can_be_cut_before_a_space_or_at_a_line_break(trained, left, right):
    assert trained.encode(f"{left} {right}") == trained.encode(left) + trained.encode(f" {right}")
    assert trained.encode(f"{left}\n{right}") == trained.encode(f"{left}\n") + trained.encode(right)


def test_a_batch_is_encoded_as_its_texts_are(trained):
    batch = [*texts(1)[:20], "", "\u2581 a"]
    assert trained.encode_batch(batch) == [trained.encode(text) for text in batch]


def test_the_vocabulary_is_used(trained):
    assert 300 < trained.size <= 500
    text = "".join(texts())
    assert len(trained.encode(text)) < 0.5 * len(text)
    assert (trained.bos, trained.eos, trained.pad) == (0, 1, 2)
    assert trained.kind == "trained"


def test_the_same_texts_give_the_same_bytes_in_another_process(trained, folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from moebench.data import lm_tokenizer; from test_lm_tokenizer import texts;"
        "lm_tokenizer.train(iter(texts()), 500, Path(sys.argv[1]))"
    )
    path = os.pathsep.join([*filter(None, sys.path), os.path.dirname(__file__)])  # noqa: PTH120
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"})
    files = {"pieces.json", "trained.model"}
    assert {path.name for path in tmp_path.iterdir()} == files
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert trained.sha256 == hashlib.sha256((folder / "trained.model").read_bytes()).hexdigest()


def test_loading_gives_what_was_written_and_refuses_what_is_damaged(trained, folder, tmp_path):
    again = lm_tokenizer.load(folder)
    assert (again.size, again.sha256, again.kind, again.encode("hello\n")) == (
        trained.size,
        trained.sha256,
        trained.kind,
        trained.encode("hello\n"),
    )
    with pytest.raises(MoebenchError, match=r"pieces\.json: cannot be read"):
        lm_tokenizer.load(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "trained.model").write_bytes(b"other")
    with pytest.raises(MoebenchError, match=r"trained\.model: SHA-256 is .* prepare the data again"):
        lm_tokenizer.load(tmp_path)
    (tmp_path / "trained.model").unlink()
    with pytest.raises(MoebenchError, match=r"trained\.model: cannot be read"):
        lm_tokenizer.load(tmp_path)
    (tmp_path / "pieces.json").write_text(json.dumps({"kind": "words", "ids": {}, "sha256": ""}))
    with pytest.raises(MoebenchError, match="kind 'words' should be one of trained, tokenizers, sentencepiece"):
        lm_tokenizer.load(tmp_path)


def test_training_says_what_is_wrong(tmp_path):
    with pytest.raises(MoebenchError, match="with a vocabulary of 100"):
        lm_tokenizer.train(texts(), 100, tmp_path)
    with pytest.raises(MoebenchError, match="with a vocabulary of 500"):
        lm_tokenizer.train([], 500, tmp_path)

    def failing():
        yield "text"
        raise MoebenchError("the source failed")

    with pytest.raises(MoebenchError, match="the source failed"):
        lm_tokenizer.train(failing(), 500, tmp_path)


def llama(path, byte_fallback=True):
    """A tokenizer in the manner of Llama's: a SentencePiece BPE with a space in front, and the same for the tokenizers library."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (path / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))


def in_json(model: sentencepiece.SentencePieceProcessor) -> tokenizers.Tokenizer:
    pieces = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    # a merge's rank is the rank of its result, as transformers converts SentencePiece's models
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=pieces.__getitem__)
        if len(piece) > 1 and not model.is_byte(pieces[piece]) and pieces[piece] > 2
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    ours = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=pieces, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    ours.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    ours.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    ours.add_special_tokens(["<unk>", "<s>", "</s>"])
    return ours


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizers"])
def checkpoint(request, tmp_path_factory):
    place, written = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("written")
    model = llama(place)
    if request.param == "tokenizers":
        file = in_json(model)
        file.enable_truncation(3)  # some published files have it on
        file.save(str(place / "tokenizer.json"))
    return model, lm_tokenizer.from_checkpoint(place, written), written, request.param


def test_a_checkpoints_pieces_are_the_published_ones(checkpoint):
    model, ours, written, kind = checkpoint
    assert (ours.kind, ours.size) == (kind, model.get_piece_size())
    assert (ours.bos, ours.eos, ours.pad) == (1, 2, 0)
    for text in [*(text.replace("  ", " ") for text in texts(1)[:50]), "é 😀 日本 12", "a\nb"]:
        assert ours.encode(text) == model.encode(text)
        assert ours.decode(ours.encode(text)) == text
    again = lm_tokenizer.load(written)
    assert (again.kind, again.sha256, again.encode("a b")) == (ours.kind, ours.sha256, ours.encode("a b"))


def test_a_special_piece_written_in_a_text_is_text(checkpoint):
    ours = checkpoint[1]
    ids = ours.encode("a <s> b</s>")
    assert not {ours.bos, ours.eos, ours.pad} & set(ids)
    assert ours.decode(ids) == "a <s> b</s>"


def test_a_folder_without_a_usable_tokenizer_says_why(tmp_path):
    with pytest.raises(MoebenchError, match=r"no tokenizer\.json and no tokenizer\.model there"):
        lm_tokenizer.from_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(MoebenchError, match=r"tokenizer\.model: cannot be read as a tokenizer"):
        lm_tokenizer.from_checkpoint(tmp_path, tmp_path / "out")
    file = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    file.add_special_tokens(["<|endoftext|>"])
    file.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(MoebenchError, match=r"its special pieces, <\|endoftext\|>, lack bos: <s> or .*; eos: .*; pad: <pad>"):
        lm_tokenizer.from_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MoebenchError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        lm_tokenizer.from_checkpoint(tmp_path, tmp_path / "out")
