"""Prepared data of images and words in the layout that jobs read, written by hand: 4 x 4 pixels, patches of 2 x 2, twelve words."""

import json
from pathlib import Path

import numpy as np

from moebench.data.visual_tokens import encode
from moebench.files import write_json, write_jsonl
from moebench.protocols.vision_language.config import SPECIAL

WORDS = (*SPECIAL, "a", "dark", "bright", "corner", "and", "is", "it")
ANSWERS = ("no", "yes")
MODEL = {"image": 4, "patch": 2, "channels": 1, "layers": 2, "width": 16, "heads": 2, "inner": 12, "words": 8, "initial_std": 0.1}
CODEBOOK = np.array([[0] * 4, [255] * 4, [128] * 4], np.uint8)


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def padded(texts):
    rows = np.zeros((len(texts), 8), np.int32)
    for row, text in zip(rows, texts, strict=True):
        words = [1, *ids(text)[:6], 2]
        row[: len(words)] = words
    return rows


def scenes(count, seed):
    """Images whose corners are dark or bright, how many are bright, and a sentence on each."""
    generator = np.random.default_rng(seed)
    bright = generator.random((count, 2, 2)) < 0.5
    images = np.where(bright.repeat(2, 1).repeat(2, 2), 220, 20)[..., None].astype(np.uint8)
    images += generator.integers(0, 30, images.shape, np.uint8)
    numbers = bright.sum(axis=(1, 2))
    texts = [" and ".join(["bright corner" if corner else "a dark corner" for corner in each[0]]) for each in bright]
    return images, numbers, texts


def save(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def tokens(images):
    return encode(images, CODEBOOK, 2).astype(np.int32)


def write(prepared: Path) -> None:
    """Write everything."""
    write_json(prepared / "manifest.json", {"vocabulary": len(WORDS), "codebook": len(CODEBOOK), "answers": len(ANSWERS)})
    write_json(prepared / "words.json", WORDS)
    write_json(prepared / "answers.json", ANSWERS)
    for seed, (split, count) in enumerate({"train": 40, "validation": 12}.items()):
        (images, _, captions), (alone, _, _), (_, _, texts) = (
            scenes(count, seed),
            scenes(count - 5, 10 + seed),
            scenes(count + 3, 20 + seed),
        )
        folder = prepared / "pretrain" / split
        save(folder, images=images, visual=tokens(images), captions=padded(captions), texts=padded(texts))
        save(folder, alone=alone, alone_visual=tokens(alone))
    for seed, (split, count) in enumerate({"train": 30, "validation": 6, "test": 11}.items(), 30):
        images, numbers, captions = scenes(count + 1, seed)
        rows = {"vqa": [], "nlvr": [], "caption": []}
        for at in range(count):
            answer, label = ANSWERS[int(numbers[at] > 2)], "true" if numbers[at] > numbers[at + 1] else "false"
            row = {"id": f"{split}-{at}"}
            question = {"question": "is it bright", "answers": [answer], "type": "bright", "targets": [[ANSWERS.index(answer), 1.0]]}
            rows["vqa"].append(row | {"image": at, "ids": ids("is it bright")} | question)
            statement = {"sentence": "it is", "label": label, "group": str(at), "type": "more", "ids": ids("it is")}
            rows["nlvr"].append(row | {"left": at, "right": at + 1} | statement)
            rows["caption"].append(row | {"image": at, "captions": [captions[at], "a corner"], "ids": [ids(captions[at]), ids("a corner")]})
        for task, mine in rows.items():
            save(prepared / task / split, images=images, visual=tokens(images))
            write_jsonl(prepared / task / split / "rows.jsonl", json.loads(json.dumps(mine)))
