"""Shallow baselines of tasks on images with text: what one side gives away. A model's score counts only above the best of them.

N training rows, L test rows, T visual tokens of a row, K entries of the codebook, P pixels. All are pure functions of training and test
data and draw nothing at random.

| baseline | task | function |
|---|---|---|
| majority | questions, statements | `by_text` without texts |
| text alone | questions, statements | `by_text` of the whole text, then of its form |
| images alone | questions, statements | `by_tokens`; of a pair, `both` images' tokens |
| text, bag of tokens | questions, statements | `by_text_and_tokens`: sees both sides, but no places and no counting across tokens |
| most frequent caption | captions | `most_frequent` |
| nearest image's caption | captions | `nearest_images` |
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.naive_bayes import MultinomialNB

from moebench.data.images import AT_ONCE
from moebench.data.visual_tokens import nearest


def most_frequent(texts: Iterable[str]) -> str:
    """Return the most frequent text, the first in the alphabet if several are."""
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text))


def by_text(train: Sequence[Sequence[str]], answers: Sequence[str], test: Sequence[Sequence[str]]) -> list[str]:
    """The most frequent training answer to the same text; failing that of the same form, and so on; failing all, of all rows.

    Args:
        train: for each training row its keys, the finest first: its question and its type, as an example. Empty: the majority.
        answers: of the training rows, N.
        test: the keys of each test row.

    Returns:
        L answers.
    """
    seen = defaultdict(list)
    for keys, answer in zip(train, answers, strict=True):
        for level, key in enumerate(keys):
            seen[level, key].append(answer)
    best = {key: most_frequent(those) for key, those in seen.items()}
    majority = most_frequent(answers)
    return [next((best[level, key] for level, key in enumerate(keys) if (level, key) in best), majority) for keys in test]


def both(left_NT: np.ndarray, right_NT: np.ndarray, size: int) -> np.ndarray:
    """Tokens of pairs of images, (N, 2 T): those of the right image have numbers of their own, K to 2 K - 1."""
    return np.hstack([left_NT, right_NT + size])


def by_tokens(train_NT: np.ndarray, answers: Sequence[str], test_LT: np.ndarray, size: int) -> list[str]:
    """What naive Bayes (scikit-learn's multinomial, its smoothing of 1) makes of the bag of visual tokens, whatever is asked.

    Args:
        train_NT: tokens of each training row's image.
        answers: of the training rows, N.
        test_LT: tokens of each test row's image.
        size: K; of pairs of images 2 K.

    Returns:
        L answers.
    """
    model = MultinomialNB().fit(_bags(train_NT, size), list(answers))
    parts = [model.predict(_bags(test_LT[begin : begin + AT_ONCE], size)) for begin in range(0, len(test_LT), AT_ONCE)]
    return [str(answer) for part in parts for answer in part]


def by_text_and_tokens(
    train: Sequence[str], train_NT: np.ndarray, answers: Sequence[str], test: Sequence[str], test_LT: np.ndarray, size: int
) -> list[str]:
    """`by_tokens` for each text by itself, fitted on the training rows with the same text; of a new text the majority of all.

    Args:
        train: text of each training row.
        train_NT: tokens of its image, or of both.
        answers: its answer.
        test: text of each test row.
        test_LT: tokens of its image, or of both.
        size: K; of pairs of images 2 K.

    Returns:
        L answers.
    """
    seen: dict[str, list[int]] = defaultdict(list)
    asked: dict[str, list[int]] = defaultdict(list)
    for places, texts in ((seen, train), (asked, test)):
        for at, text in enumerate(texts):
            places[text].append(at)
    said = [most_frequent(answers)] * len(test)
    for text, rows in asked.items():
        if mine := seen.get(text):
            for at, answer in zip(rows, by_tokens(train_NT[mine], [answers[at] for at in mine], test_LT[rows], size), strict=True):
                said[at] = answer
    return said


def _bags(ids_NT: np.ndarray, size: int) -> np.ndarray:
    rows = np.arange(len(ids_NT))[:, None]
    return np.bincount((rows * size + ids_NT).ravel(), minlength=len(ids_NT) * size).reshape(-1, size)


def nearest_images(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Which training image (N, ...) uint8 has the least squared distance to each test image, the first of equals: (L,) int64."""
    return nearest(test.reshape(len(test), -1), train.reshape(len(train), -1))[0]
