"""Accuracy of answers to questions about images, as VQAv2 scores them, and of statements about pairs of images, as NLVR2 does.

VQA: Goyal et al., arXiv 1612.00837; the rules are those of the public script (GT-Vision-Lab/VQA, commit c4e6a0e), slips included.
NLVR2: Suhr et al., arXiv 1811.00491; lil-lab/nlvr, `nlvr2/eval/metrics.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ANSWERS = 10
"""Answers of different people to a question."""
AGREEMENT = 3
"""So many people who gave an answer make it wholly right."""
ARTICLES = ("a", "an", "the")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{name: str(number) for number, name in enumerate(_NAMES)}}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""Apostrophe, colon and full stop are not among them."""

_ONE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
    it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
    somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
    they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
    who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
_SEVERAL = """couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"""
CONTRACTIONS = {
    **{form[:at] + form[at + 1 :]: form for form in (*_ONE.split(), *_SEVERAL.split()) for at, mark in enumerate(form) if mark == "'"},
    "somebody'd": "somebodyd",  # the wrong way round in the script
}
"""Form with one apostrophe too few → the right one. Those with a capital are left out: words are lower-case before they are looked up."""

_BETWEEN_DIGITS = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")


def without_punctuation(text: str) -> str:
    """Return the text without `MARKS` and without full stops, but for those before a digit.

    A mark goes where it stands beside a space anywhere in the text, and every mark where a comma stands between digits; otherwise a
    space takes its place. (The script takes at most 32 full stops out.)
    """
    drop_all = _BETWEEN_DIGITS.search(text) is not None
    kept = text
    for mark in MARKS:
        kept = kept.replace(mark, "" if drop_all or f"{mark} " in text or f" {mark}" in text else " ")
    return _STOP.sub("", kept)


def normalise(text: str) -> str:
    """Return a predicted answer as it is compared: punctuation, lower case, number words, articles, contractions."""
    known = [NUMBERS.get(word, word) for word in without_punctuation(" ".join(text.split())).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in known if word not in ARTICLES)


def vqa_accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """Score of each question, in 0..1: the mean over the ten sets of nine people of min(people who gave the predicted answer / 3, 1).

    The prediction is normalised. Of the people's answers only the punctuation is, and only where not all ten are equal: the published ones
    are lower-case with digits and without articles already, and an answer "two" can never be met.

    Args:
        predictions: one answer a question.
        answers: ten of each question.

    Raises:
        ValueError: different lengths, or not ten answers.
    """
    scores = []
    for at, (said, people) in enumerate(zip(map(normalise, predictions), answers, strict=True)):
        if len(people) != ANSWERS:
            raise ValueError(f"question {at} has {len(people)} answers; should be {ANSWERS}")
        given = people if len(set(people)) == 1 else [without_punctuation(answer) for answer in people]
        right = sum(answer == said for answer in given)
        scores.append((right * min((right - 1) / AGREEMENT, 1) + (ANSWERS - right) * min(right / AGREEMENT, 1)) / ANSWERS)
    return scores


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Mean of `vqa_accuracies`, in 0..1.

    Raises:
        ValueError: as there, or no question.
    """
    scores = vqa_accuracies(predictions, answers)
    if not scores:
        raise ValueError("VQA accuracy needs at least one question")
    return sum(scores) / len(scores)


def consistency(gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str]) -> float:
    """Share of sentences with the right label on each of their pairs of images, in 0..1: NLVR2's second number, accuracy being the first.

    Args:
        gold: labels.
        predicted: labels.
        groups: which sentence each is about; of NLVR2 the identifier without its third part, the pair.

    Raises:
        ValueError: no statement, or different lengths.
    """
    right: dict[str, bool] = {}
    for label, said, group in zip(gold, predicted, groups, strict=True):
        right[group] = right.get(group, True) and label == said
    if not right:
        raise ValueError("consistency needs at least one statement")
    return sum(right.values()) / len(right)
