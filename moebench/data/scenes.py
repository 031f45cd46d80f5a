"""Built-in scenes: real digit images in a grid, and captions, questions and statements about them that are exact.

N scenes, M squares in a block, S squares that are kept, G scenes in a square, C = 9 cells in reading order, D = 10 digits, K kinds of
digits that are counted, F facts, H = W = 24 pixels.

A scene has three to six of scikit-learn's 8 x 8 digit images (UCI's handwritten digits, BSD-3-Clause) in a 3 x 3 grid; the other cells are
black. Texts are lower-case words between single spaces, without punctuation: a word is a token, and `VOCABULARY` has all of them.

Neither side tells the answer alone. Questions come in *squares*, two scenes that differ in a swap and two questions of one type:

| | first question | second question |
|---|---|---|
| first scene | x | y |
| second scene | y | x |

so every question has each of its answers equally often, and so has every scene. A square of statements is two sentences on two pairs of
images: of each sentence one row is true and one false, and so of each pair. What one image of a pair says remains (a scene with three
twos never has fewer of them than the other) but not in the types ``equal`` and ``same``.

Splits share neither images of digits nor compositions. A scene's *composition* is which digits it has and how often, wherever they stand;
a hash of it says to which split it belongs.

The setting is ours; the published one is VQAv2, NLVR2 and COCO captions (`moebench.data.vision_language_files`). The same seed gives the
same bytes on any machine, and the first rows of a larger draw are those of a smaller one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from moebench.data.image_text import ImageText
from moebench.data.sampling import Draws, permutation
from moebench.errors import MoebenchError, nearest

GRID, TILE = 3, 8
"""Cells along a side of a scene, and pixels along a side of a cell."""
CELLS, SIDE = GRID * GRID, GRID * TILE
FEWEST, MOST = 3, 6
"""Digits in a scene."""
EXEMPLARS = {"train": 120, "validation": 18, "test": 36}
"""Images of each digit in a split; of the rarest, eight, there are 174."""
TENTHS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
"""Which tenths of all compositions a split has."""
BLOCK = 1 << 14
"""Squares that are drawn together, before those of other splits are dropped."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANY = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
"""Names of the cells."""
YES, TRUE = ("yes", "no"), ("true", "false")


def words(text: str) -> list[str]:
    """Return the tokens of a text."""
    return text.split()


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes and what they show.

    Attributes:
        digits: (N, C) int64, the digit in each cell, -1 where it is empty.
        images: (N, H, W, 1) uint8.
    """

    digits: np.ndarray
    images: np.ndarray


# ------------------------------------------------------------------------------------------------------------- captions

CAPTIONS = (
    "{top} above {middle} above {bottom}",
    "there is {top} above {middle} with {bottom} at the bottom",
    "{top} at the top {middle} in the middle and {bottom} below",
    "{top} then {middle} and at the bottom {bottom}",
    "{bottom} below {middle} below {top}",
)
"""References of a scene: each says which digits every row has, from left to right."""


def scenes(split: str, count: int, seed: int = 0) -> Scenes:
    """Draw ``count`` scenes of a split, each by itself.

    Raises:
        MoebenchError: no such split.
    """
    digits_N1C, _ = _kept(lambda block: (block.scene(np.zeros((BLOCK, 0), np.int64)),), "scenes", split, count, seed)
    return _pictured(digits_N1C[:, 0], "scenes", split, seed)


def captioned(split: str, count: int, seed: int = 0) -> ImageText:
    """The scenes of `scenes`, each with a sentence after each of `CAPTIONS`."""
    drawn = scenes(split, count, seed)
    rows = [{"id": f"{split}-{at}", "image": at, "captions": captions(each)} for at, each in enumerate(drawn.digits.tolist())]
    return ImageText("caption", drawn.images, rows)


def captions(digits_C: list[int]) -> list[str]:
    """Describe a scene."""
    rows = [[_a(digit) for digit in digits_C[at : at + GRID] if digit >= 0] for at in range(0, CELLS, GRID)]
    said = [" ".join([*row[:-2], " and ".join(row[-2:])]) if row else "nothing" for row in rows]
    return [frame.format(**dict(zip(ROWS, said, strict=True))) for frame in CAPTIONS]


def _a(digit: int) -> str:
    return f"{'an' if DIGITS[digit] == 'eight' else 'a'} {DIGITS[digit]}"


# ------------------------------------------------------------------------------------------------------------ the blocks


class _Block:
    """What `BLOCK` squares are made from: they speak of the first two ``digits``, the first places of ``order`` and both ``numbers``."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.digits_MD = draws.orders(BLOCK, len(DIGITS))
        self.order_MC = draws.orders(BLOCK, CELLS)
        self.numbers_M2 = draws.orders(BLOCK, 4)[:, :2]

    def scene(self, numbers_MK: np.ndarray, apart: bool = True, order_MC: np.ndarray | None = None) -> np.ndarray:
        """Scenes (M, C) with the k-th digit as often as ``numbers`` says, in the first cells of ``order`` or anywhere, and with others.

        With ``apart`` the two that are spoken of are not among the others.
        """
        used_M1 = numbers_MK.sum(axis=1, keepdims=True)
        fewest_M1 = np.maximum(used_M1, FEWEST)
        total_M1 = fewest_M1 + self.draws.below(MOST + 1 - fewest_M1, BLOCK, 1)
        slot_C = np.arange(CELLS)
        spoken_MC = (slot_C[:, None] >= numbers_MK.cumsum(axis=1)[:, None]).sum(axis=2)
        others_MC = self.draws.below(2, BLOCK, CELLS) + 2 if apart else self.draws.below(4, BLOCK, CELLS)
        which_MC = np.where(slot_C < used_M1, spoken_MC, others_MC)
        filled_MC = np.where(slot_C < total_M1, np.take_along_axis(self.digits_MD, which_MC, axis=1), -1)
        scene_MC = np.empty_like(filled_MC)
        np.put_along_axis(scene_MC, self.draws.orders(BLOCK, CELLS) if order_MC is None else order_MC, filled_MC, axis=1)
        return scene_MC

    def digits_swapped(self, scene_MC: np.ndarray) -> np.ndarray:
        """The scenes with each of the two digits in place of the other."""
        one_M1, other_M1 = self.digits_MD[:, :1], self.digits_MD[:, 1:2]
        return np.where(scene_MC == one_M1, other_M1, np.where(scene_MC == other_M1, one_M1, scene_MC))

    def places_swapped(self, scene_MC: np.ndarray, first: int = 0) -> np.ndarray:
        """The scenes with what stands at two neighbouring places of ``order`` swapped."""
        swapped_MC, places_M2 = scene_MC.copy(), self.order_MC[:, first : first + 2]
        np.put_along_axis(swapped_MC, places_M2, np.take_along_axis(scene_MC, places_M2[:, ::-1], axis=1), axis=1)
        return swapped_MC

    def another_order(self) -> np.ndarray:
        """Orders (M, C) whose first two places are those of ``order``."""
        rest_MC = np.take_along_axis(self.order_MC[:, 2:], self.draws.orders(BLOCK, CELLS - 2), axis=1)
        return np.hstack([self.order_MC[:, :2], rest_MC])


_ONE_EACH = np.ones((BLOCK, 2), np.int64)

Square = tuple[np.ndarray, ...]
"""G times scenes (M, C)."""


def _count(block: _Block) -> Square:
    scene_MC = block.scene(block.numbers_M2)
    return scene_MC, block.digits_swapped(scene_MC)


def _exists(block: _Block) -> Square:
    scene_MC = block.scene(1 + block.draws.below(3, BLOCK, 1))
    return scene_MC, block.digits_swapped(scene_MC)


def _what(block: _Block) -> Square:
    scene_MC = block.scene(_ONE_EACH, apart=False, order_MC=block.order_MC)
    return scene_MC, block.places_swapped(scene_MC)


def _where(block: _Block) -> Square:
    scene_MC = block.scene(_ONE_EACH, order_MC=block.order_MC)
    return scene_MC, block.places_swapped(scene_MC)


def _same(block: _Block) -> Square:
    scene_MC = block.scene(_ONE_EACH * (2, 1), apart=False, order_MC=block.order_MC)
    return scene_MC, block.places_swapped(scene_MC, 1)


def _more_in_one(block: _Block) -> Square:
    left_MC, right_MC = (block.scene(block.numbers_M2[:, [side]]) for side in (0, 1))
    return left_MC, right_MC, right_MC, left_MC


def _equal_in_both(block: _Block) -> Square:
    same_M1, unlike_MK = block.draws.below(3, BLOCK, 1), block.draws.orders(BLOCK, 3)
    both = [block.scene(np.hstack([same_M1, unlike_MK[:, [side]]])) for side in (0, 1)]
    return *both, *(block.digits_swapped(scene_MC) for scene_MC in both)


def _same_in_both(block: _Block) -> Square:
    left_MC = block.scene(_ONE_EACH, apart=False, order_MC=block.order_MC)
    right_MC = block.scene(_ONE_EACH, apart=False, order_MC=block.another_order())
    np.put_along_axis(right_MC, block.order_MC[:, 1:2], block.digits_MD[:, 2:3], axis=1)
    return left_MC, right_MC, block.places_swapped(left_MC), block.places_swapped(right_MC)


def _larger_in_one(block: _Block) -> Square:
    left_MC = block.scene(_ONE_EACH, apart=False, order_MC=block.order_MC)
    right_MC = block.places_swapped(block.scene(_ONE_EACH, apart=False, order_MC=block.another_order()))
    return left_MC, right_MC, right_MC, left_MC


# ----------------------------------------------------------------------------------------------- questions and statements


class Facts(NamedTuple):
    """What a square may speak of: two digits, three places, two numbers."""

    digit: int
    other: int
    place: int
    second: int
    third: int
    number: int
    other_number: int


class Form(NamedTuple):
    """A type of question or statement.

    Attributes:
        text: with fields, in any order.
        square: draws the scenes.
        fields: those of the first text, and of the second.
        answers: to the two texts on the first scene or pair; on the second they change places.
    """

    text: str
    square: Callable[[_Block], Square]
    fields: Callable[[Facts], Sequence[dict[str, str]]]
    answers: Callable[[Facts], tuple[str, str]]


def _digits(it: Facts) -> list[dict[str, str]]:
    return [{"digit": DIGITS[digit], "many": MANY[digit], "a_digit": _a(digit)} for digit in (it.digit, it.other)]


def _places(it: Facts) -> list[dict[str, str]]:
    """Each of two places, and the other of them."""
    return [{"place": PLACES[one], "second": PLACES[two]} for one, two in ((it.place, it.second), (it.second, it.place))]


def _from_one_place(it: Facts) -> list[dict[str, str]]:
    return [{"place": PLACES[it.place], "second": PLACES[to]} for to in (it.second, it.third)]


def _sides(it: Facts) -> list[dict[str, str]]:
    sides = ("left", "right")
    return [{"many": MANY[it.digit], "place": PLACES[it.place], "side": one, "opposite": two} for one, two in (sides, sides[::-1])]


QUESTIONS = {
    "count": Form("how many {many} are there", _count, _digits, lambda it: (DIGITS[it.number], DIGITS[it.other_number])),
    "exists": Form("is there {a_digit}", _exists, _digits, lambda it: YES),
    "what": Form("what is at the {place}", _what, _places, lambda it: (DIGITS[it.digit], DIGITS[it.other])),
    "where": Form("where is the {digit}", _where, _digits, lambda it: (PLACES[it.place], PLACES[it.second])),
    "larger": Form(
        "is the digit at the {place} larger than the one at the {second}",
        _what,
        _places,
        lambda it: YES if it.digit > it.other else YES[::-1],
    ),
    "same": Form("are the digits at the {place} and the {second} the same", _same, _from_one_place, lambda it: YES),
}
STATEMENTS = {
    "more": Form(
        "there are more {many} in the {side} image than in the {opposite} image",
        _more_in_one,
        _sides,
        lambda it: TRUE if it.number > it.other_number else TRUE[::-1],
    ),
    "equal": Form("both images have the same number of {many}", _equal_in_both, _digits, lambda it: TRUE),
    "same": Form("the digit at the {place} is the same in both images", _same_in_both, _places, lambda it: TRUE),
    "larger": Form(
        "the digit at the {place} is larger in the {side} image than in the {opposite} image",
        _larger_in_one,
        _sides,
        lambda it: TRUE if it.digit > it.other else TRUE[::-1],
    ),
}
_TEXTS = (*CAPTIONS, *(form.text for form in (*QUESTIONS.values(), *STATEMENTS.values())))
VOCABULARY = tuple(
    sorted({*words(re.sub(r"{\w+}", "", " ".join(_TEXTS))), *words(" ".join(PLACES)), *DIGITS, *MANY, *YES, *TRUE, "a", "an", "nothing"})
)
"""Every word of every text, answer and label."""


def questions(split: str, count: int, seed: int = 0) -> ImageText:
    """Draw ``count`` questions of the types of `QUESTIONS`, which take turns; four make a square (see the top of the file).

    Raises:
        MoebenchError: no such split.
    """
    drawn, asked = _squares(QUESTIONS, "questions", split, count, seed)
    rows = [
        {"id": f"{split}-{square}-{scene}-{which}", "image": 2 * square + scene, "question": text, "answers": [answer], "type": kind}
        for square, (kind, texts, answers) in enumerate(asked)
        for scene in (0, 1)
        for which, (text, answer) in enumerate(zip(texts, answers[:: 1 - 2 * scene], strict=True))
    ]
    return ImageText("question", drawn.images, rows[:count])


def statements(split: str, count: int, seed: int = 0) -> ImageText:
    """Draw ``count`` statements of the types of `STATEMENTS`, which take turns; four make a square (see the top of the file).

    Both rows of one sentence are a group.

    Raises:
        MoebenchError: no such split.
    """
    drawn, said = _squares(STATEMENTS, "statements", split, count, seed)
    rows = [
        {
            "id": f"{split}-{square}-{pair}-{which}",
            "left": 4 * square + 2 * pair,
            "right": 4 * square + 2 * pair + 1,
            "sentence": text,
            "label": label,
            "group": f"{split}-{square}-{which}",
            "type": kind,
        }
        for square, (kind, texts, labels) in enumerate(said)
        for pair in (0, 1)
        for which, (text, label) in enumerate(zip(texts, labels[:: 1 - 2 * pair], strict=True))
    ]
    return ImageText("statement", drawn.images, rows[:count])


# ------------------------------------------------------------------------------------------------------------- the draws


def _squares(
    forms: dict[str, Form], task: str, split: str, count: int, seed: int
) -> tuple[Scenes, list[tuple[str, tuple[str, ...], tuple[str, str]]]]:
    """Scenes of the squares that ``count`` rows need, square by square, and each one's type, texts and answers."""
    squares = -(-count // 4)
    each = -(-squares // len(forms))
    kept = [_kept(form.square, f"{task} {kind}", split, each, seed) for kind, form in forms.items()]
    digits_SGC, facts_SF = (np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])[:squares] for parts in zip(*kept, strict=True))
    asked = []
    for (kind, form), facts in zip(itertools.cycle(forms.items()), facts_SF.tolist(), strict=False):
        it = Facts(*facts)
        asked.append((kind, tuple(form.text.format(**fields) for fields in form.fields(it)), form.answers(it)))
    return _pictured(digits_SGC.reshape(-1, CELLS), task, split, seed), asked


def _kept(square: Callable[[_Block], Square], name: str, split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` squares all of whose scenes are compositions of the split: scenes (S, G, C) and facts (S, F)."""
    if split not in TENTHS:
        raise MoebenchError(f"split {split!r}{nearest(split, TENTHS)}; should be one of {', '.join(TENTHS)}")
    draws = Draws(seed, f"{name} {split}")
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    while not parts or sum(len(scenes_MGC) for scenes_MGC, _ in parts) < count:
        block = _Block(draws)
        digits_MGC = np.stack(square(block), axis=1)
        mine_M = np.isin(_tenth(digits_MGC, seed), TENTHS[split]).all(axis=1)
        facts_MF = np.hstack([block.digits_MD[:, :2], block.order_MC[:, :3], block.numbers_M2])
        parts.append((digits_MGC[mine_M], facts_MF[mine_M]))
    digits_SGC, facts_SF = (np.concatenate(each)[:count] for each in zip(*parts, strict=True))
    return digits_SGC, facts_SF


def _tenth(digits_C: np.ndarray, seed: int) -> np.ndarray:
    """Tenth of all compositions, 0 to 9, to which scenes (..., C) belong: SplitMix64's mix of their digits' counts and the seed."""
    # Counts as decimal places: none is above MOST.
    mixed = np.where(digits_C < 0, 0, 10 ** np.maximum(digits_C, 0)).sum(axis=-1).astype(np.uint64)
    mixed += np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return (mixed ^ mixed >> np.uint64(31)) % np.uint64(10)


def _pictured(digits_NC: np.ndarray, name: str, split: str, seed: int) -> Scenes:
    """Scenes with images, each digit shown by any of the split's own images of it."""
    source = load_digits()
    grey = (source.images.astype(np.int64) * 255 + 8) // 16
    tiles = np.concatenate([grey, np.zeros((1, TILE, TILE), np.int64)]).astype(np.uint8)  # the last, which -1 is, is black
    at = {"train": 0, "validation": EXEMPLARS["train"], "test": EXEMPLARS["train"] + EXEMPLARS["validation"]}[split]
    own = []
    for digit in range(len(DIGITS)):
        mine = np.flatnonzero(source.target == digit)
        own.append(mine[permutation(seed, f"digit {digit}", len(mine))[at : at + EXEMPLARS[split]]])
    picks_NC = Draws(seed, f"{name} {split} images").below(EXEMPLARS[split], *digits_NC.shape)
    tile_NC = np.where(digits_NC < 0, -1, np.array(own)[digits_NC, picks_NC])
    images = tiles[tile_NC].reshape(-1, GRID, GRID, TILE, TILE).swapaxes(2, 3).reshape(-1, SIDE, SIDE, 1)
    return Scenes(digits_NC, images)
