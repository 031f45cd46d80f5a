"""What a row of a task file must look like, by the task's kind."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from moebench.errors import MoebenchError

KEYS = {
    "pair": ("id", "text_a", "text_b", "label", "group"),
    "tagging": ("id", "words", "tags"),
    "qa": ("id", "context", "question", "answers"),
}


def check(kind: str, row: dict[str, Any], labels: Collection[str]) -> None:
    """Check one row of ``kind`` ``pair``, ``tagging`` or ``qa`` (``labels`` is unused for ``qa``).

    Raises:
        MoebenchError: a key too many or too few, a wrong type, an empty text, an unknown label, unequal lengths, or an answer that does not
            stand in its context where it says; the message names the row's id and the key.
    """

    def require(good: bool, key: str, should: str) -> None:
        if not good:
            raise MoebenchError(f"row {row.get('id')!r}: key {key!r} has the value {str(row.get(key))[:200]!r}; should be {should}")

    if sorted(row) != sorted(KEYS[kind]):
        raise MoebenchError(f"row {row.get('id')!r}: keys are {', '.join(sorted(row))}; should be {', '.join(sorted(KEYS[kind]))}")
    for key in KEYS[kind]:
        if key not in ("words", "tags", "answers"):
            require(isinstance(row[key], str) and bool(row[key].strip()), key, "a text that is not empty")
    if kind == "pair":
        require(row["label"] in labels, "label", f"one of {', '.join(labels)}")
    elif kind == "tagging":
        words, tags = row["words"], row["tags"]
        good = isinstance(words, list) and bool(words) and all(isinstance(word, str) and word for word in words)
        require(good, "words", "a list of words that is not empty")
        require(isinstance(tags, list) and len(tags) == len(words), "tags", f"a list of {len(words)} tags, one a word")
        require(all(tag in labels for tag in tags), "tags", f"out of {', '.join(labels)}")
    else:
        answers = row["answers"]
        require(isinstance(answers, list) and bool(answers), "answers", "a list of at least one answer")
        for answer in answers:
            require(isinstance(answer, dict) and sorted(answer) == ["start", "text"], "answers", "objects of text and start")
            text, start = answer["text"], answer["start"]
            require(
                isinstance(text, str) and bool(text) and type(start) is int and start >= 0,
                "answers",
                "objects of a text and its start, 0 or more",
            )
            there = row["context"][start : start + len(text)]
            require(there == text, "answers", f"where the context has them: at {start} it has {there!r}, not {text!r}")


def content(kind: str, row: dict[str, Any]) -> tuple[str, ...]:
    """Return what a model reads of a row, to find the same example twice."""
    if kind == "pair":
        return row["text_a"], row["text_b"]
    return tuple(row["words"]) if kind == "tagging" else (row["context"], row["question"])
