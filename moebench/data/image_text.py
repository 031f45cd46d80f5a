"""Images with text: rows of three tasks, each row naming its images by their place beside it.

| kind | a row is | keys beside ``id`` |
|---|---|---|
| caption | an image and sentences that describe it | ``image``, ``captions`` |
| question | an image, a question and its answers, ten in VQAv2 | ``image``, ``question``, ``answers``, ``type`` |
| statement | two images and a sentence that is true or false of them | ``left``, ``right``, ``sentence``, ``label``, ``group``, ``type`` |

``type`` is the kind of question or statement, empty where nothing says it. Statements of one ``group`` have the same sentence. Published
test sets have no answers, captions or labels: their lists are empty, their labels are ``""``. Rows are what a line of JSON can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moebench.data.images import Images
from moebench.errors import MoebenchError, shown

Kind = Literal["caption", "question", "statement"]
KEYS: dict[Kind, dict[str, type]] = {
    "caption": {"id": str, "image": int, "captions": list},
    "question": {"id": str, "image": int, "question": str, "answers": list, "type": str},
    "statement": {"id": str, "left": int, "right": int, "sentence": str, "label": str, "group": str, "type": str},
}
LABELS = ("true", "false")


@dataclass(frozen=True, eq=False)
class ImageText:
    """Images and the rows of one task on them.

    Attributes:
        kind: the task; see the top of the file.
        images: (N, H, W, C) uint8, as an array or decoded on access.
        rows: plain dictionaries.

    Raises:
        MoebenchError: the images are of another shape or type, or a row is not as its kind asks; the message names row and key.
    """

    kind: Kind
    images: Images
    rows: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if len(self.images.shape) != 4 or self.images.dtype != np.uint8:
            raise MoebenchError(f"images are {self.images.dtype} of shape {self.images.shape}; should be uint8 (N, H, W, C)")
        keys = KEYS[self.kind]
        for row in self.rows:
            if row.keys() != keys.keys():
                raise MoebenchError(f"row {row.get('id')!r}: keys are {', '.join(sorted(row))}; should be {', '.join(sorted(keys))}")
            for key, kind in keys.items():
                value = row[key]
                good = type(value) is kind
                if good and kind is list:
                    good = all(isinstance(text, str) for text in value)
                elif good and kind is int:
                    good = 0 <= value < len(self.images)
                elif good and key == "label":
                    good = value in (*LABELS, "")
                if not good:
                    should = f"an image, 0 to {len(self.images) - 1}" if kind is int else "texts" if kind is list else "a text"
                    should = f"one of {', '.join(LABELS)}, or empty" if key == "label" else should
                    raise MoebenchError(f"row {row['id']!r}: key {key!r} has the value {shown(value)}; should be {should}")

    def __len__(self) -> int:
        return len(self.rows)
