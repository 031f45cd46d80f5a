"""F1 and exact match of extracted answers, with the normalisation rules of SQuAD v1.1 and MLQA.

Rules, all on lower-cased text with collapsed white space:

- ``squad``: the English rule for every language (Rajpurkar et al., arXiv 1606.05250): ASCII punctuation and a / an / the go.
- ``mlqa``: the language's own (Lewis et al., arXiv 1910.07475): all Unicode and ASCII punctuation and the articles of the language of the
  context go; each Chinese character is a token. Seven languages; for any other the public script fails, and so does this.
- ``plain``: Unicode and ASCII punctuation goes, no articles; for languages nobody wrote a rule for, such as constructed ones.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Rule = Literal["squad", "mlqa", "plain"]

ENGLISH = r"\b(a|an|the)\b"
ARTICLES = {
    "ar": "ال",  # wherever it stands: the public pattern's first branch, anchored after a space, cannot match
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": ENGLISH,
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "hi": "",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "zh": "",
}
HAN = re.compile("([\u4e00-\u9fa5])")


class AnswerScores(NamedTuple):
    """Scores of one question, or their mean over questions, in 0..1."""

    f1: float
    em: float


def normalise(text: str, rule: Rule, language: str = "") -> str:
    """Return the text as it is compared: tokens joined by single spaces.

    Args:
        text: an answer.
        rule: see the top of the file.
        language: code of the answer's language; read by the rule ``mlqa`` alone.

    Raises:
        ValueError: unknown rule, or a language that the rule ``mlqa`` does not know.
    """
    if rule not in ("squad", "mlqa", "plain"):
        raise ValueError(f"unknown rule {rule!r}; rules are: squad, mlqa, plain")
    if rule == "mlqa" and language not in ARTICLES:
        raise ValueError(f"the rule 'mlqa' has no language {language!r}; languages are: {', '.join(ARTICLES)}")
    kept = "".join(
        character
        for character in text.lower()
        if character not in string.punctuation and (rule == "squad" or not unicodedata.category(character).startswith("P"))
    )
    articles = {"squad": ENGLISH, "mlqa": ARTICLES.get(language, ""), "plain": ""}[rule]
    if articles:
        kept = re.sub(articles, " ", kept)
    if rule == "mlqa" and language == "zh":
        kept = HAN.sub(r" \1 ", kept)
    return " ".join(kept.split())


def f1(prediction: str, answer: str, rule: Rule, language: str = "") -> float:
    """Harmonic mean of precision and recall over the bags of tokens; 0 if nothing is shared, two empty texts included."""
    predicted = normalise(prediction, rule, language).split()
    there = normalise(answer, rule, language).split()
    shared = (Counter(predicted) & Counter(there)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(there)
    return 2 * precision * recall / (precision + recall)


def exact_match(prediction: str, answer: str, rule: Rule, language: str = "") -> float:
    """1 if both texts are equal when normalised, two empty ones included, else 0."""
    return float(normalise(prediction, rule, language) == normalise(answer, rule, language))


def question_scores(
    predictions: Sequence[str | None], answers: Sequence[Sequence[str]], rule: Rule, language: str = ""
) -> list[AnswerScores]:
    """Best F1 and best exact match over the answers of each question; arguments and errors as in `answer_scores`."""
    if not predictions:
        raise ValueError("question answering needs at least one question")
    if not all(answers):
        raise ValueError("a question has no gold answer")

    def best(prediction: str | None, gold: Sequence[str], metric: Callable[[str, str, Rule, str], float]) -> float:
        return 0.0 if prediction is None else max(metric(prediction, answer, rule, language) for answer in gold)

    return [AnswerScores(best(said, gold, f1), best(said, gold, exact_match)) for said, gold in zip(predictions, answers, strict=True)]


def mean_scores(scores: Sequence[AnswerScores]) -> AnswerScores:
    """Mean over questions, of which there must be one."""
    return AnswerScores(sum(one.f1 for one in scores) / len(scores), sum(one.em for one in scores) / len(scores))


def answer_scores(predictions: Sequence[str | None], answers: Sequence[Sequence[str]], rule: Rule, language: str = "") -> AnswerScores:
    """Mean over questions of the best score over the question's answers.

    Args:
        predictions: one answer a question; None for an unanswered one, which scores 0.
        answers: the gold answers of each question.
        rule: normalisation.
        language: language of the contexts, and so of the answers.

    Raises:
        ValueError: no question, different lengths, a question without gold answer, unknown rule or language.
    """
    return mean_scores(question_scores(predictions, answers, rule, language))
