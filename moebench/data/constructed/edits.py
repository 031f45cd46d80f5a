"""Changing one word of an event so that the result relates to it in a known way."""

from __future__ import annotations

import random
from typing import Literal

from moebench.data.constructed.meaning import Event, Phrase, Sentence, Term
from moebench.data.constructed.world import World

Relation = Literal["same", "opposite", "other"]
"""The edited event follows from the event, contradicts it, or leaves it open."""


def noun_side(event: Event) -> str:
    """Return which participant is a noun, ``patient`` or ``agent``; ``""`` if both are names."""
    return "patient" if isinstance(event.patient.head, str) else "agent" if isinstance(event.agent.head, str) else ""


def _phrase(event: Event) -> Phrase:
    return event.agent if noun_side(event) == "agent" else event.patient


def _with_phrase(event: Event, phrase: Phrase) -> Event:
    return event._replace(agent=phrase) if noun_side(event) == "agent" else event._replace(patient=phrase)


def edit_verb(event: Event, relation: Relation, flip: bool, world: World, rng: random.Random) -> Event:
    """Put another verb lemma; ``flip`` adds or removes the negation, to the same effect.

    ``same`` takes the synonym (flipped: the antonym), ``opposite`` the antonym (flipped: the synonym), ``other`` a verb
    of another group with the same kinds of participants.
    """
    verb, signatures = event.verb, world.signatures
    group = verb.group
    if relation == "other":
        group = rng.choice([other for other, taken in enumerate(signatures) if taken == signatures[group] and other != group])
    term = _other_lemma(verb, group, flip != (relation == "opposite"), rng)
    return event._replace(verb=term, negated=event.negated != flip)


def edit_adjective(event: Event, relation: Relation, world: World, rng: random.Random) -> Event:
    """Put another adjective: the synonym, the antonym or one of another group."""
    phrase = _phrase(event)
    assert phrase.adjective is not None
    group = phrase.adjective.group
    if relation == "other":
        group = rng.choice([other for other in range(world.adjectives) if other != group])
    return _with_phrase(event, phrase._replace(adjective=_other_lemma(phrase.adjective, group, relation == "opposite", rng)))


def _other_lemma(term: Term, group: int, across: bool, rng: random.Random) -> Term:
    """Return a lemma of ``group``, at the other pole if ``across``, and never ``term`` itself."""
    pole = rng.getrandbits(1) if group != term.group else term.pole ^ across
    variant = 1 - term.variant if (group, pole) == term[:2] else rng.getrandbits(1)
    return Term(group, pole, variant)


def edit_noun(event: Event, relation: Relation, world: World, rng: random.Random) -> Event:
    """Put another noun: the hypernym (``same``), a sister (``opposite``), or, for a hypernym, one of its kinds (``other``)."""
    phrase = _phrase(event)
    head = str(phrase.head)
    if relation == "same":
        head = world.hypernym[head]
    elif relation == "opposite":
        head = rng.choice([kind for kind in world.kinds[world.hypernym[head]] if kind != head])
    else:
        head = rng.choice(world.kinds[head])
    return _with_phrase(event, phrase._replace(head=head))


def editable(event: Event, relation: Relation, world: World) -> list[str]:
    """Return which of ``verb``, ``adjective``, ``noun`` can be edited so that the relation holds."""
    slots = ["verb"]
    phrase = _phrase(event)
    if isinstance(phrase.head, str):
        if phrase.adjective is not None:
            slots.append("adjective")
        if (phrase.head in world.hypernym) != (relation == "other"):
            slots.append("noun")
    return slots


def edit(event: Event, slot: str, relation: Relation, flip: bool, world: World, rng: random.Random) -> Event:
    """Edit one of the slots that `editable` returns."""
    if slot == "verb":
        return edit_verb(event, relation, flip, world, rng)
    return (edit_adjective if slot == "adjective" else edit_noun)(event, relation, world, rng)


def drop(event: Event, what: tuple[str, ...]) -> Event:
    """Leave out modifiers: any of ``adjective``, ``count``, ``time``, ``place``, where they are there."""
    if "time" in what:
        event = event._replace(time=None)
    if "place" in what:
        event = event._replace(place=None)
    if noun_side(event):
        phrase = _phrase(event)
        adjective = None if "adjective" in what else phrase.adjective
        event = _with_phrase(event, phrase._replace(adjective=adjective, number=0 if "count" in what else phrase.number))
    return event


def put(event: Event, rng: random.Random, passive: float = 0.3) -> Sentence:
    """Choose voice and order at random."""
    adjuncts = [slot for slot in ("time", "place") if getattr(event, slot) is not None]
    front = rng.choice(adjuncts) if adjuncts and rng.random() < 0.4 else ""
    return Sentence(event, rng.random() < passive, front)
