"""Meanings: what a sentence says, whatever the language. Plain tuples, so that they hash, compare and copy fast."""

from __future__ import annotations

from typing import Any, NamedTuple

WHO, WHAT, WHEN, WHERE = "who", "what", "when", "where"
HOW_MANY = -1
"""The number of a phrase whose number is asked for."""

SLOTS = ("agent", "patient", "time", "place", "count")
"""What can be asked about an event."""


class Name(NamedTuple):
    """A named entity; ``kind`` is PER, ORG or LOC, ``words`` are ids of name words."""

    kind: str
    words: tuple[str, ...]


class Term(NamedTuple):
    """A verb or an adjective: two opposite poles a group, two synonyms (variants) a pole."""

    group: int
    pole: int
    variant: int


class Phrase(NamedTuple):
    """A noun phrase: a name, a noun (lemma id), or a question word; number 0 means that none is given."""

    head: Name | str
    adjective: Term | None = None
    number: int = 0


class Event(NamedTuple):
    """One clause. ``negated`` turns the verb into its opposite pole and touches nothing else."""

    agent: Phrase
    verb: Term
    negated: bool
    patient: Phrase
    time: str | None
    place: Name | str | None

    @property
    def polarity(self) -> bool:
        """Pole of the verb once negation is taken into account."""
        return bool(self.verb.pole) != self.negated

    def swapped(self) -> Event:
        """Return the event with agent and patient exchanged."""
        return self._replace(agent=self.patient, patient=self.agent)

    def asking(self, slot: str) -> Event:
        """Return the event as a question about ``slot``: the slot holds a question word."""
        if slot == "count":
            return self._replace(patient=self.patient._replace(number=HOW_MANY))
        changed: dict[str, Any] = {"time": WHEN, "place": WHERE, "agent": Phrase(WHO), "patient": Phrase(self._patient_word)}
        return self._replace(**{slot: changed[slot]})

    @property
    def _patient_word(self) -> str:
        head = self.patient.head
        if isinstance(head, Name):
            return WHAT if head.kind == "LOC" else WHO
        return WHO if head.startswith(("person", "institution")) else WHAT

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that hold something, in the order of `SLOTS`."""
        filled = (True, True, self.time is not None, self.place is not None, self.patient.number != 0)
        return tuple(slot for slot, there in zip(SLOTS, filled, strict=True) if there)


class Sentence(NamedTuple):
    """An event and how it is put: voice, and which adjunct stands first (``time``, ``place`` or ``""``)."""

    event: Event
    passive: bool = False
    front: str = ""
