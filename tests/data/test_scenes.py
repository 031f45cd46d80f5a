"""Built-in scenes: what the pixels show, read back from them, is what every text says; splits share nothing; neither side tells alone."""

import hashlib
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.datasets import load_digits

from moebench.data import scenes as module
from moebench.data.image_text import ImageText
from moebench.data.scenes import PLACES, QUESTIONS, STATEMENTS, VOCABULARY, captioned, questions, scenes, statements, words
from moebench.errors import MoebenchError

SIZES = {"train": 2400, "validation": 600, "test": 600}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MANY = [*(f"{name}s" for name in NAMES[:6]), "sixes", "sevens", "eights", "nines"]


@pytest.fixture(scope="module")
def drawn():
    return {task: {split: task(split, size) for split, size in SIZES.items()} for task in (captioned, questions, statements)}


@pytest.fixture(scope="module")
def tiles():
    source = load_digits()
    known = {np.round(image * 255 / 16).astype(np.uint8).tobytes(): at for at, image in enumerate(source.images)}
    assert len(known) == len(source.images)
    return known, source.target


def looked_at(images, tiles):
    """Which source image stands in each cell, and the digit it shows, -1 for black; found in the pixels."""
    known, target = tiles
    sources = [
        [
            known[cell.tobytes()] if cell.any() else -1
            for row in np.split(image[:, :, 0], 3)
            for cell in map(np.ascontiguousarray, np.split(row, 3, axis=1))
        ]
        for image in images
    ]
    return np.array(sources), np.where(np.array(sources) < 0, -1, target[sources])


def test_scenes_say_what_they_show(tiles):
    some = scenes("train", 300, seed=3)
    sources, digits = looked_at(some.images, tiles)
    np.testing.assert_array_equal(digits, some.digits)
    filled = (digits >= 0).sum(1)
    assert sorted(set(filled)) == [3, 4, 5, 6]
    assert len(np.unique(sources)) > 600  # of 1,200 and black: a digit is shown by many images of it
    assert set(digits.ravel()) == set(range(-1, 10))


def read_row(text):
    """Digits of a part of a caption."""
    return [] if text == "nothing" else [NAMES.index(word) for word in re.findall(r"\ban? (\w+)", text)]


def test_captions_say_what_is_there(drawn, tiles):
    row = r"(an? \w+|an? \w+ and an? \w+|an? \w+ an? \w+ and an? \w+|nothing)"
    forms = [
        rf"{row} above {row} above {row}",
        rf"there is {row} above {row} with {row} at the bottom",
        rf"{row} at the top {row} in the middle and {row} below",
        rf"{row} then {row} and at the bottom {row}",
        rf"{row} below {row} below {row}",
    ]
    data = drawn[captioned]["test"]
    _, digits = looked_at(data.images, tiles)
    for each in data.rows[:200]:
        rows = [[digit for digit in digits[each["image"], at : at + 3] if digit >= 0] for at in (0, 3, 6)]
        for number, (form, text) in enumerate(zip(forms, each["captions"], strict=True)):
            found = [read_row(part) for part in re.fullmatch(form, text).groups()]
            assert found == (rows[::-1] if number == 4 else rows), text
    assert "an eight" in json.dumps(data.rows)
    assert "a eight" not in json.dumps(data.rows)


PLACE = r"((?:top|middle|bottom) (?:left|centre|right))"


def answer(question, scene):
    """The answer that a person would give, found from the words of the question."""
    if found := re.fullmatch(r"how many (\w+) are there", question):
        return NAMES[list(scene).count(MANY.index(found[1]))]
    if found := re.fullmatch(r"is there an? (\w+)", question):
        return "yes" if NAMES.index(found[1]) in scene else "no"
    if found := re.fullmatch(rf"what is at the {PLACE}", question):
        return NAMES[scene[PLACES.index(found[1])]]
    if found := re.fullmatch(r"where is the (\w+)", question):
        (place,) = np.flatnonzero(scene == NAMES.index(found[1]))
        return PLACES[place]
    if found := re.fullmatch(rf"is the digit at the {PLACE} larger than the one at the {PLACE}", question):
        one, other = (scene[PLACES.index(place)] for place in found.groups())
        assert min(one, other) >= 0
        return "yes" if one > other else "no"
    found = re.fullmatch(rf"are the digits at the {PLACE} and the {PLACE} the same", question)
    one, other = (scene[PLACES.index(place)] for place in found.groups())
    assert min(one, other) >= 0
    return "yes" if one == other else "no"


def label(sentence, left, right):
    images = {"left": left, "right": right}
    if found := re.fullmatch(r"there are more (\w+) in the (\w+) image than in the (\w+) image", sentence):
        one, other = (list(images[side]).count(MANY.index(found[1])) for side in found.groups()[1:])
        return one > other
    if found := re.fullmatch(r"both images have the same number of (\w+)", sentence):
        return list(left).count(MANY.index(found[1])) == list(right).count(MANY.index(found[1]))
    found = re.fullmatch(
        rf"the digit at the {PLACE} is (?:the same in both images|larger in the (\w+) image than in the (\w+) image)", sentence
    )
    place = PLACES.index(found[1])
    assert min(left[place], right[place]) >= 0
    return images[found[2]][place] > images[found[3]][place] if found[2] else left[place] == right[place]


@pytest.mark.parametrize("split", SIZES)
def test_answers_are_right(drawn, tiles, split):
    data = drawn[questions][split]
    _, digits = looked_at(data.images, tiles)
    for row in data.rows:
        assert row["answers"] == [answer(row["question"], digits[row["image"]])], row


@pytest.mark.parametrize("split", SIZES)
def test_labels_are_right(drawn, tiles, split):
    data = drawn[statements][split]
    _, digits = looked_at(data.images, tiles)
    for row in data.rows:
        assert (row["label"] == "true") == label(row["sentence"], digits[row["left"]], digits[row["right"]]), row


@pytest.mark.parametrize("task", [captioned, questions, statements])
def test_splits_share_no_composition_and_no_digit_image(drawn, tiles, task):
    compositions, exemplars = defaultdict(set), defaultdict(set)
    for split, data in drawn[task].items():
        sources, digits = looked_at(data.images, tiles)
        compositions[split] = {tuple(sorted(scene)) for scene in digits.tolist()}
        exemplars[split] = set(sources.ravel()) - {-1}
    for seen in (compositions, exemplars):
        assert len(set.union(*seen.values())) == sum(map(len, seen.values())) > 0


def test_tasks_and_seeds_agree_on_what_a_split_is(drawn, tiles):
    """What is fine-tuned on or tested never was in another split of another task."""
    parts = {split: np.concatenate([drawn[task][split].images for task in drawn]) for split in SIZES}
    found = {split: looked_at(images, tiles) for split, images in parts.items()}
    for of in (lambda each: set(each[0].ravel()) - {-1}, lambda each: {tuple(sorted(scene)) for scene in each[1].tolist()}):
        seen = [of(each) for each in found.values()]
        assert len(set.union(*seen)) == sum(map(len, seen))
    other, _ = looked_at(scenes("test", 200, seed=1).images, tiles)
    assert set(other.ravel()) - {-1} - set(found["test"][0].ravel())  # another seed draws other splits


def test_neither_question_nor_scene_tells_the_answer(drawn):
    for data in drawn[questions].values():
        for key in ("question", "image"):
            for square in range(0, len(data), 4):
                answers = defaultdict(set)
                for row in data.rows[square : square + 4]:
                    answers[row[key]].add(row["answers"][0])
                assert len(answers) == 2
                first, second = answers.values()
                assert first == second
                assert len(first) == 2


def test_neither_sentence_nor_pair_tells_the_label(drawn):
    for data in drawn[statements].values():
        for key in ("sentence", "left", "right", "group"):
            labels = defaultdict(list)
            for row in data.rows:
                labels[row[key]].append(row["label"])
            assert all(Counter(each)["true"] * 2 == len(each) for each in labels.values())


@pytest.mark.parametrize("kind", ["equal", "same"])
def test_one_image_of_a_pair_tells_nothing_of_equality(kind, tiles):
    """By what a sentence asks of the left image: as often true as false, within four deviations."""
    data = statements("train", 16000)
    _, digits = looked_at(data.images[:2000], tiles)
    true, all_ = Counter(), Counter()
    for row in data.rows:
        if row["type"] == kind and row["left"] < 2000:
            left, last = digits[row["left"]], row["sentence"].split()[-1]
            seen = list(left).count(MANY.index(last)) if kind == "equal" else left[PLACES.index(re.search(PLACE, row["sentence"])[1])]
            true[seen] += row["label"] == "true"
            all_[seen] += 1
    assert len(all_) == (3 if kind == "equal" else 10)
    for seen, count in all_.items():
        assert abs(true[seen] - count / 2) < 2 * np.sqrt(count)


def test_types_take_turns(drawn):
    for task, forms in ((questions, QUESTIONS), (statements, STATEMENTS)):
        rows = drawn[task]["train"].rows
        assert [row["type"] for row in rows[::4]] == [list(forms)[at % len(forms)] for at in range(len(rows) // 4)]
    counts = Counter(row["answers"][0] for row in drawn[questions]["train"].rows if row["type"] == "count")
    assert set(counts) == {"zero", "one", "two", "three"}
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_the_vocabulary_is_all_words_and_no_other(drawn):
    said = set()
    for sets in drawn.values():
        for row in sets["train"].rows:
            for key in ("captions", "answers", "question", "sentence", "label"):
                value = row.get(key, [])
                said |= set(words(value if isinstance(value, str) else " ".join(value)))
    assert tuple(sorted(said)) == VOCABULARY


@pytest.mark.parametrize("task", [captioned, questions, statements])
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(drawn, task):
    few, many = task("test", 50), drawn[task]["test"]
    assert len(few) == 50
    assert few.rows == many.rows[:50]
    np.testing.assert_array_equal(few.images, many.images[: len(few.images)])
    assert task("test", 50, seed=1).rows != few.rows


def test_bytes(drawn):
    # Must be changed where an output is meant to change.
    digest = hashlib.sha256()
    for sets in drawn.values():
        for data in sets.values():
            digest.update(json.dumps(data.rows, sort_keys=True).encode() + data.images.tobytes())
    assert digest.hexdigest()[:12] == "d682b63a48a8"


def test_refuses_a_split_that_is_not_there():
    for task in (scenes, captioned, questions, statements):
        with pytest.raises(MoebenchError, match=r"split 'tset' \(did you mean 'test'\?\); should be one of train, validation, test"):
            task("tset", 3)
    assert len(questions("test", 0)) == len(statements("test", 0)) == len(captioned("test", 0)) == 0


def test_every_exemplar_is_there():
    assert sum(module.EXEMPLARS.values()) <= np.bincount(load_digits().target).min()


def row(**other):
    return {"id": "a", "image": 0, "question": "how many", "answers": ["2"], "type": "", **other}


def test_rows_are_checked():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert len(ImageText("question", images, [row(), row(image=1, answers=[])])) == 2
    for wrong, message in (
        ({"image": 2}, "row 'a': key 'image' has the value 2; should be an image, 0 to 1"),
        ({"image": True}, "key 'image' has the value True"),
        ({"answers": [2]}, r"key 'answers' has the value \[2\]; should be texts"),
        ({"question": None}, "key 'question' has the value None; should be a text"),
        ({"label": "true"}, "keys are answers, id, image, label, question, type; should be"),
    ):
        with pytest.raises(MoebenchError, match=message):
            ImageText("question", images, [row(**wrong)])
    statement = {"id": "b", "left": 0, "right": 1, "sentence": "s", "label": "True", "group": "", "type": ""}
    with pytest.raises(MoebenchError, match="row 'b': key 'label' has the value 'True'; should be one of true, false, or empty"):
        ImageText("statement", images, [statement])
    with pytest.raises(MoebenchError, match=r"images are float64 of shape \(2, 4\); should be uint8"):
        ImageText("question", np.zeros((2, 4)), [])
