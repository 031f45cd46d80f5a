"""From task rows to model inputs, and from model outputs back to predictions.

B batch, S positions, W words, C classes, M members, N pairs or words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from moebench.data.catalogue import Task
from moebench.data.tokenizer import Tokenizer
from moebench.protocols.transfer.config import Finetuning
from moebench.training.batches import Batch

Row = dict[str, Any]
LONGEST_ANSWER = 30
"""In pieces; the usual limit of extractive question answering (BERT's SQuAD script)."""


@dataclass
class Feature:
    """One model input.

    Attributes:
        ids: token ids with the special ones.
        example: index of its row; a row may have several features (long sentences, long contexts).
        segment: per position 1 or 2 for the texts of a pair and for question and context; 0 on special tokens.
        label: class of a pair.
        first: per word the position that stands for it; ``tags`` the classes of these words.
        tags: classes of the words.
        offsets: per position the characters of the context it covers.
        span: positions of the answer's first and last piece; (0, 0) where the answer is not in this window.
    """

    ids: list[int]
    example: int
    segment: list[int] = field(default_factory=list)
    label: int = 0
    first: list[int] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    span: tuple[int, int] = (0, 0)


def features(task: Task, rows: list[Row], tokenizer: Tokenizer, optimisation: Finetuning) -> list[Feature]:
    """Tokenise rows of a task. Pairs longer than ``max_length`` lose the end of the longer text."""
    make = {"pair": _pair, "tagging": _tagging, "qa": _question}[task.kind]
    return [feature for index, row in enumerate(rows) for feature in make(task, row, index, tokenizer, optimisation)]


def _pair(task: Task, row: Row, index: int, tokenizer: Tokenizer, optimisation: Finetuning) -> list[Feature]:
    first, second = tokenizer.encode(row["text_a"])[0], tokenizer.encode(row["text_b"])[0]
    room = optimisation.max_length - 4
    while len(first) + len(second) > room:
        (first if len(first) >= len(second) else second).pop()
    ids = [tokenizer.bos, *first, tokenizer.eos, tokenizer.eos, *second, tokenizer.eos]
    segment = [0, *[1] * len(first), 0, 0, *[2] * len(second), 0]
    return [Feature(ids, index, segment, label=task.labels.index(row["label"]))]


def _tagging(task: Task, row: Row, index: int, tokenizer: Tokenizer, optimisation: Finetuning) -> list[Feature]:
    """A sentence that is too long is cut between words; a word that is too long alone loses its end."""
    result: list[Feature] = []
    room = optimisation.max_length - 2
    for word, tag in zip(row["words"], row["tags"], strict=True):
        pieces, (first,) = tokenizer.encode_words([word])
        pieces = pieces[: max(room, first + 1)]
        if not result or len(result[-1].ids) + len(pieces) > room + 1:
            result.append(Feature([tokenizer.bos], index))
        feature = result[-1]
        feature.first.append(len(feature.ids) + first)
        feature.tags.append(task.labels.index(tag))
        feature.ids += pieces
    for feature in result:
        feature.ids.append(tokenizer.eos)
    return result


def _question(task: Task, row: Row, index: int, tokenizer: Tokenizer, optimisation: Finetuning) -> list[Feature]:
    question = tokenizer.encode(row["question"])[0][: optimisation.max_length // 2]
    context, offsets = tokenizer.encode(row["context"])
    room = optimisation.max_length - len(question) - 4
    head = [tokenizer.bos, *question, tokenizer.eos, tokenizer.eos]
    answer = row["answers"][0]
    begin, end = answer["start"], answer["start"] + len(answer["text"])
    inside = [place for place, (a, b) in enumerate(offsets) if a < end and b > begin]
    result = []
    start = 0
    while True:
        window = context[start : start + room]
        span = (0, 0)
        if inside and start <= inside[0] and inside[-1] < start + len(window):
            span = (inside[0] - start + len(head), inside[-1] - start + len(head))
        result.append(
            Feature(
                [*head, *window, tokenizer.eos],
                index,
                segment=[0, *[1] * len(question), 0, 0, *[2] * len(window), 0],
                offsets=[(0, 0)] * len(head) + offsets[start : start + room] + [(0, 0)],
                span=span,
            )
        )
        if start + room >= len(context):
            return result
        start += max(1, room - optimisation.stride)


def collate(task: Task, chosen: list[Feature], pad: int) -> Batch:
    """Pad features to one batch; of none it is a batch without rows."""
    length = max((len(feature.ids) for feature in chosen), default=1)
    batch = {
        "ids": _padded([feature.ids for feature in chosen], length, pad),
        "mask": _padded([[1] * len(feature.ids) for feature in chosen], length, 0).bool(),
    }
    if task.kind == "pair":
        batch["segment"] = _padded([feature.segment for feature in chosen], length, 0)
        batch["labels"] = torch.tensor([feature.label for feature in chosen], dtype=torch.int64)
    elif task.kind == "tagging":
        words = max((len(feature.first) for feature in chosen), default=1)
        batch["first"] = _padded([feature.first for feature in chosen], words, 0)
        batch["labels"] = _padded([feature.tags for feature in chosen], words, -100)
    else:
        allowed = _padded([feature.segment for feature in chosen], length, 0) == 2
        allowed[:, 0] = True  # the place that says: not in this window
        batch["allowed"] = allowed
        batch["labels"] = torch.tensor([feature.span for feature in chosen], dtype=torch.int64).view(-1, 2)
    return batch


def _padded(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    result = np.full((len(rows), length), value, dtype=np.int64)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return torch.from_numpy(result)


def best_spans(logits_BS2: torch.Tensor, allowed_BS: torch.Tensor) -> torch.Tensor:
    """Return (B, 3): score, start and end of the best span of at most `LONGEST_ANSWER` pieces within the allowed positions.

    A feature whose window holds no allowed position other than the first has the score ``-inf``.
    """
    allowed_BS = allowed_BS.clone()
    allowed_BS[:, 0] = False
    start_BS, end_BS = logits_BS2.float().masked_fill(~allowed_BS[..., None], float("-inf")).unbind(-1)
    positions = logits_BS2.shape[1]
    band_SS = torch.ones(positions, positions, dtype=torch.bool, device=logits_BS2.device).triu().tril(LONGEST_ANSWER - 1)
    score_BSS = (start_BS[:, :, None] + end_BS[:, None, :]).masked_fill(~band_SS, float("-inf"))
    best_B, place_B = score_BSS.flatten(1).max(dim=1)
    return torch.stack([best_B, place_B // positions, place_B % positions], dim=1)


def predictions(task: Task, rows: list[Row], inputs: list[Feature], outputs: list[np.ndarray]) -> tuple[list[Row], np.ndarray | None]:
    """Turn the outputs of the features into one prediction per row.

    Args:
        task: the task.
        rows: its test rows.
        inputs: their features, in the order of the rows.
        outputs: per feature: (C,) probabilities of a pair, (W, C) of words, or (3,) score, start, end of the best span; of an ensemble
            (M, C), (M, W, C) and (3,).

    Returns:
        The predictions, of an ensemble under the mean over its members, and (N, C) or (M, N, C) probabilities of all pairs or words in the
        order of the rows; none for questions.
    """
    result: list[Row] = [{"id": row["id"]} for row in rows]
    if task.kind != "qa":
        if task.kind == "pair":
            probs = np.stack(outputs, axis=-2)
        else:
            probs = np.concatenate([words[..., : len(each.first), :] for each, words in zip(inputs, outputs, strict=True)], axis=-2)
        mean_NC = probs.mean(axis=0, dtype=np.float64) if probs.ndim == 3 else probs
        labels = iter([task.labels[number] for number in mean_NC.argmax(axis=1)])
        for feature in inputs:
            if task.kind == "pair":
                result[feature.example]["prediction"] = next(labels)
            else:
                result[feature.example].setdefault("prediction", []).extend(islice(labels, len(feature.first)))
        return result, probs
    best = [float("-inf")] * len(rows)
    for feature, (score, start, end) in zip(inputs, outputs, strict=True):
        answer = result[feature.example]
        answer.setdefault("prediction", "")
        if score > best[feature.example]:
            best[feature.example] = float(score)
            begin, stop = feature.offsets[int(start)][0], feature.offsets[int(end)][1]
            answer["prediction"] = rows[feature.example]["context"][begin:stop].strip()
    return result, None
