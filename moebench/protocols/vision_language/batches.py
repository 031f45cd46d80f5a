"""Batches as functions of the step: rows with masks for pre-training, and examples of the tasks.

N rows, B rows of a batch, T patches and G along a side, W words, X pixels of a patch, I images of an example, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moebench.data.image_text import LABELS
from moebench.data.images import Images
from moebench.data.visual_tokens import patches
from moebench.errors import MoebenchError
from moebench.files import read_array, read_jsonl
from moebench.models.vision_language import CLASS, MASK, PAD, SEPARATOR, UNKNOWN
from moebench.protocols.vision_language.config import Pretraining
from moebench.training.batches import Batch, order, weight

ASPECT = 0.3
"""Of a masked block: height over width is at least this and at most its inverse (BEiT, arXiv 2106.08254, algorithm 1)."""
SMALLEST = 16 / 196
"""Of a masked block, as a share of all patches: BEiT's 16 of 14 x 14, here of any grid."""


# ------------------------------------------------------------------------------------------------------------------ masks


def hidden_patches(count: int, side: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """Choose patches to mask, block by block, as BEiT does (arXiv 2106.08254, algorithm 1), which BEiT-3's masking follows.

    Blocks are drawn until ``share`` of an image is masked; of what is then too much, patches anywhere are seen again, as in the code of
    BEiT v2, so that all images have as many masked patches.

    Args:
        count: B, images.
        side: G.
        share: of the patches; rounded, and at least one of them.
        generator: what is drawn with.

    Returns:
        (B, T) bool, true at masked patches.
    """
    most, fewest = max(1, round(share * side**2)), max(1, round(SMALLEST * side**2))
    row_G = np.arange(side)
    hidden_BGG = np.zeros((count, side, side), bool)
    while (left_B := most - hidden_BGG.sum(axis=(1, 2))).max(initial=0) > 0:
        draws_4B = generator.random((4, count))
        area_B = fewest + draws_4B[0] * np.maximum(left_B - fewest, 0)
        stretch_B = ASPECT ** (1 - 2 * draws_4B[1])
        tall_B, wide_B = (np.clip(np.rint(np.sqrt(area_B * by_B)), 1, side) for by_B in (stretch_B, 1 / stretch_B))
        top_B, first_B = (np.floor(draw_B * (side + 1 - size_B)) for draw_B, size_B in ((draws_4B[2], tall_B), (draws_4B[3], wide_B)))
        down_BG, along_BG = (
            (row_G >= begin_B[:, None]) & (row_G < (begin_B + size_B)[:, None]) for begin_B, size_B in ((top_B, tall_B), (first_B, wide_B))
        )
        hidden_BGG |= down_BG[:, :, None] & along_BG[:, None] & (left_B > 0)[:, None, None]
    return _first(hidden_BGG.reshape(count, side**2), np.full(count, most), generator)


def mask_words(ids_BW: np.ndarray, share_B: np.ndarray, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose words to predict and hide them (BERT, arXiv 1810.04805, section 3.1; BEiT-3's public code for captions).

    Of the chosen ones, 80 % become ``[mask]``, 10 % any word and 10 % stay. Whatever follows the class token may be chosen, the separator
    too, so that a model of captions knows their end; but not ``[unk]``.

    Args:
        ids_BW: texts.
        share_B: of the words of each, rounded; at least one.
        size: V.
        generator: what is drawn with.

    Returns:
        The corrupted ids, and a boolean (B, W) array that is true on the chosen positions.
    """
    may_BW = ~np.isin(ids_BW, (PAD, CLASS, UNKNOWN))
    count_B = np.maximum(np.floor(share_B * may_BW.sum(axis=1) + 0.5), 1)
    chosen_BW = _first(may_BW, count_B, generator)
    fate_BW = generator.random(ids_BW.shape)
    noise_BW = generator.integers(UNKNOWN + 1, size, ids_BW.shape)
    hidden_BW = np.where(fate_BW < 0.8, MASK, np.where(fate_BW < 0.9, noise_BW, ids_BW))
    return np.where(chosen_BW, hidden_BW, ids_BW), chosen_BW


def _first(may_BN: np.ndarray, count_B: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` places of each row, of those that may be; all of these where there are fewer."""
    keys_BN = np.where(may_BN, generator.random(may_BN.shape), 1.0)
    return may_BN & (keys_BN.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable") < count_B[:, None])


# ------------------------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class Pictures:
    """Images, and their visual tokens.

    Attributes:
        images: (N, height, width, channels) uint8.
        visual_NT: tokens of the same images.
        patch: side of a patch.
    """

    images: Images
    visual_NT: np.ndarray
    patch: int

    @staticmethod
    def read(folder: Path, patch: int, images: str = "images", visual: str = "visual") -> Pictures:
        """Map two files into memory.

        Raises:
            MoebenchError: one is missing or damaged, or they are not of the same images.
        """
        found = Pictures(read_array(folder / f"{images}.npy", mapped=True), read_array(folder / f"{visual}.npy", mapped=True), patch)
        if len(found.images) != len(found.visual_NT):
            raise MoebenchError(
                f"{folder / f'{visual}.npy'}: tokens of {len(found.visual_NT)} images; should be {len(found.images)}, as {images}.npy has"
            )
        return found

    def pixels(self, numbers_B: np.ndarray) -> np.ndarray:
        """(B, T, X) patches, fp32 in -1..1."""
        return patches(np.asarray(self.images[numbers_B]), self.patch).astype(np.float32) / np.float32(127.5) - 1

    def visual(self, numbers_B: np.ndarray) -> np.ndarray:
        """(B, T) int64."""
        return np.asarray(self.visual_NT[numbers_B]).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------ pre-training


class MaskedRows:
    """The rows of a split of pre-training: pairs, images alone and texts alone.

    Args:
        folder: of the split.
        patch: side of a patch.
    """

    def __init__(self, folder: Path, patch: int):
        self.pairs = Pictures.read(folder, patch)
        self.captions_NW = read_array(folder / "captions.npy", mapped=True)
        self.alone = Pictures.read(folder, patch, "alone", "alone_visual")
        self.texts_NW = read_array(folder / "texts.npy", mapped=True)
        if len(self.captions_NW) != len(self.pairs.images):
            raise MoebenchError(
                f"{folder / 'captions.npy'}: {len(self.captions_NW)} captions; should be {len(self.pairs.images)}, one an image"
            )

    def __len__(self) -> int:
        """Rows of the kind that has most."""
        return max(self.sizes)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many pairs, images and texts there are."""
        return len(self.captions_NW), len(self.alone.images), len(self.texts_NW)

    def counts(self, vocabulary: int, codebook: int) -> np.ndarray:
        """(V + K,) how often each word and each visual token occurs."""
        words = np.concatenate([self.captions_NW.ravel(), self.texts_NW.ravel()])
        visual = np.concatenate([self.pairs.visual_NT.ravel(), self.alone.visual_NT.ravel()])
        counts = np.bincount(words[words != PAD], minlength=vocabulary), np.bincount(visual, minlength=codebook)
        return np.concatenate(counts)

    def masked(
        self,
        numbers: tuple[np.ndarray, ...],
        options: Pretraining,
        vocabulary: int,
        generator: np.random.Generator,
        part: int = 0,
        parts: int = 1,
    ) -> Batch:
        """Mask pairs, images and texts, all at once, and return a part of each kind as one batch.

        Of the rows the first are pairs; each other one holds an image and a text that are ``apart``, as long as there are any.

        Args:
            numbers: which pairs, which images and which texts.
            options: the shares.
            vocabulary: V.
            generator: what is drawn with.
            part: which rows of each kind: ``part``, ``part + parts``, ...
            parts: how many parts there are.

        Returns:
            ``patches`` (B, T, X), ``visual``, ``hidden`` (B, T); ``words`` (B, W), corrupted, ``chosen`` (B, W) and ``targets``, the words
            there; ``mask`` (B, 1 + T + W); ``apart`` (B,); and ``weight`` (3,) of the means over what is masked of pairs, images, texts.
        """
        pairs, images, texts = map(len, numbers)
        width = max(self.captions_NW.shape[1], self.texts_NW.shape[1])
        ids_BW = np.zeros((pairs + texts, width), np.int64)
        ids_BW[:pairs, : self.captions_NW.shape[1]] = self.captions_NW[numbers[0]]
        ids_BW[pairs:, : self.texts_NW.shape[1]] = self.texts_NW[numbers[2]]
        share_B = np.repeat([options.mask_text_of_pairs, options.mask_text], [pairs, texts])
        words_BW, chosen_BW = mask_words(ids_BW, share_B, vocabulary, generator)
        side = round(self.pairs.visual_NT.shape[1] ** 0.5)
        hidden_BT = hidden_patches(pairs + images, side, options.mask_image, generator)
        of_words_B, of_patches_B = chosen_BW.sum(axis=1), hidden_BT.sum(axis=1)
        of_pairs_B = of_words_B[:pairs] + of_patches_B[:pairs]
        weights = [weight(counts_B, part, parts) for counts_B in (of_pairs_B, of_patches_B[pairs:], of_words_B[pairs:])]

        own_pairs, own_images, own_texts = (np.arange(part, size, parts) for size in (pairs, images, texts))
        with_text, with_image = np.concatenate([own_pairs, pairs + own_texts]), np.concatenate([own_pairs, pairs + own_images])
        ids_BW, words_BW, chosen_BW = _trimmed(ids_BW[with_text], words_BW[with_text], chosen_BW[with_text])
        sides = (self.pairs, numbers[0][own_pairs]), (self.alone, numbers[1][own_images])
        rows = len(own_pairs) + max(len(own_images), len(own_texts))

        def filled(values: np.ndarray) -> torch.Tensor:
            """Rows without an image, or without a text, have zeros there."""
            return torch.from_numpy(np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)]))

        words = filled(words_BW)
        image_B1 = torch.arange(rows)[:, None] < len(with_image)
        return {
            "weight": torch.cat(weights),
            "patches": filled(np.concatenate([pictures.pixels(mine) for pictures, mine in sides])),
            "visual": filled(np.concatenate([pictures.visual(mine) for pictures, mine in sides])),
            "hidden": filled(hidden_BT[with_image]),
            "words": words,
            "chosen": filled(chosen_BW),
            "targets": torch.from_numpy(ids_BW[chosen_BW]),
            "mask": torch.cat([image_B1.expand(-1, 1 + side**2), words != PAD], 1),
            "apart": torch.arange(rows) >= len(own_pairs),
        }


def _trimmed(ids_BW: np.ndarray, *others_BW: np.ndarray) -> list[np.ndarray]:
    """Leave out what is padding in all rows; one word stays."""
    longest = int((ids_BW != PAD).sum(axis=1).max(initial=1))
    return [each_BW[:, :longest] for each_BW in (ids_BW, *others_BW)]


class MaskedBatches:
    """A part of the batch of a step of pre-training: rows of each kind, drawn with replacement.

    Rows and masks are drawn for the whole batch, and a part of them is taken.
    """

    def __init__(self, rows: MaskedRows, options: Pretraining, vocabulary: int, seed: int, part: int = 0, parts: int = 1):
        self.rows, self.options, self.vocabulary, self.seed, self.part, self.parts = rows, options, vocabulary, seed, part, parts

    def __call__(self, step: int) -> Batch:
        """Return the part of the batch of ``step``."""
        generator = np.random.default_rng([self.seed, step])
        wanted = self.options.rows
        kinds = zip(self.rows.sizes, (wanted.pairs, wanted.images, wanted.texts), strict=True)
        pairs, images, texts = (generator.integers(0, size, count) for size, count in kinds)
        return self.rows.masked((pairs, images, texts), self.options, self.vocabulary, generator, self.part, self.parts)


def validation_batches(rows: MaskedRows, options: Pretraining, vocabulary: int, size: int) -> list[Batch]:
    """All rows of a split, masked the same way in every run and whatever the ``size``, the most rows of each kind at once."""
    everything, parts = tuple(np.arange(count) for count in rows.sizes), -(-len(rows) // size)
    return [rows.masked(everything, options, vocabulary, np.random.default_rng(20220822), part, parts) for part in range(parts)]


# ------------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Examples:
    """Examples of a task.

    Attributes:
        pictures: the images.
        images_NI: which images each example has, one or two.
        words: ids of each example's text, special ones included.
        targets_NC: distribution over the classes; none: captions, or nothing is learned from them.
    """

    pictures: Pictures
    images_NI: np.ndarray
    words: list[list[int]]
    targets_NC: np.ndarray | None

    def __len__(self) -> int:
        return len(self.words)

    def batch(self, numbers_B: np.ndarray) -> Batch:
        """``patches``, ``visual``, ``words`` and ``mask`` of examples: image i of example b, and its text with it, are row b · I + i."""
        images_R = self.images_NI[numbers_B].ravel()
        words_BW = padded([self.words[number] for number in numbers_B])
        words = torch.from_numpy(words_BW).repeat_interleave(self.images_NI.shape[1], 0)
        seen = words.new_ones(len(words), 1 + self.pictures.visual_NT.shape[1], dtype=torch.bool)
        found = {
            "patches": torch.from_numpy(self.pictures.pixels(images_R)),
            "visual": torch.from_numpy(self.pictures.visual(images_R)),
            "words": words,
            "mask": torch.cat([seen, words != PAD], 1),
        }
        return found if self.targets_NC is None else found | {"targets": torch.from_numpy(self.targets_NC[numbers_B])}


def padded(texts: list[list[int]]) -> np.ndarray:
    """(B, W) ids, as wide as the longest text, and at least one."""
    ids_BW = np.full((len(texts), max(map(len, texts), default=1)), PAD, np.int64)
    for row_W, text in zip(ids_BW, texts, strict=True):
        row_W[: len(text)] = text
    return ids_BW


def examples(task: str, folder: Path, patch: int, longest: int, classes: int, learned: bool) -> tuple[Examples, list[dict[str, Any]]]:
    """Read a split of a task.

    Args:
        task: ``vqa``, ``nlvr`` or ``caption``.
        folder: of the split.
        patch: side of a patch.
        longest: W; longer texts lose their end, the separator stays.
        classes: C.
        learned: only examples from which something can be learned: questions with an answer that the model can give, statements with a
            label, and each caption by itself. Else an example a row, and captions without words.

    Returns:
        The examples, and the row of each.

    Raises:
        MoebenchError: there are none to learn from.
    """
    rows, texts = [], []
    for row in read_jsonl(folder / "rows.jsonl"):
        if not learned or task == "caption" or row["targets" if task == "vqa" else "label"]:
            mine = ([[]] if not learned else row["ids"]) if task == "caption" else [row["ids"]]
            texts += [[CLASS, *ids[: longest - 2], SEPARATOR] for ids in mine]
            rows += [row] * len(mine)
    if learned and not rows:
        raise MoebenchError(f"{folder / 'rows.jsonl'}: no examples to train on; delete {folder.parents[1]} and run again")
    targets_NC = None
    if learned and task != "caption":
        targets_NC = np.zeros((len(rows), classes), np.float32)
        for target_C, row in zip(targets_NC, rows, strict=True):
            for place, score in row["targets"] if task == "vqa" else [(LABELS.index(row["label"]), 1.0)]:
                target_C[place] = score
            target_C /= target_C.sum()
    images_NI = np.array([[row["left"], row["right"]] if task == "nlvr" else [row["image"]] for row in rows]).reshape(len(rows), -1)
    return Examples(Pictures.read(folder, patch), images_NI, texts, targets_NC), rows


class TaskBatches:
    """A part of the batch of a step of fine-tuning, drawn epoch by epoch; ``mask``, of captions, is the share of words that are masked."""

    def __init__(self, given: Examples, batch: int, mask: float | None, vocabulary: int, seed: int, part: int, parts: int):
        self.examples, self.batch, self.mask, self.vocabulary = given, batch, mask, vocabulary
        self.seed, self.part, self.parts = seed, part, parts
        self.lengths = [len(text) for text in given.words]
        self.epoch = -1
        self.batches = order(self.lengths, batch, seed, 0)

    def __call__(self, step: int) -> Batch:
        """Return the part of the batch of ``step``."""
        epoch, place = divmod(step, len(self.batches))
        if epoch != self.epoch:
            self.batches, self.epoch = order(self.lengths, self.batch, self.seed, epoch), epoch
        whole, own = self.batches[place], np.s_[self.part :: self.parts]
        found = self.examples.batch(whole[own])
        if self.mask is None:
            return found | {"weight": weight(np.ones(len(whole)), self.part, self.parts)}
        ids_BW = padded([self.examples.words[number] for number in whole])
        words_BW, chosen_BW = mask_words(ids_BW, np.full(len(whole), self.mask), self.vocabulary, np.random.default_rng([self.seed, step]))
        share_of_loss = weight(chosen_BW.sum(axis=1), self.part, self.parts)
        ids_BW, words_BW, chosen_BW = _trimmed(ids_BW[own], words_BW[own], chosen_BW[own])
        return found | {
            "weight": share_of_loss,
            "words": torch.from_numpy(words_BW),
            "chosen": torch.from_numpy(chosen_BW),
            "targets": torch.from_numpy(ids_BW[chosen_BW]),
        }
