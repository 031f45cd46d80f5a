"""Which data there are, and how they become images, visual tokens, word ids and rows of tasks.

N images, T patches of an image, S words of the longest text, K entries of the codebook.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moebench.config import benchmark_folder
from moebench.data import visual_tokens
from moebench.data.image_sets import write_images
from moebench.data.images import Images
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import atomic_write, read_array, sha256, write_json, write_jsonl
from moebench.models.shapes import VisionLanguage
from moebench.protocol import Plan
from moebench.protocols.vision_language import sources
from moebench.protocols.vision_language.config import SPECIAL, TASKS, Data
from moebench.protocols.vision_language.runs import ORIGINALS, PRETRAIN, SCENES
from moebench.protocols.vision_language.sources import SPLITS, Source

TEXTS = {"vqa": "question", "nlvr": "sentence", "caption": "captions"}
"""Task → the key of a row's text, or texts."""
PAD, CLS, SEP, _, UNKNOWN = range(len(SPECIAL))


def plan(experiment: Experiment) -> Plan:
    """What the prepared data depend on: also the model's images and texts. Original files that are not there are this stage's error."""
    data: Data = experiment.data
    what = data.model_dump(mode="json") | {"model": experiment.setting.model.model_dump(include={"image", "patch", "channels", "words"})}
    if data.files is not None:
        from moebench.data.image_benchmarks import listing

        with contextlib.suppress(MoebenchError):  # no folder is given
            folder, files = benchmark_folder(experiment.root), data.files
            below = {files.coco, files.vqa, files.nlvr, str(Path(files.captions).parent), *(pair.pictures for pair in files.pairs)}
            below |= {path for path in (files.pictures, files.texts, *(str(Path(pair.captions).parent) for pair in files.pairs)) if path}
            what["listings"] = {name: listing(folder / name) for name in sorted(below)}
    return Plan(what, [__name__], SCENES if data.files else ORIGINALS)


def parts(experiment: Experiment) -> dict[str, list[str]]:
    """Part of the data → what runs of it read."""
    shared = ["words.json", "codebook.npy", "answers.json"]
    return {name: [name, *shared] for name in (PRETRAIN, *TASKS)}


def prepare(experiment: Experiment, folder: Path, say: Callable[[str], object]) -> None:
    """Write into an empty folder what pre-training and the tasks read.

    ``words.json`` (ids are places; the first are `SPECIAL`), ``answers.json``, ``codebook.npy`` (K, P P C) uint8, ``manifest.json``;
    ``pretrain/<split>/``: ``images.npy`` (N, H, W, C) uint8, ``visual.npy`` (N, T) int32 and ``captions.npy`` (N, S) int32 of pairs, one
    caption each; ``alone.npy`` and ``alone_visual.npy`` of images alone, ``texts.npy`` of texts alone;
    ``<task>/<split>/``: ``images.npy``, ``visual.npy`` and ``rows.jsonl``: rows of `moebench.data.image_text` with ``ids``, the words of
    the question, the sentence or each caption without special ones, and of questions `moebench.protocols.vision_language.sources.targets`.
    Texts are ``[cls] … [sep]``, filled up with ``[pad]``; those of original files are cut where they are too long.

    Raises:
        MoebenchError: a source is not there, or has a text that the model cannot take.
    """
    data: Data = experiment.data
    shape: VisionLanguage = experiment.setting.model
    say("images and texts")
    if data.files is None:
        source = sources.scenes(data)
    else:
        source = _originals(experiment, data, shape.image)

    say("words and answers")
    try:
        words = sources.vocabulary(source, SPECIAL, data.vocabulary)
    except MoebenchError as error:
        raise MoebenchError(f"{experiment.data_file}: key {error}") from error
    answers = sources.answer_list(source.tasks["vqa"]["train"].rows, source.answer, data.answers)
    write_json(folder / "words.json", words)
    write_json(folder / "answers.json", answers)
    places = {answer: place for place, answer in enumerate(answers)}
    texts = _Texts(experiment, source, words, shape.words)

    counts: dict[str, Any] = {}
    codebook_KD = _codebook(data, shape, source.pairs["train"].images, folder, say)
    writer = _Images(codebook_KD, shape.patch, folder, say)
    for split in ("train", "validation"):
        name, pairs = f"{PRETRAIN}/{split}", source.pairs[split]
        writer.write(pairs.images, name, "images", "visual")
        writer.write(source.images[split], name, "alone", "alone_visual")
        said = [row["captions"][at % len(row["captions"])] for at, row in enumerate(pairs.rows)]
        _save(folder / name / "captions.npy", texts.rows(said))
        _save(folder / name / "texts.npy", texts.rows(source.texts[split]))
        counts[name] = {"pairs": len(pairs), "images": len(source.images[split]), "texts": len(source.texts[split])}
    for task in TASKS:
        for split in SPLITS:
            name, found = f"{task}/{split}", source.tasks[task][split]
            writer.write(found.images, name, "images", "visual")
            rows = [row | {"ids": texts.ids(row[TEXTS[task]])} for row in found.rows]
            if task == "vqa":
                rows = [row | {"targets": sources.targets(row["answers"], places, source.answer)} for row in rows]
            write_jsonl(folder / name / "rows.jsonl", rows)
            counts[name] = {"rows": len(found), "images": len(found.images)}

    say("revision")
    content = "".join(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n" for path in sorted(folder.rglob("*")) if path.is_file())
    revision = hashlib.sha256(content.encode()).hexdigest()
    write_json(
        folder / "manifest.json",
        {
            "profile": experiment.profile,
            "source": data.source,
            "revision": f"scenes-{revision[:12]}" if data.files is None else revision,
            "vocabulary": len(words),
            "codebook": len(codebook_KD),
            "answers": len(answers),
            "sets": counts,
            "cut": texts.cut,
        },
    )


def _originals(experiment: Experiment, data: Data, side: int) -> Source:
    assert data.files is not None
    try:
        return sources.originals(benchmark_folder(experiment.root), data.files, data, side)
    except MoebenchError as error:
        raise MoebenchError(
            f"{error}\ndata/README.md, section Images with text, says which files go where; without them,"
            f" `moebench run --profile {experiment.profile} --paper NAME` runs another paper alone"
        ) from error


class _Texts:
    """From texts to ids; ``cut`` counts those that were too long."""

    def __init__(self, experiment: Experiment, source: Source, words: Sequence[str], longest: int):
        self.experiment, self.source, self.longest = experiment, source, longest
        self.places = {word: place for place, word in enumerate(words)}
        self.cut = 0

    def ids(self, text: Any) -> Any:
        """Ids of a text, or of each of several, without special ones.

        Raises:
            MoebenchError: a made text is longer than the model's.
        """
        if isinstance(text, list):
            return [self.ids(one) for one in text]
        found = [self.places.get(word, UNKNOWN) for word in self.source.words(text)]
        if len(found) > self.longest - 2:
            if self.source.known is not None:
                raise MoebenchError(
                    f"{self.experiment.setting_file}: key 'model.words' has the value {self.longest}; should be at least {len(found) + 2}"
                    f" for {text!r}"
                )
            self.cut += 1
        return found[: self.longest - 2]

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(N, S) int32, each text between its special words."""
        rows_NS = np.full((len(texts), self.longest), PAD, np.int32)
        for row_S, text in zip(rows_NS, texts, strict=True):
            ids = [CLS, *self.ids(text), SEP]
            row_S[: len(ids)] = ids
        return rows_NS


class _Images:
    """Writes images and their visual tokens."""

    def __init__(self, codebook_KD: np.ndarray, patch: int, folder: Path, say: Callable[[str], object]):
        self.codebook_KD, self.patch, self.folder, self.say = codebook_KD, patch, folder, say

    def write(self, images: Images, name: str, pixels: str, tokens: str) -> None:
        """Write both files of a set."""
        self.say(f"images of {name}")
        write_images(self.folder / name / f"{pixels}.npy", images)
        there = read_array(self.folder / name / f"{pixels}.npy", mapped=True)
        _save(self.folder / name / f"{tokens}.npy", visual_tokens.encode(there, self.codebook_KD, self.patch).astype(np.int32))


def _codebook(data: Data, shape: VisionLanguage, images: Images, folder: Path, say: Callable[[str], object]) -> np.ndarray:
    """Visual tokens, from patches of training images."""
    say("visual tokens")
    some = visual_tokens.patches(np.asarray(images[: data.codebook_images]), shape.patch)
    codebook_KD = visual_tokens.train(some.reshape(-1, some.shape[2]), data.codebook, data.seed)
    _save(folder / "codebook.npy", codebook_KD)
    return codebook_KD


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, binary=True) as file:
        np.save(file, array)
