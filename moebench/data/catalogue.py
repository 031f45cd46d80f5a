"""Every task of the suite: what kind it is, what it is scored with, what it is trained on. Imports no torch.

A constructed task never carries a real benchmark's name; ``stands_for`` says which benchmark it is shaped like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moebench.errors import MoebenchError, nearest

Kind = Literal["pair", "tagging", "qa"]

NLI_LABELS = ("contradiction", "entailment", "neutral")
PARAPHRASE_LABELS = ("0", "1")
UPOS_LABELS = (
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
)
ENTITY_LABELS = ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O")


@dataclass(frozen=True)
class Task:
    """One benchmark task.

    Attributes:
        name: the task's name in files, records and tables.
        kind: ``pair`` (two texts, one label), ``tagging`` (a tag per word) or ``qa`` (a span of a context).
        labels: the label set, sorted; empty for ``qa``.
        train: name of the training set; tasks with the same one share a fine-tuned model, as XQuAD and MLQA share SQuAD.
        stands_for: the published benchmark (column of X-MoE's Table 1); equal to the title for the real one.
        rule: which QA normalisation scores it: ``squad``, ``mlqa``, or ``plain`` for languages without a rule; empty for the other kinds.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: str
    stands_for: str
    rule: str = ""

    @property
    def constructed(self) -> bool:
        """Whether the task is made by the generator rather than read from benchmark files."""
        return self.name.startswith("constructed_")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics in the records; the task's value is their mean (for QA (F1 + EM) / 2)."""
        return {"pair": ("accuracy",), "tagging": ("f1",), "qa": ("f1", "em")}[self.kind]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("udpos", "tagging", UPOS_LABELS, "udpos", "POS"),
        Task("panx", "tagging", ENTITY_LABELS, "panx", "NER"),
        Task("xquad", "qa", (), "squad", "XQuAD", rule="squad"),
        Task("mlqa", "qa", (), "squad", "MLQA", rule="mlqa"),
        Task("tydiqa", "qa", (), "tydiqa", "TyDiQA", rule="squad"),
        Task("xnli", "pair", NLI_LABELS, "xnli", "XNLI"),
        Task("pawsx", "pair", PARAPHRASE_LABELS, "pawsx", "PAWS-X"),
        Task("constructed_pos", "tagging", UPOS_LABELS, "constructed_pos", "POS"),
        Task("constructed_ner", "tagging", ENTITY_LABELS, "constructed_ner", "NER"),
        Task("constructed_qa_parallel", "qa", (), "constructed_qa", "XQuAD", rule="plain"),
        Task("constructed_qa_cross", "qa", (), "constructed_qa", "MLQA", rule="plain"),
        Task("constructed_qa_native", "qa", (), "constructed_qa_native", "TyDiQA", rule="plain"),
        Task("constructed_nli", "pair", NLI_LABELS, "constructed_nli", "XNLI"),
        Task("constructed_paraphrase", "pair", PARAPHRASE_LABELS, "constructed_paraphrase", "PAWS-X"),
    )
}


def standard_error(metric: str) -> str:
    """Return the name under which records hold the bootstrap standard error of a task's metric, over test examples."""
    return f"{metric}_bootstrap_se"


def task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        MoebenchError: there is none; the message lists the names and the nearest one.
    """
    if name not in TASKS:
        raise MoebenchError(f"unknown task {name!r}{nearest(name, TASKS)}; tasks are: {', '.join(TASKS)}")
    return TASKS[name]
