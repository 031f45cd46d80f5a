"""Where images and texts come from: scenes that are made on the spot, or VQAv2, NLVR2 and COCO captions in their original files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moebench.data.image_files import Pictures
from moebench.data.image_text import ImageText
from moebench.data.images import Images
from moebench.data.sampling import permutation
from moebench.errors import MoebenchError
from moebench.protocols.vision_language.config import TASKS, Data, Originals

SPLITS = ("train", "validation", "test")
ENDINGS = (".jpg", ".jpeg", ".png")
"""Of pictures in a folder."""


@dataclass(frozen=True)
class Source:
    """What is trained on and asked.

    Attributes:
        tasks: task → split → its rows.
        pairs: split → images with captions, of which one each is taken.
        images: split → images alone.
        texts: split → texts alone.
        words: cuts a text into words.
        known: the words that there are, where that is known; none: those of the training texts.
        answer: makes an answer comparable.
    """

    tasks: Mapping[str, Mapping[str, ImageText]]
    pairs: Mapping[str, ImageText]
    images: Mapping[str, Images]
    texts: Mapping[str, list[str]]
    words: Callable[[str], list[str]]
    known: tuple[str, ...] | None
    answer: Callable[[str], str]

    def training_texts(self) -> Iterable[str]:
        """All texts that are trained on."""
        yield from self.texts["train"]
        for row in (*self.pairs["train"].rows, *self.tasks["caption"]["train"].rows):
            yield from row["captions"]
        yield from (row["question"] for row in self.tasks["vqa"]["train"].rows)
        yield from (row["sentence"] for row in self.tasks["nlvr"]["train"].rows)


# ---------------------------------------------------------------------------------------------------------------- scenes


def scenes(data: Data) -> Source:
    """Made scenes. Texts alone are, in turn, captions of scenes that are not shown, questions and statements, all without images."""
    from moebench.data import scenes as made

    makers = {"vqa": made.questions, "nlvr": made.statements, "caption": made.captioned}
    tasks: dict[str, dict[str, ImageText]] = {task: {} for task in TASKS}
    pairs, images, texts = {}, {}, {}
    masked = data.masked
    sizes = {"train": (masked.pairs, masked.images, masked.texts), "validation": (masked.validation,) * 3, "test": (0, 0, 0)}
    for split, (pair, image, text) in sizes.items():
        each = -(-text // 3)
        others = {"vqa": each, "nlvr": each, "caption": pair + image + each}
        drawn = {}
        for task, more in others.items():
            count = getattr(getattr(data, task), split)
            drawn[task] = makers[task](split, max(count, more), data.seed)  # the first rows of more are those of fewer
            tasks[task][split] = kept(drawn[task], list(range(count)))
        if not pair:
            continue
        whole = drawn["caption"]
        pairs[split] = kept(whole, list(range(pair)))
        images[split] = whole.images[pair : pair + image]
        said = [
            [row["captions"][at % len(row["captions"])] for at, row in enumerate(whole.rows[pair + image : pair + image + each])],
            [row["question"] for row in drawn["vqa"].rows[:each]],
            [row["sentence"] for row in drawn["nlvr"].rows[:each]],
        ]
        texts[split] = [one for turn in zip(*said, strict=True) for one in turn][:text]
    return Source(tasks, pairs, images, texts, made.words, made.VOCABULARY, str)


# -------------------------------------------------------------------------------------------------------- original files


def originals(folder: Path, files: Originals, data: Data, side: int) -> Source:
    """The published sets. The answers to VQAv2's test questions are not published: its validation questions are the test set.

    Raises:
        MoebenchError: a file is missing or not as it should be.
    """
    from moebench.data import vision_language_files as read
    from moebench.data.text_files import TextFiles
    from moebench.metrics.captions import tokens
    from moebench.metrics.vqa import normalise

    vqa, nlvr, coco = folder / files.vqa, folder / files.nlvr, folder / files.coco

    def questions(split: str) -> ImageText:
        asked, answered = f"v2_OpenEnded_mscoco_{split}_questions.json", f"v2_mscoco_{split}_annotations.json"
        return read.vqa_v2(vqa / asked, vqa / answered, coco, side)

    held_out, questioned = divided(questions("train2014"), data.vqa.validation or 0, data.seed)
    whole = {
        "vqa": {"train": questioned, "validation": held_out, "test": questions("val2014")},
        "nlvr": {
            split: read.nlvr2(nlvr / f"{name}.json", nlvr / "images" / name, side)
            for split, name in zip(SPLITS, ("train", "dev", "test1"), strict=True)
        },
        "caption": {
            split: read.karpathy(folder / files.captions, coco, names, side)
            for split, names in zip(SPLITS, (("train", "restval"), ("val",), ("test",)), strict=True)
        },
    }
    captions = [whole["caption"]["train"]]
    captions += [read.coco_captions(folder / more.captions, folder / more.pictures, side) for more in files.pairs]
    pairs = {"train": joined(captions), "validation": whole["caption"]["validation"]}
    pictures = {split: list(_pictures(whole["nlvr"][split]).paths) for split in ("train", "validation")}
    texts = {
        split: [row[key] for task, key in (("vqa", "question"), ("nlvr", "sentence")) for row in whole[task][split].rows]
        for split in ("train", "validation")
    }
    if files.pictures is not None:
        pictures["train"] = sorted(str(path) for path in (folder / files.pictures).rglob("*") if path.suffix.lower() in ENDINGS)
    masked, source = data.masked, None if files.texts is None else TextFiles(folder / files.texts, "line")
    counts = {"train": (masked.pairs, masked.images, masked.texts), "validation": (masked.validation,) * 3}
    for split, (_, most, many) in counts.items():
        pictures[split] = _some(pictures[split], most, data.seed)
        if source is not None:
            texts[split] = [text for _, text in islice(source.documents(split), many)]  # type: ignore[arg-type]
        texts[split] = _some(texts[split], many, data.seed)
        if not pictures[split] or not texts[split]:
            where = folder / str(files.texts if pictures[split] else files.pictures)
            raise MoebenchError(f"{where}: gives no {'text' if pictures[split] else 'picture'} for split {split!r}")
    return Source(
        {
            task: {split: divided(found, getattr(getattr(data, task), split), data.seed)[0] for split, found in splits.items()}
            for task, splits in whole.items()
        },
        {split: divided(found, counts[split][0], data.seed)[0] for split, found in pairs.items()},
        {split: Pictures(paths, side) for split, paths in pictures.items()},
        texts,
        tokens,
        None,
        normalise,
    )


def _pictures(data: ImageText) -> Pictures:
    assert isinstance(data.images, Pictures)
    return data.images


def _some(values: list[str], most: int, seed: int) -> list[str]:
    """At most so many, drawn, in the order in which they were."""
    return [values[at] for at in sorted(permutation(seed, "some", len(values))[:most])]


def joined(sets: list[ImageText]) -> ImageText:
    """Sets of captions one after the other."""
    paths: list[str] = []
    rows: list[dict[str, Any]] = []
    for each in sets:
        rows += [row | {"image": row["image"] + len(paths)} for row in each.rows]
        paths += _pictures(each).paths
    return ImageText("caption", Pictures(paths, sets[0].images.shape[1]), rows)


def divided(data: ImageText, count: int | None, seed: int) -> tuple[ImageText, ImageText]:
    """Draw at most ``count`` rows (none: all), and give them and those that have nothing to do with them, each in its order.

    Rows on one image, or of one sentence, are drawn together, so that neither is on both sides; what that makes too many is left out.
    """
    places: dict[Any, list[int]] = {}
    for at, row in enumerate(data.rows):
        places.setdefault(row.get("group", row.get("image")), []).append(at)
    units = list(places.values())
    first: list[int] = []
    rest: list[int] = []
    for unit in permutation(seed, "units", len(units)):
        full = count is not None and len(first) >= count
        (rest if full else first).extend(units[unit])
    return kept(data, sorted(first[:count])), kept(data, sorted(rest))


def kept(data: ImageText, rows: list[int]) -> ImageText:
    """Some rows, and the images that they need."""
    keys = ("left", "right") if data.kind == "statement" else ("image",)
    places: dict[int, int] = {}
    found = []
    for at in rows:
        row = data.rows[at]
        found.append(row | {key: places.setdefault(row[key], len(places)) for key in keys})
    chosen = list(places)
    if isinstance(data.images, Pictures):
        return ImageText(data.kind, Pictures([data.images.paths[at] for at in chosen], data.images.shape[1]), found)
    return ImageText(data.kind, data.images[np.array(chosen, np.int64)], found)


# ------------------------------------------------------------------------------------------------------ words and answers


def vocabulary(source: Source, special: tuple[str, ...], most: int | None) -> list[str]:
    """The special words, then those of the source, or the most frequent of its training texts, at most ``most`` in all.

    Raises:
        MoebenchError: there are more words than that in a source that says which there are.
    """
    if source.known is not None:
        if most is not None and len(special) + len(source.known) > most:
            raise MoebenchError(f"vocabulary {most}: should be at least {len(special) + len(source.known)}, or be left out")
        return [*special, *source.known]
    counts = Counter(word for text in source.training_texts() for word in source.words(text))
    found = sorted((word for word in counts if word not in special), key=lambda word: (-counts[word], word))
    return [*special, *found[: None if most is None else most - len(special)]]


def answer_list(rows: Iterable[Mapping[str, Any]], comparable: Callable[[str], str], most: int | None) -> list[str]:
    """The answers that a model can give: each question's most frequent one, of these the most frequent."""
    counts: Counter[str] = Counter()
    for row in rows:
        people = Counter(map(comparable, row["answers"]))
        counts[min(people, key=lambda answer: (-people[answer], answer))] += 1
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:most]


def targets(answers: Iterable[str], places: Mapping[str, int], comparable: Callable[[str], str]) -> list[list[float]]:
    """Place in the list of answers and score of each answer that people gave, the best first; what is not in the list is left out.

    Of ten people n give a score of min(3 n, 10) / 10, which is `moebench.metrics.vqa.vqa_accuracies`; of one, 1.
    """
    people = Counter(map(comparable, answers))
    alone = people.total() == 1
    scored = [(1.0 if alone else min(3 * count, 10) / 10, answer) for answer, count in people.items() if answer in places]
    return [[places[answer], score] for score, answer in sorted(scored, key=lambda each: (-each[0], places[each[1]]))]
