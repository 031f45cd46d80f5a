"""From a meaning to the words of a language: order, agreement, adpositions, voice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from moebench.data.constructed.language import CASES, FUNCTION_WORDS, Language
from moebench.data.constructed.meaning import HOW_MANY, WHEN, WHERE, Event, Name, Phrase, Sentence, Term

ORDERS = {
    "SVO": ("subject", "verb", "object", "place", "time"),
    "SOV": ("subject", "time", "place", "object", "verb"),
    "VSO": ("verb", "subject", "object", "place", "time"),
}


class Token(NamedTuple):
    """A word with its universal part of speech and its IOB2 entity tag."""

    form: str
    upos: str
    entity: str = "O"


class Chunk(NamedTuple):
    """Words that stay together; ``slot`` says which slot of the event they fill, ``""`` none (adpositions, marks)."""

    slot: str
    text: str
    tokens: tuple[Token, ...]


def _chunk(slot: str, tokens: Iterable[Token]) -> Chunk:
    tokens = tuple(tokens)
    return Chunk(slot, " ".join(token.form for token in tokens), tokens)


class Realiser:
    """Puts events into one language. Phrases are kept once made: the same few thousand return all the time."""

    def __init__(self, language: Language) -> None:
        self.language = language
        kind = language.typology
        self._order = ORDERS[kind.order]
        self._fused_by = kind.morphology == "agglutinating"
        self._function = {word: Token(language.word(word), upos) for word, upos in FUNCTION_WORDS.items()}
        self._phrases: dict[tuple[str, Phrase, str], tuple[Chunk, ...]] = {}
        self._verbs: dict[tuple[Term, bool, bool, bool], tuple[Chunk, ...]] = {}
        self._adjuncts: dict[tuple[str, Name | str | None], tuple[Chunk, ...]] = {("time", None): (), ("place", None): ()}
        self._stop = _chunk("", [Token(language.mark(False), "PUNCT")])
        self._question = _chunk("", [Token(language.mark(True), "PUNCT")])

    def sentence(self, sentence: Sentence, connective: str = "") -> list[Chunk]:
        """Return the chunks of a statement, its full stop included."""
        return [*self._opening(connective), *self._clause(sentence.event, sentence.passive, sentence.front), self._stop]

    def question(self, sentence: Sentence, asked: str) -> list[Chunk]:
        """Return the chunks of a question about the slot ``asked`` of the event."""
        front = ("patient" if asked == "count" else asked) if self.language.typology.fronting else ""
        return [*self._clause(sentence.event.asking(asked), sentence.passive, front), self._question]

    def coordination(self, sentences: Iterable[Sentence]) -> list[Chunk]:
        """Return the chunks of statements joined by ``and``."""
        chunks: list[Chunk] = []
        for sentence in sentences:
            chunks += self._opening("and" if chunks else "")
            chunks += self._clause(sentence.event, sentence.passive, sentence.front)
        return [*chunks, self._stop]

    def answer(self, event: Event, asked: str) -> list[Chunk]:
        """Return the chunks of a short answer: the words of the slot, or of the verb, alone."""
        if asked == "verb":
            return [*self._verb(event.verb, event.negated, False, event.agent.number != 0), self._stop]
        if asked == "count":
            return [_chunk("", [self._function[f"number{event.patient.number}"]]), self._stop]
        if asked in ("time", "place"):
            return [*self._adjunct(asked, event.time if asked == "time" else event.place), self._stop]
        return [*self._phrase(asked, event.agent if asked == "agent" else event.patient, CASES[0]), self._stop]

    def _opening(self, connective: str) -> tuple[Chunk, ...]:
        return (_chunk("", [self._function[connective]]),) if connective else ()

    def _clause(self, event: Event, passive: bool, front: str) -> list[Chunk]:
        if passive:
            subject = self._phrase("patient", event.patient, CASES[0])
            other = self._phrase("agent", event.agent, "instrumental") if self._fused_by else self._adposition("by", "agent", event.agent)
            plural = event.patient.number != 0
        else:
            subject = self._phrase("agent", event.agent, CASES[0])
            other = self._phrase("patient", event.patient, CASES[1])
            plural = event.agent.number != 0
        parts = {
            "subject": subject,
            "verb": self._verb(event.verb, event.negated, passive, plural),
            "object": other,
            "place": self._adjunct("place", event.place),
            "time": self._adjunct("time", event.time),
        }
        if front in ("agent", "patient"):
            front = "subject" if (front == "patient") == passive else "object"
        chunks = list(parts[front]) if front else []
        for part in self._order:
            if part != front:
                chunks += parts[part]
        return chunks

    def _adjunct(self, slot: str, filler: Name | str | None) -> tuple[Chunk, ...]:
        chunks = self._adjuncts.get((slot, filler))
        if chunks is None:
            if filler in (WHEN, WHERE):
                chunks = (_chunk(slot, [self._function[str(filler)]]),)
            elif isinstance(filler, Name):
                chunks = self._adposition("in", slot, Phrase(filler))
            else:
                chunks = (_chunk(slot, [Token(self.language.adverb(str(filler)), "ADV")]),)
            self._adjuncts[slot, filler] = chunks
        return chunks

    def _adposition(self, word: str, slot: str, phrase: Phrase) -> tuple[Chunk, ...]:
        adposition, chunks = _chunk("", [self._function[word]]), self._phrase(slot, phrase, "oblique")
        return (*chunks, adposition) if self.language.typology.postpositions else (adposition, *chunks)

    def _verb(self, verb: Term, negated: bool, passive: bool, plural: bool) -> tuple[Chunk, ...]:
        key = verb, negated, passive, plural
        if key not in self._verbs:
            tokens = [Token(self.language.verb(_lemma("verb", verb), passive, plural), "VERB")]
            if passive and self.language.typology.morphology == "isolating":
                tokens.insert(0, self._function["passive"])
            if negated:
                tokens.insert(0, self._function["not"])
            self._verbs[key] = (_chunk("verb", reversed(tokens) if self.language.typology.order == "SOV" else tokens),)
        return self._verbs[key]

    def _phrase(self, slot: str, phrase: Phrase, case: str) -> tuple[Chunk, ...]:
        key = slot, phrase, case
        chunks = self._phrases.get(key)
        if chunks is None:
            chunks = self._phrases[key] = (_chunk(slot, self._words(phrase, case)),)
        return chunks

    def _words(self, phrase: Phrase, case: str) -> list[Token]:
        head, language = phrase.head, self.language
        if isinstance(head, Name):
            last = len(head.words) - 1
            forms = [language.noun(word, case, False, last=index == last) for index, word in enumerate(head.words)]
            return [Token(form, "PROPN", f"{'I' if index else 'B'}-{head.kind}") for index, form in enumerate(forms)]
        plural = phrase.number != 0
        if head in self._function:
            return [self._function[head]]
        tokens = [Token(language.noun(head, case, plural), "NOUN")]
        if phrase.adjective is not None:
            adjective = Token(language.adjective(_lemma("adjective", phrase.adjective), head, case, plural), "ADJ")
            tokens.insert(0 if language.typology.adjective_first else 1, adjective)
        if plural:
            tokens.insert(0, self._function["how many" if phrase.number == HOW_MANY else f"number{phrase.number}"])
        return tokens


def _lemma(part: str, term: Term) -> str:
    return f"{part}{term.group}.{term.pole}.{term.variant}"


def text(chunks: Iterable[Chunk]) -> str:
    """Join chunks: every word and mark stands between single spaces."""
    return " ".join(chunk.text for chunk in chunks)


def tokens(chunks: Iterable[Chunk]) -> list[Token]:
    """Return the words of chunks, in order."""
    return [token for chunk in chunks for token in chunk.tokens]
