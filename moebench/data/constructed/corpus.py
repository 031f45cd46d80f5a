"""Unlabelled text: short documents of events, restatements, contradictions, questions and answers; phrases and sentences to translate."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from moebench.data.constructed.edits import Relation, drop, edit, editable, put
from moebench.data.constructed.meaning import Event, Sentence
from moebench.data.constructed.realise import Realiser, text
from moebench.data.constructed.world import Sampler, World

PHRASES = 2 / 3
"""Share of the translated texts that are no sentences."""


class Line(NamedTuple):
    """A sentence of a document: a statement with or without connective, a question, or its short answer."""

    kind: str
    sentence: Sentence
    connective: str = ""
    asked: str = ""


def documents(world: World, seed: str, split: str, count: int) -> Iterator[list[Line]]:
    """Yield ``count`` documents of three to six lines; every name occurs in them."""
    rng = random.Random(seed)
    sampler = Sampler(world, rng, split, "all")
    for _ in range(count):
        yield _document(world, sampler, rng, rng.randint(3, 6))


def phrase_book(world: World, seed: str, split: str, count: int) -> Iterator[Line]:
    """Yield ``count`` lines to translate: two of three are a phrase or a verb alone, put like an answer, the others a statement."""
    rng = random.Random(seed)
    sampler = Sampler(world, rng, split, "all")
    for _ in range(count):
        event = sampler.event()
        if rng.random() < PHRASES:
            yield Line("answer", Sentence(event), asked=rng.choice([*event.slots, "verb"]))
        else:
            yield Line("statement", put(event, rng))


def _document(world: World, sampler: Sampler, rng: random.Random, length: int) -> list[Line]:
    event = sampler.event()
    lines = [Line("statement", put(event, rng))]
    while len(lines) < length:
        draw = rng.random()
        if draw < 0.4:
            event = sampler.related(event, "agent" if rng.random() < 0.5 else "patient")
            lines.append(Line("statement", put(event, rng), "and" if rng.random() < 0.3 else ""))
        elif draw < 0.65:
            lines.append(Line("statement", put(_reworded(event, "same", world, rng), rng), "same"))
        elif draw < 0.8:
            lines.append(Line("statement", put(_reworded(event, "opposite", world, rng), rng), "but"))
        elif len(lines) + 2 <= length:
            asked = rng.choice(event.slots)
            question = put(drop(event, tuple(slot for slot in ("time", "place") if slot != asked and rng.random() < 0.5)), rng)
            lines += [Line("question", question, asked=asked), Line("answer", Sentence(event), asked=asked)]
    return lines


def _reworded(event: Event, relation: Relation, world: World, rng: random.Random) -> Event:
    slot = rng.choice(editable(event, relation, world))
    edited = edit(event, slot, relation, rng.random() < 0.25, world, rng)
    return drop(edited, tuple(part for part in ("adjective", "count", "time", "place") if part != slot and rng.random() < 0.3))


def written(lines: list[Line], realiser: Realiser) -> str:
    """Write a document in one language."""
    parts = []
    for line in lines:
        if line.kind == "statement":
            parts.append(text(realiser.sentence(line.sentence, line.connective)))
        elif line.kind == "question":
            parts.append(text(realiser.question(line.sentence, line.asked)))
        else:
            parts.append(text(realiser.answer(line.sentence.event, line.asked)))
    return " ".join(parts)
