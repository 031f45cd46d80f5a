"""Writes tiny vocabularies as checkpoints have them, in files of the ``tokenizers`` library."""

import io
import random

import sentencepiece
import tokenizers
from tiny_texts import FORMS, SCRIPTS, in_form
from tokenizers import models, normalizers, pre_tokenizers, processors

XLMR = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*"abcdehinoprst.!éÉ第一<>[]", *(f"##{letter}" for letter in "abcdehinoprst"), "the", "cat", "##at", "##er", "e", "CLS", "mask"]
LETTERS = sorted({letter for text in SCRIPTS for form in FORMS for letter in in_form(text, form) if letter.isprintable()} - {" "})
WORDS += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]


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
        sentence_iterator=iter([*sentences(), *SCRIPTS * 20]),
        model_writer=model,
        vocab_size=400,
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


def wordpiece(folder, lowercase: bool = False, normaliser=None):
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([BERT[0], "[unused1]", *BERT[1:], *WORDS]))}
    built = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.normalizer = normaliser or normalizers.BertNormalizer(lowercase=lowercase)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.add_special_tokens(BERT)
    return write(folder, built)
