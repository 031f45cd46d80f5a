"""SentencePiece's normalisation of a text, and the way back: ranges of the normalised text as ranges of the original one.

SentencePiece replaces the longest sequence that its rules know, from left to right, then makes runs of spaces one (Kudo and Richardson
2018, arXiv 1808.06226, section 3.2; ``doc/normalization.md`` of the library). Its rules ``nmt_nfkc``, those of XLM-R, compose (e and U+0301
become é, jamo a syllable), flatten full-width forms and ligatures, make white space a space and drop control characters. For every
character of the result the library says where the sequence began that it comes from.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import sentencepiece

MARK = "\u2581"
"""Stands for a space at the beginning of a piece; every text gets one at its start."""
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
"""For `str.translate`: a lone surrogate cannot be written as UTF-8, and counts as the replacement character."""


def field(key: int, value: int | float | bytes) -> bytes:
    """A field of a protocol buffer: a number, or the bytes of a string or message."""
    if isinstance(value, bytes):
        return _varint(key << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(key << 3 | 5) + struct.pack("<f", value)
    return _varint(key << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low = value & 127
    return bytes([low | 128]) + _varint(value >> 7) if value > 127 else bytes([low])


def nmt_nfkc(changes: dict[int, str]) -> bytes:
    """Compile the rules ``nmt_nfkc`` of the installed library with changes to single code points, as SentencePiece's ``NormalizerSpec``."""
    rules = dict(sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").decompile())
    rules |= {chr(code): text for code, text in changes.items()}
    sentencepiece.set_min_log_level(2)  # it would say how many rules there are
    return sentencepiece.SentencePieceNormalizer(norm_map=list(rules.items())).serialized_normalizer_spec()


def original_ranges(text: str, starts: Sequence[int], pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn rising ranges of the normalised text into ranges of the original ``text``.

    A range ends behind the last sequence that became a part of it. What follows and is neither white space nor another piece's belongs to
    it too: a joiner, an invisible mark, an accent that the vocabulary drops; answers of benchmarks end with such characters.

    Args:
        text: the original text.
        starts: per character of the normalised text, and for its end, the place in ``text`` of the sequence it comes from.
        pieces: ranges of the normalised text. An empty one stays so, at the place of the character that follows, unless an earlier piece
            ends later.
    """
    ranges: list[tuple[int, int]] = []
    begin = stop = 0
    for first, end in pieces:
        begin = max(begin, starts[first])
        if first < end:
            last = starts[end - 1]
            behind = bisect_right(starts, last, lo=end)
            after = starts[behind] if behind < len(starts) else last + 1
            while after > last + 1 and _space(text[after - 1]):  # white space that the rules drop
                after -= 1
            stop = max(stop, after)
        stop = max(stop, begin)
        ranges.append((begin, stop))
    limit = len(text)
    for place, (begin, stop) in reversed(list(enumerate(ranges))):
        while begin < stop < limit and not _space(text[stop]):
            stop += 1
        ranges[place] = begin, stop
        limit = begin
    return ranges


def _space(character: str) -> bool:
    return character.isspace() or character == MARK
