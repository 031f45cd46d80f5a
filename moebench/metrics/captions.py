"""BLEU-4 and CIDEr-D of image captions, as the COCO caption evaluation has them.

`pycocoevalcap` 1.2, the evaluation's own code, is no dependency: its last release is of 2020, its wheel is 104 MB of Java archives, and its
tokenizer, METEOR and SPICE start Java. BLEU is sacrebleu's, CIDEr-D is ours; both are held to stored outputs of pycocoevalcap.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ABSENT = {
    "meteor": "METEOR is a Java program; run pycocoevalcap on a machine with Java",
    "spice": "SPICE is a Java program with Stanford's parser; run pycocoevalcap on a machine with Java",
}
"""Metrics of the COCO evaluation that are not computed here, and why."""
LONGEST = 4
"""Words of the longest n-gram."""
SIGMA = 6.0
"""Deviation of CIDEr-D's penalty of length."""
SCALE = 10.0
"""CIDEr-D of a caption that is its only reference."""

_TOKEN = re.compile(r"\w+(?=n't\b)|n't\b|'\w+|\w+(?:[-.,:/]\w+)*")


def tokens(caption: str) -> list[str]:
    """Lower-case words without punctuation, clitics apart: ``it's`` is ``it 's``, ``don't`` is ``do n't``, ``t-shirt`` is one word.

    It stands for Stanford's PTBTokenizer, which is Java; it is not the same on rarer forms (abbreviations, quotes, brackets, ``cannot``).
    """
    return _TOKEN.findall(caption.lower())


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """``bleu4`` in 0..1 and ``cider`` in 0..10, both better the higher; ``meteor`` and ``spice`` are None, see `ABSENT`.

    The literature prints both times 100.

    Args:
        predictions: a caption for each image.
        references: one or more captions of each image.

    Raises:
        ValueError: no image, different lengths, or an image without reference.
    """
    said, there = _tokenized(predictions, references)
    return {"bleu4": _bleu(said, there), "cider": math.fsum(_cider(said, there)) / len(said), **dict.fromkeys(ABSENT)}


def cider_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each image, in 0..10 (Vedantam et al., arXiv 1411.5726, with the changes of the COCO evaluation).

    The weight of an n-gram is its count times ln(images / images with it in a reference), so the scores depend on which images there are,
    and with one image all are 0. A score is the mean over references and over n = 1 to 4 of the cosine, counts clipped to the reference's,
    times exp(-d^2 / (2 * 6^2)), d being the difference of the numbers of *bigrams*, as the code has it. Arguments as `caption_scores`.
    """
    return _cider(*_tokenized(predictions, references))


def _tokenized(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} captions of {len(references)} images; should be one of each, of one image at least")
    if not all(references):
        raise ValueError(f"image {[bool(those) for those in references].index(False)} has no reference")
    return [tokens(caption) for caption in predictions], [[tokens(caption) for caption in those] for those in references]


def _bleu(said: list[list[str]], there: list[list[list[str]]]) -> float:
    """Corpus BLEU-4 without smoothing, the reference length being the one closest to the caption's.

    Where some n-gram of the corpus is never right it is 0; the COCO evaluation has 1e-15 right ones then.
    """
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, there))
    streams = [[" ".join(those[at]) if at < len(those) else None for those in there] for at in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=LONGEST, force=True)
    return metric.corpus_score([" ".join(caption) for caption in said], streams).score / 100  # type: ignore[arg-type]  # None: none there


Vectors = list[dict[tuple[str, ...], float]]


def _cider(said: list[list[str]], there: list[list[list[str]]]) -> list[float]:
    seen = Counter(gram for those in there for gram in set().union(*(_grams(caption) for caption in those)))
    images = math.log(len(there))

    def vectors(caption: list[str]) -> tuple[Vectors, list[float]]:
        """Weighted counts for n = 1 to 4, and their norms."""
        weighted: Vectors = [{} for _ in range(LONGEST)]
        for gram, count in _grams(caption).items():
            weighted[len(gram) - 1][gram] = count * (images - math.log(max(1, seen[gram])))
        return weighted, [math.sqrt(sum(value**2 for value in each.values())) for each in weighted]

    def alike(one: tuple[Vectors, list[float]], other: tuple[Vectors, list[float]]) -> float:
        total = 0.0
        for mine, yours, norm, other_norm in zip(one[0], other[0], one[1], other[1], strict=True):
            shared = sum(min(value, yours[gram]) * yours[gram] for gram, value in mine.items() if gram in yours)
            total += shared / (norm * other_norm) if norm * other_norm else 0.0
        return total / LONGEST

    scores = []
    for caption, those in zip(said, there, strict=True):
        mine = vectors(caption)
        total = 0.0
        for reference in those:
            apart = max(len(caption) - 1, 0) - max(len(reference) - 1, 0)
            total += alike(mine, vectors(reference)) * math.exp(-(apart**2) / (2 * SIGMA**2))
        scores.append(SCALE * total / len(those))
    return scores


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))
