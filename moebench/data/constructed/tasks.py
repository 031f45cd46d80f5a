"""Labelled examples: drawn as meanings, so that labels are exact and tests say the same in every language."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from moebench.data.constructed.edits import Relation, drop, edit, edit_noun, edit_verb, editable, noun_side, put
from moebench.data.constructed.meaning import Event, Sentence
from moebench.data.constructed.realise import Chunk, Realiser, text, tokens
from moebench.data.constructed.world import Sampler, World

NLI: dict[str, Relation] = {"contradiction": "opposite", "entailment": "same", "neutral": "other"}
RIVALRY: tuple[Relation, ...] = ("opposite", "other")
FLIP = 0.25
"""How often an edited verb changes its negation as well."""
VOICE_CHANGE = 2 / 3
"""How often the two sides of a role-swap pair differ in voice.

With case endings a swap changes the form of both participants where the voice stays and of one where it changes; a true
paraphrase of none and of both. At two in three the expected number is the same, in every language.
"""


class Tagged(NamedTuple):
    """One statement, or two that are joined by ``and``."""

    sentences: tuple[Sentence, ...]


class Pair(NamedTuple):
    """Two sentences and what one says about the other."""

    first: Sentence
    second: Sentence
    label: str
    group: str


class Question(NamedTuple):
    """A context, a question put like ``question`` about the slot ``asked``, and which sentence answers it."""

    context: tuple[Sentence, ...]
    question: Sentence
    asked: str
    target: int


def tagged(world: World, sampler: Sampler, rng: random.Random) -> Iterator[Tagged]:
    """Yield sentences to tag, for parts of speech and for names."""
    while True:
        count = 2 if rng.random() < 0.3 else 1
        yield Tagged(tuple(put(sampler.event(), rng) for _ in range(count)))


def nli(world: World, sampler: Sampler, rng: random.Random) -> Iterator[Pair]:
    """Yield premise and hypothesis; three in a row share a premise, one per label.

    The hypothesis replaces one word, and which relation the new word has to the old one is the label. Besides, the three
    share what says nothing: dropped modifiers, a second replacement (a word that follows), negation flipped
    together with the pole, voice and order. So neither overlap nor length nor the premise tells the label.
    """
    group = 0
    while True:
        premise = sampler.event()
        dropped = tuple(part for part in ("adjective", "count", "time", "place") if rng.random() < 0.35)
        base = drop(premise, dropped)
        plan = put(base, rng)
        first = put(premise, rng)
        flip = rng.random() < FLIP
        again = len(editable(base, "same", world)) > 1 and rng.random() < 0.5
        labels = list(NLI)
        rng.shuffle(labels)
        for label in labels:
            slot = rng.choice(editable(base, NLI[label], world))
            event = edit(base, slot, NLI[label], flip, world, rng)
            if again:
                more = [other for other in editable(base, "same", world) if other != slot]
                event = edit(event, rng.choice(more), "same", flip, world, rng)
            yield Pair(first, plan._replace(event=event), label, str(group))
        group += 1


def paraphrase(world: World, sampler: Sampler, rng: random.Random) -> Iterator[Pair]:
    """Yield pairs of sentences; two in a row share the first sentence and the plan, one true and one not.

    Half are role swaps against mere rewording (voice, order), half one replaced word: a synonym against an antonym, another
    verb or adjective, or another noun. Both of a pair share voice, order and negation.
    """
    group = 0
    while True:
        if rng.random() < 0.5:
            pairs = _swap(sampler, rng)
        else:
            pairs = _replacement(world, sampler, rng)
        labelled = [(label, pair) for label, pair in zip(("1", "0"), pairs, strict=True)]
        rng.shuffle(labelled)
        for label, (first, second) in labelled:
            yield Pair(first, second, label, str(group))
        group += 1


def _swap(sampler: Sampler, rng: random.Random) -> tuple[tuple[Sentence, Sentence], tuple[Sentence, Sentence]]:
    event = sampler.event(sampler.swappable)
    while event.time is None and event.place is None:
        event = sampler.event(sampler.swappable)
    adjunct = "time" if event.place is None or (event.time is not None and rng.random() < 0.5) else "place"
    passive, fronts = rng.random() < 0.5, ["", adjunct]
    rng.shuffle(fronts)
    first = Sentence(event, passive, fronts[0])
    second = Sentence(event, passive != (rng.random() < VOICE_CHANGE), fronts[1])
    return (first, second), (first, second._replace(event=event.swapped()))


def _replacement(world: World, sampler: Sampler, rng: random.Random) -> tuple[tuple[Sentence, Sentence], tuple[Sentence, Sentence]]:
    event = sampler.event()
    first, second = put(event, rng), put(event, rng)
    flip = rng.random() < FLIP
    slot = rng.choice([slot for slot in editable(event, "same", world) if slot != "noun"])
    same = edit(event, slot, "same", flip, world, rng)
    if slot == "verb" and not flip and noun_side(event) and "noun" in editable(event, "opposite", world) and rng.random() < 0.5:
        changed = edit_noun(event, "opposite", world, rng)
    else:
        changed = edit(event, slot, rng.choice(RIVALRY), flip, world, rng)
    return (first, second._replace(event=same)), (first, second._replace(event=changed))


def questions(world: World, sampler: Sampler, rng: random.Random) -> Iterator[Question]:
    """Yield questions that exactly one of three or four sentences answers.

    The question is reworded (synonym or negated antonym, voice, dropped modifiers). Another sentence shares what the
    question names of the participants, one more has the question's own verb.
    """
    while True:
        target = sampler.event()
        asked = rng.choice(target.slots)
        reworded = edit_verb(target, "same", rng.random() < FLIP, world, rng) if rng.random() < 0.75 else target
        dropped = tuple(part for part in ("adjective", "count", "time", "place") if part != asked and rng.random() < 0.5)
        question = drop(reworded, dropped)
        same_verb = sampler.event((question.verb.group,))._replace(verb=question.verb, negated=question.negated)
        events = [target, _rival(world, sampler, target, asked, rng), same_verb]
        if rng.random() < 0.5:
            events.append(sampler.event())
        rng.shuffle(events)
        wanted = question.asking(asked)
        if all(sampler.fits(event) for event in events) and sum(world.entails(event, wanted) for event in events) == 1:
            yield Question(tuple(put(event, rng) for event in events), put(question, rng), asked, events.index(target))


def _rival(world: World, sampler: Sampler, target: Event, asked: str, rng: random.Random) -> Event:
    """Return an event with the participants of ``target``, except for the one that is ``asked`` for, and often its adjuncts."""
    if asked == "agent":
        rival = sampler.related(target, "patient")
    elif asked == "patient":
        rival = sampler.related(target, "agent")
    else:
        other, relation = sampler.event(), rng.choice(RIVALRY)
        rival = edit_verb(target, relation, rng.random() < FLIP, world, rng)._replace(time=other.time, place=other.place)
    for slot in ("time", "place"):
        if slot != asked and rng.random() < 0.5:
            rival = rival._replace(**{slot: getattr(target, slot)})
    return rival


# ------------------------------------------------------------------------------------------------------------ into rows


def tagging_row(item: Tagged, realiser: Realiser, entities: bool) -> dict[str, Any]:
    """Write a sentence with a tag per word."""
    words = tokens(realiser.coordination(item.sentences))
    return {"words": [word.form for word in words], "tags": [word.entity if entities else word.upos for word in words]}


def pair_row(item: Pair, realiser: Realiser) -> dict[str, Any]:
    """Write a pair of sentences."""
    first, second = (text(realiser.sentence(sentence)) for sentence in (item.first, item.second))
    return {"text_a": first, "text_b": second, "label": item.label, "group": item.group}


def question_row(item: Question, context: Realiser, question: Realiser) -> dict[str, Any]:
    """Write context and question, each in its language, with the answer's offset in characters."""
    before: list[str] = []
    start, answer = 0, ""
    for index, sentence in enumerate(item.context):
        chunks = context.sentence(sentence)
        if index == item.target:
            start, answer = _span(chunks, item.asked)
            start += sum(len(part) + 1 for part in before)
        before.append(text(chunks))
    asked = text(question.question(item.question, item.asked))
    return {"context": " ".join(before), "question": asked, "answers": [{"text": answer, "start": start}]}


def _span(chunks: list[Chunk], asked: str) -> tuple[int, str]:
    """Return where the asked slot stands in the sentence, and its words."""
    start = 0
    for chunk in chunks:
        if chunk.slot == ("patient" if asked == "count" else asked):
            return (start, chunk.tokens[0].form) if asked == "count" else (start, chunk.text)
        start += len(chunk.text) + 1
    raise AssertionError(f"the sentence has no {asked}")
