"""What the tasks give away without understanding: predictions of shallow baselines on the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moebench.data import image_text_baselines as shallow
from moebench.experiment import Experiment
from moebench.files import read_array, read_jsonl, write_jsonl

Row = dict[str, Any]
TEXT_AND_SAID = {"vqa": ("question", "answers", "answer"), "nlvr": ("sentence", "label", "label")}
"""Task → key of its text, key of what is asked for, and key of what is predicted."""


def baselines(experiment: Experiment, folder: Path) -> None:
    """Write ``<baseline>/predictions/<task>.jsonl``, in the form of a model's predictions, into an empty folder.

    They see the first training rows, ``shallow`` of the setting; of a question's answers the most frequent one.

    Raises:
        MoebenchError: a prepared file is missing or damaged.
    """
    most = experiment.setting.shallow
    if not most:
        return
    for task, (text, asked, said) in TEXT_AND_SAID.items():
        train, test = (_Set(experiment.prepared / task / split, limit) for split, limit in (("train", most), ("test", None)))
        rows = [row for row in train.rows if row[asked]]
        answers = [shallow.most_frequent(row[asked]) if isinstance(row[asked], list) else row[asked] for row in rows]
        size = len(read_array(experiment.prepared / "codebook.npy")) * (1 if task == "vqa" else 2)
        keys = [[[row[text], row["type"]] for row in some] for some in (rows, test.rows)]
        bags = train.tokens(rows, size), test.tokens(test.rows, size)
        texts = [[row[text] for row in some] for some in (rows, test.rows)]
        found = {
            "majority": shallow.by_text([[]] * len(rows), answers, [[]] * len(test.rows)),
            "text": shallow.by_text(keys[0], answers, keys[1]),
            "image": shallow.by_tokens(bags[0], answers, bags[1], size),
            "text_and_image": shallow.by_text_and_tokens(texts[0], bags[0], answers, texts[1], bags[1], size),
        }
        for name, predictions in found.items():
            write_jsonl(folder / name / "predictions" / f"{task}.jsonl", _said(test.rows, said, predictions))
    train, test = (_Set(experiment.prepared / "caption" / split, limit) for split, limit in (("train", most), ("test", None)))
    seen, asked_of = [row["image"] for row in train.rows], [row["image"] for row in test.rows]
    places_L = shallow.nearest_images(np.asarray(train.images[seen]), np.asarray(test.images[asked_of]))
    captions = {
        "majority": [shallow.most_frequent(caption for row in train.rows for caption in row["captions"])] * len(test.rows),
        "nearest_image": [train.rows[place]["captions"][0] for place in places_L],
    }
    for name, predictions in captions.items():
        write_jsonl(folder / name / "predictions" / "caption.jsonl", _said(test.rows, "caption", predictions))


def _said(rows: list[Row], key: str, predictions: list[str]) -> Iterator[Row]:
    return ({"id": row["id"], key: said} for row, said in zip(rows, predictions, strict=True))


class _Set:
    """A prepared split of a task; images and tokens are mapped into memory."""

    def __init__(self, folder: Path, most: int | None):
        self.rows = read_jsonl(folder / "rows.jsonl")[:most]
        self.images = read_array(folder / "images.npy", mapped=True)
        self.visual_NT = read_array(folder / "visual.npy")

    def tokens(self, rows: list[Row], size: int) -> np.ndarray:
        """Visual tokens of the image, or of both images, of each row; ``size`` is K, of pairs 2 K."""
        if rows and "left" in rows[0]:
            left_NT, right_NT = (self.visual_NT[[row[side] for row in rows]] for side in ("left", "right"))
            return shallow.both(left_NT, right_NT, size // 2)
        return self.visual_NT[[row["image"] for row in rows]]
