"""Multiple-choice tasks for language models, made in the constructed languages: exact labels, in the pivot no shortcut on the surface."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from moebench.data.constructed import PATIENCE, ConstructedSource, corpus
from moebench.data.constructed.corpus import Line
from moebench.data.constructed.edits import Relation, drop, edit, editable, put
from moebench.data.constructed.meaning import Event, Sentence, Term
from moebench.data.constructed.realise import Realiser, text
from moebench.data.constructed.word_classes import word_classes
from moebench.data.constructed.world import Sampler
from moebench.data.text_settings import Constructed
from moebench.errors import MoebenchError, nearest

Item = dict[str, Any]
Saying = Callable[[Realiser], str]
"""Puts a meaning into the words of a language."""
Draft = tuple[Saying, list[Saying], int]
"""Context, choices, index of the right one."""

TASKS = ("agreement", "role", "entailment", "continuation")
RESTATED: dict[str, Relation] = {"same": "same", "but": "opposite"}
"""Connective → how what follows it relates to the event before."""
PATIENTS = {"who": ("PER", "PER"), "what": ("PER", "LOC")}
"""Question word → verbs whose patient it asks for. Their agents are alike, so the subject does not tell one from the other."""


class ChoiceSource:
    """Makes text to train on and items to choose from, both in one language; the same options give the same bytes in any process.

    The participants of a test item never meet in the training text (``World.split``), so no item stands in it. Items with the same id
    say the same in all languages.

    Args:
        options: how the languages are made.
        language: which of them; 0 is the pivot.
    """

    revision = f"{ConstructedSource.revision}-choices-1"
    """That of the text, and of the items: raised by hand whenever the same options give others."""

    def __init__(self, options: Constructed, language: int = 0) -> None:
        self.source = ConstructedSource(options)
        self.options, self.world = options, self.source.world
        self.pivot = self.source.speakers[self.source.pivot]
        self.language = self.source.languages[language]
        self.speaker = self.source.speakers[self.language]
        self.makers = {"agreement": self._agreement, "role": self._role, "entailment": self._entailment, "continuation": self._continuation}

    def documents(self, split: str) -> Iterator[str]:
        """Yield the documents that `ConstructedSource.documents` has in the language: ``options.documents``, for ``validation`` a tenth."""
        count = self.options.documents if split == "train" else (self.options.documents + 9) // 10
        for document in corpus.documents(self.world, f"{self.options.seed}/documents/{self.language}/{split}", split, count):
            yield corpus.written(document, self.speaker)

    def word_classes(self) -> dict[str, int]:
        """Word or mark → its class, a code (`moebench.data.constructed.word_classes.CLASSES`); of every one that documents can hold."""
        return word_classes(self.speaker.language, self.world)

    def items(self, task: str) -> list[Item]:
        """Return ``options.test`` different items of a task: ``id``, ``context``, ``choices``, ``label`` (index of the right choice).

        The choices of an item have the same number of words. A choice continues its context after a space. What makes items different,
        and which lines `continuation` takes, is decided in the pivot, so that no language leaves out what another has.

        Raises:
            MoebenchError: no such task, or the lexicon and the names are too small for that many different items.
        """
        if task not in TASKS:
            raise MoebenchError(f"unknown multiple-choice task {task!r}{nearest(task, TASKS)}; tasks are: {', '.join(TASKS)}")
        made: dict[tuple[str, ...], Item] = {}
        repeats = 0
        for context, choices, label in self.makers[task](random.Random(f"{self.options.seed}/choices/{task}")):
            key = tuple(say(self.pivot) for say in (context, *choices))
            repeats = repeats + 1 if key in made else 0
            if key not in made:
                first, *others = key if self.speaker is self.pivot else [say(self.speaker) for say in (context, *choices)]
                made[key] = {"id": str(len(made)), "context": first, "choices": others, "label": label}
            if len(made) == self.options.test:
                break
            if repeats > PATIENCE:
                raise MoebenchError(
                    f"constructed data: no more than {len(made)} different items of {task}, {self.options.test} wanted:"
                    " raise 'lexicon' or 'names', or ask for fewer"
                )
        return list(made.values())

    def _agreement(self, rng: random.Random) -> Iterator[Draft]:
        """Yield a question twice, with the question word that the clause calls for and with another.

        ``when`` or ``where``: which of time and place the clause leaves open. ``who`` or ``what``: which kind of patient the verb
        takes, people being the subject and standing in between. Four items in a row have one of the four words each.
        """
        sampler = self._sampler(rng)
        groups = {
            word: tuple(group for group, taken in enumerate(self.world.signatures) if taken == kinds) for word, kinds in PATIENTS.items()
        }
        for place, word in enumerate(itertools.cycle(("when", "where", "who", "what"))):
            event = sampler.event(groups.get(word, ()))
            while word in ("when", "where") and None in (event.time, event.place):
                event = sampler.event()
            if word in groups:
                asked, other = "patient", "what" if word == "who" else "who"
                sentence = Sentence(drop(event, tuple(slot for slot in ("time", "place") if rng.random() < 0.5)))
            else:
                asked, other = ("time", "where") if word == "when" else ("place", "when")
                sentence = put(event, rng)
            right, wrong = (partial(_question, sentence, asked, chosen) for chosen in (word, other))
            label = place // 4 % 2
            yield partial(_statement, put(event, rng)), [wrong, right] if label else [right, wrong], label

    def _role(self, rng: random.Random) -> Iterator[Draft]:
        """Yield an event and, in the other voice, a question about it with its answer, against the same with agent and patient swapped.

        The next item has the choices of the one before after the swapped event: what is right for one is wrong for the other, so nothing
        but the relation of context and choice tells.
        """
        sampler = self._sampler(rng)
        while True:
            event = sampler.event(sampler.swappable)
            asked = rng.choice(("agent", "patient"))
            told, question = put(event, rng), put(drop(event, tuple(slot for slot in ("time", "place") if rng.random() < 0.5)), rng)
            told = told._replace(passive=not question.passive)
            both = (event, event.swapped())
            choices: list[Saying] = [
                partial(_exchange, question._replace(event=put_in), whole, asked)
                for whole, put_in in zip(both, (question.event, question.event.swapped()), strict=True)
            ]
            yield from _paired([(partial(_statement, told._replace(event=one)), label) for label, one in enumerate(both)], choices, rng)

    def _entailment(self, rng: random.Random) -> Iterator[Draft]:
        """Yield a premise and the connective of restatement or of contradiction; to choose: what follows from it, what contradicts it.

        The two hypotheses differ in one word. The next item has the same premise and choices after the other connective.
        """
        sampler = self._sampler(rng)
        while True:
            event = sampler.event()
            slot = rng.choice(editable(event, "same", self.world))
            flip = rng.random() < 0.25
            plan = put(
                drop(event, tuple(part for part in ("adjective", "count", "time", "place") if part != slot and rng.random() < 0.3)), rng
            )
            edited = [edit(plan.event, slot, relation, flip, self.world, rng) for relation in RESTATED.values()]
            choices: list[Saying] = [partial(_statement, plan._replace(event=one)) for one in edited]
            premise = put(event, rng)
            contexts: list[tuple[Saying, int]] = [(partial(_premise, premise, word), label) for label, word in enumerate(RESTATED)]
            yield from _paired(contexts, choices, rng)

    def _continuation(self, rng: random.Random) -> Iterator[Draft]:
        """Yield the beginning of a document; to choose: its next line, and three that would be other documents'.

        The next line restates or contradicts the event before. The others have its participants, order and length but other verbs that take
        such participants: of another meaning, or of the wrong pole. No choice's verb stands in the context, but where a language has the
        same word for it as for a noun.
        """
        count = 0
        for document in corpus.documents(self.world, f"{self.options.seed}/choices/documents", "test", 10**9):
            place = rng.randrange(1, len(document))
            line = document[place]
            if line.connective not in RESTATED:
                continue
            known = set(corpus.written(document[:place], self.pivot).split())
            event = line.sentence.event
            verbs = [verb for verb in self._verbs(event) if self.pivot.language.verb(_lemma(verb), False, False) not in known]
            others = [verb for verb in verbs if (verb.group, verb.pole) != (event.verb.group, event.verb.pole)]
            if event.verb not in verbs or len(others) < 3:
                continue
            label = count % 4
            wrong = rng.sample(others, 3)
            choices: list[Saying] = [partial(_line, line, verb) for verb in [*wrong[:label], event.verb, *wrong[label:]]]
            count += 1
            yield partial(corpus.written, document[:place]), choices, label

    def _verbs(self, event: Event) -> list[Term]:
        """Return all verbs that take the participants of an event."""
        signatures = self.world.signatures
        groups = [group for group, taken in enumerate(signatures) if taken == signatures[event.verb.group]]
        return [Term(group, pole, variant) for group in groups for pole in (0, 1) for variant in (0, 1)]

    def _sampler(self, rng: random.Random) -> Sampler:
        return Sampler(self.world, rng, "test", "held out")


def _paired(contexts: list[tuple[Saying, int]], choices: list[Saying], rng: random.Random) -> Iterator[Draft]:
    """Yield both contexts with the same choices, contexts and choices in random order."""
    flip = rng.getrandbits(1)
    for context, label in sorted(contexts, key=lambda pair: rng.random()):
        yield context, choices[::-1] if flip else choices, label ^ flip


# --------------------------------------------------------------------------------------------------------------- sayings


def _statement(sentence: Sentence, speaker: Realiser) -> str:
    return text(speaker.sentence(sentence))


def _premise(sentence: Sentence, connective: str, speaker: Realiser) -> str:
    """A statement and the connective that opens the next one."""
    return f"{_statement(sentence, speaker)} {speaker.language.word(connective)}"


def _question(sentence: Sentence, asked: str, word: str, speaker: Realiser) -> str:
    """A question about a slot, with any question word where the language has it: first, or in place."""
    return " ".join(speaker.language.word(word) if chunk.slot == asked else chunk.text for chunk in speaker.question(sentence, asked))


def _exchange(question: Sentence, whole: Event, asked: str, speaker: Realiser) -> str:
    """A question about a slot, and the answer out of the whole event."""
    return f"{text(speaker.question(question, asked))} {text(speaker.answer(whole, asked))}"


def _line(line: Line, verb: Term, speaker: Realiser) -> str:
    """A line of a document with another verb."""
    sentence = line.sentence._replace(event=line.sentence.event._replace(verb=verb))
    return text(speaker.sentence(sentence, line.connective))


def _lemma(verb: Term) -> str:
    return f"verb{verb.group}.{verb.pole}.{verb.variant}"
