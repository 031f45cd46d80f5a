"""Readers of VQAv2, NLVR2 and COCO captions in their original formats. Each error names file, entry, key and what would be right.

| reader | what it reads |
|---|---|
| `vqa_v2` | ``v2_OpenEnded_mscoco_*_questions.json``, ``v2_mscoco_*_annotations.json``, COCO's folders ``train2014``, ... |
| `nlvr2` | ``train.json``, ``dev.json``, ``test1.json``, ``test2.json``, an object a line, and the folder of their images |
| `coco_captions` | ``captions_train2014.json``, ``captions_val2014.json``, and the folder of their images |
| `karpathy` | ``dataset_coco.json``, Karpathy and Fei-Fei's split (arXiv 1412.2306), and COCO's image folders |

Texts are read whole; pictures are decoded when asked for (`moebench.data.image_files.Pictures`), but every one must be there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from moebench.data.formats import read_text
from moebench.data.image_files import Pictures
from moebench.data.image_text import ImageText, Kind
from moebench.errors import MoebenchError, shown

Row = dict[str, Any]
Value = TypeVar("Value")


def vqa_v2(questions: Path, annotations: Path | None, images: Path, side: int) -> ImageText:
    """Read questions with ten answers each.

    ``type`` is the annotations' ``question_type``, the first words of the question: their ``answer_type`` would give away the answer.

    Args:
        questions: the file of questions.
        annotations: that of the answers; None where they are not published, as of the test sets.
        images: holds the folder that the questions' ``data_subtype`` names, of ``test-dev2015`` ``test2015``.
        side: height and width of a decoded image.

    Raises:
        MoebenchError: a file or picture is missing or not as it should be, or a question has no annotation or one of another image.
    """
    whole = _json(questions)
    folder = _get(whole, "data_subtype", str, questions).replace("-dev", "")
    answered: dict[int, tuple[str, Row]] = {}
    if annotations is not None:
        for where, entry in _entries(annotations, "annotations"):
            answered[_get(entry, "question_id", int, where)] = where, entry
    found = _Found()
    rows = []
    for at, entry in enumerate(_get(whole, "questions", list, questions)):
        where = f"{questions}: questions[{at}]"
        number, image = _get(entry, "question_id", int, where), _get(entry, "image_id", int, where)
        row: Row = {"id": str(number), "question": _get(entry, "question", str, where), "answers": [], "type": ""}
        row["image"] = found.place(images / folder / f"COCO_{folder}_{image:012}.jpg", where)
        if annotations is not None:
            if number not in answered:
                raise MoebenchError(f"{annotations}: no annotation of question_id {number}, which {where} has")
            there, given = answered[number]
            if _get(given, "image_id", int, there) != image:
                raise MoebenchError(f"{there}: key 'image_id' has the value {given['image_id']}; should be {image}, as in {where}")
            row["answers"] = [_get(each, "answer", str, there) for each in _get(given, "answers", list, there)]
            row["type"] = _get(given, "question_type", str, there)
        rows.append(row)
    return found.set("question", rows, side)


def nlvr2(file: Path, images: Path, side: int) -> ImageText:
    """Read statements; ``group`` is the identifier without its third part, the pair of images, as the public evaluation has it.

    Args:
        file: an object a line.
        images: holds ``<identifier without its last part>-img0.png``, the left one, and ``-img1.png``, of an entry with ``directory``
            (the training set's) below the folder of that number.
        side: height and width of a decoded image.

    Raises:
        MoebenchError: the file or a picture is missing or not as it should be.
    """
    found = _Found()
    rows = []
    for at, line in enumerate(read_text(file).removesuffix("\n").split("\n"), start=1):
        where = f"{file}:{at}"
        entry = _object(line, where)
        identifier = _get(entry, "identifier", str, where)
        parts = identifier.split("-")
        if len(parts) != 4:
            raise MoebenchError(f"{where}: key 'identifier' has the value {identifier!r}; should be <split>-<set>-<pair>-<sentence>")
        label = str(entry.get("label", "")).lower()
        if label not in ("true", "false", ""):
            raise MoebenchError(f"{where}: key 'label' has the value {shown(entry['label'])}; should be True or False")
        folder = images / str(entry["directory"]) if "directory" in entry else images
        pair = [found.place(folder / f"{'-'.join(parts[:3])}-img{number}.png", where) for number in (0, 1)]
        row = {"id": identifier, "left": pair[0], "right": pair[1], "sentence": _get(entry, "sentence", str, where), "label": label}
        rows.append({**row, "group": "-".join([*parts[:2], parts[3]]), "type": ""})
    return found.set("statement", rows, side)


def coco_captions(file: Path, images: Path, side: int) -> ImageText:
    """Read captions of images, which are in the order of the file.

    Args:
        file: ``images`` with ``id`` and ``file_name``, ``annotations`` with ``image_id`` and ``caption``.
        images: holds the pictures.
        side: height and width of a decoded image.

    Raises:
        MoebenchError: the file or a picture is missing or not as it should be, or a caption's image is not listed.
    """
    found = _Found()
    rows: dict[int, Row] = {}
    for where, entry in _entries(file, "images"):
        number = _get(entry, "id", int, where)
        rows[number] = {"id": str(number), "image": found.place(images / _get(entry, "file_name", str, where), where), "captions": []}
    for where, entry in _entries(file, "annotations"):
        image = _get(entry, "image_id", int, where)
        if image not in rows:
            raise MoebenchError(f"{where}: key 'image_id' has the value {image}; should be the id of one of its images")
        rows[image]["captions"].append(_get(entry, "caption", str, where))
    return found.set("caption", list(rows.values()), side)


def karpathy(file: Path, images: Path, splits: Collection[str], side: int) -> ImageText:
    """Read captions of the images of some splits: ``train`` and ``restval`` are trained on, ``val``, ``test``.

    Args:
        file: ``images`` with ``filepath``, ``filename``, ``split``, ``cocoid`` and ``sentences``, whose ``raw`` is the caption.
        images: holds the folders of the pictures, ``train2014`` and ``val2014``.
        splits: which splits.
        side: height and width of a decoded image.

    Raises:
        MoebenchError: the file or a picture is missing or not as it should be, or nothing is in these splits.
    """
    found = _Found()
    rows = []
    seen = set()
    for where, entry in _entries(file, "images"):
        seen.add(split := _get(entry, "split", str, where))
        if split in splits:
            path = images / _get(entry, "filepath", str, where) / _get(entry, "filename", str, where)
            said = [_get(sentence, "raw", str, where) for sentence in _get(entry, "sentences", list, where)]
            rows.append({"id": str(_get(entry, "cocoid", int, where)), "image": found.place(path, where), "captions": said})
    if missing := sorted(set(splits) - seen):
        raise MoebenchError(f"{file}: no image has the split {missing[0]!r}; splits are {', '.join(sorted(seen))}")
    return found.set("caption", rows, side)


class _Found:
    """Pictures in the order in which they are first spoken of."""

    def __init__(self) -> None:
        self.places: dict[Path, int] = {}

    def place(self, path: Path, where: str) -> int:
        if path not in self.places and not path.is_file():
            raise MoebenchError(f"{path}: not there, but in {where}")
        return self.places.setdefault(path, len(self.places))

    def set(self, kind: Kind, rows: list[Row], side: int) -> ImageText:
        return ImageText(kind, Pictures([str(path) for path in self.places], side), rows)


def _json(path: Path) -> Row:
    return _object(read_text(path), str(path))


def _object(text: str, where: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MoebenchError(f"{where}: not valid JSON ({error}); get the original again") from error
    if not isinstance(value, dict):
        raise MoebenchError(f"{where}: {shown(value)}; should be a JSON object")
    return value


def _entries(path: Path, key: str) -> list[tuple[str, Row]]:
    """The objects of a list in a file, and where they are."""
    return [(f"{path}: {key}[{at}]", entry) for at, entry in enumerate(_get(_json(path), key, list, path))]


def _get(entry: Any, key: str, kind: type[Value], where: str | Path) -> Value:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        state = f"has the value {shown(value)}" if isinstance(entry, dict) and key in entry else "is missing"
        raise MoebenchError(f"{where}: key {key!r} {state}; should be of type {kind.__name__}")
    return value
