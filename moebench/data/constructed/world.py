"""The world: its lemmas and names, what is a kind of what, and which contents belong to training, validation and test."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

from moebench.data.constructed.meaning import HOW_MANY, WHAT, WHEN, WHERE, WHO, Event, Name, Phrase, Term
from moebench.data.text_settings import Constructed

CATEGORIES = ("person", "institution", "animal", "food", "tool")
THINGS = CATEGORIES[2:]
NOUN_OF = {"PER": "person", "ORG": "institution"}
"""Category whose nouns may stand where a name of that kind stands."""

SIGNATURES = (("PER", "PER"), ("ORG", "THING"), ("PER", "LOC"), ("ORG", "ORG"), ("PER", "THING"), ("ORG", "LOC"))
"""Agent and patient that a verb takes; two verb groups each, in this order, as far as the lexicon reaches."""

SHARES = {"PER": 0.4, "ORG": 0.3, "LOC": 0.3}
SEEN = 0.6
"""Share of the names that task training may use; the others are kept for tests. Unlabelled text uses all."""

COUNTS = range(2, 8)
Some = TypeVar("Some")


class World:
    """Inventory of the world that all languages speak about.

    Attributes:
        upos: lemma → part of speech, of the open classes; ``len(upos) == options.lexicon``.
        kinds: category → its nouns; the category is itself a noun, their hypernym.
        signatures: per verb group, what it takes as agent and patient.
        adjectives: number of adjective groups.
        adverbs: lemmas of time adverbs.
        names: kind of name → names; seen ones first.
        name_words: ids of all name words.
        held_out: those that task training never uses.
    """

    def __init__(self, options: Constructed) -> None:
        self.seed = options.seed
        pairs = max(3, options.lexicon // 22)
        self.signatures = tuple(SIGNATURES[group // 2 % len(SIGNATURES)] for group in range(2 * pairs))
        self.adjectives = max(2, options.lexicon // 30)
        self.adverbs = tuple(f"adverb{index}" for index in range(max(3, options.lexicon // 15)))
        terms = {"VERB": ("verb", len(self.signatures)), "ADJ": ("adjective", self.adjectives)}
        self.upos = {
            f"{word}{group}.{pole}.{variant}": upos
            for upos, (word, groups) in terms.items()
            for group in range(groups)
            for pole in (0, 1)
            for variant in (0, 1)
        }
        self.upos |= dict.fromkeys(self.adverbs, "ADV") | dict.fromkeys(CATEGORIES, "NOUN")
        kinds: dict[str, list[str]] = {category: [] for category in CATEGORIES}
        for index in range(options.lexicon - len(self.upos)):
            category = CATEGORIES[index % len(CATEGORIES)]
            kinds[category].append(f"{category}.{index // len(CATEGORIES)}")
        self.kinds = {category: tuple(nouns) for category, nouns in kinds.items()}
        self.hypernym = {noun: category for category, nouns in kinds.items() for noun in nouns}
        self.upos |= dict.fromkeys(self.hypernym, "NOUN")
        self._name(options.names, random.Random(f"{options.seed}/names"))
        self._splits: dict[tuple[str, str], str] = {}

    def _name(self, count: int, rng: random.Random) -> None:
        """Make the names: two words in 40 %; a fifth of ORG and LOC bear the name of a person.

        Seen and held-out names have no word in common.
        """
        self.names: dict[str, tuple[Name, ...]] = {}
        words: dict[bool, list[str]] = {True: [], False: []}  # seen? → first words
        total = 0
        numbers = {"ORG": round(SHARES["ORG"] * count), "LOC": round(SHARES["LOC"] * count)}
        numbers = {"PER": count - sum(numbers.values())} | numbers
        seconds = {seen: [f"surname{int(seen)}.{index}" for index in range(max(2, count // 10))] for seen in (True, False)}
        for kind, number in numbers.items():
            made: list[Name] = []
            for index in range(number):
                seen = index < round(SEEN * number)
                if kind != "PER" and index % 5 == 0:
                    people = [name for name in self.names["PER"] if (name.words[0] in words[True]) == seen]
                    made.append(Name(kind, people[index // 5 if kind == "ORG" else -1 - index // 5].words))
                    continue
                word = f"name{total}"
                total += 1
                words[seen].append(word)
                made.append(Name(kind, (word, rng.choice(seconds[seen])) if rng.random() < 0.4 else (word,)))
            self.names[kind] = tuple(made)
        self.held_out = frozenset(words[False]) | frozenset(seconds[False])
        self.name_words = tuple(words[True] + words[False] + seconds[True] + seconds[False])

    def referent(self, phrase: Phrase) -> str:
        """Return what a phrase stands for when contents are told apart: its name, or the category of its noun."""
        head = phrase.head
        return "+".join(head.words) if isinstance(head, Name) else self.hypernym.get(head, head)

    def split(self, event: Event) -> str:
        """Return ``train``, ``validation`` or ``test`` (70, 10, 20 %): where the event's two participants may meet.

        The unordered pair of participants decides. So swapping roles, changing the verb, moving between a noun and its
        hypernym and adding or dropping modifiers never leave the split.
        """
        first, second = self.referent(event.agent), self.referent(event.patient)
        pair = (first, second) if first < second else (second, first)
        if pair not in self._splits:
            place = zlib.crc32(f"{self.seed}|{pair[0]}|{pair[1]}".encode()) // 7 % 10
            self._splits[pair] = "train" if place < 7 else "validation" if place < 8 else "test"
        return self._splits[pair]

    def entails(self, event: Event, other: Event) -> bool:
        """Whether ``event`` makes ``other`` true, question words in ``other`` being true of anything."""
        return (
            event.verb.group == other.verb.group
            and event.polarity == other.polarity
            and other.time in (None, WHEN, event.time)
            and other.place in (None, WHERE, event.place)
            and self._covers(event.agent, other.agent)
            and self._covers(event.patient, other.patient)
        )

    def _covers(self, phrase: Phrase, other: Phrase) -> bool:
        if other.head in (WHO, WHAT):
            return True
        adjective, wanted = phrase.adjective, other.adjective
        return (
            (other.head == phrase.head or (isinstance(phrase.head, str) and other.head == self.hypernym.get(phrase.head)))
            and other.number in (0, HOW_MANY, phrase.number)
            and (wanted is None or (adjective is not None and adjective[:2] == wanted[:2]))
        )


class Sampler:
    """Draws events whose participants belong to one split.

    Args:
        world: the inventory.
        rng: source of randomness.
        split: ``train``, ``validation`` or ``test``.
        names: ``all`` (unlabelled text), ``seen`` (task training) or ``held out`` (tests: about two in three are held out).
    """

    def __init__(self, world: World, rng: random.Random, split: str, names: str) -> None:
        self.world, self.rng, self.wanted = world, rng, split
        every = world.names.items()
        known = {kind: [name for name in group if names == "all" or name.words[0] not in world.held_out] for kind, group in every}
        fresh = {kind: [name for name in group if name.words[0] in world.held_out] for kind, group in every}
        self._pools = (known, known, known) if names != "held out" else (known, fresh, fresh)
        self._groups = tuple(range(len(world.signatures)))
        self.swappable = tuple(group for group, (agent, patient) in enumerate(world.signatures) if agent == patient)

    def event(self, groups: tuple[int, ...] = ()) -> Event:
        """Draw an event whose verb is of one of ``groups`` (default: any)."""
        while True:
            event = self._draw(self._pick(groups or self._groups))
            if self.fits(event):
                return event

    def related(self, event: Event, keep: str) -> Event:
        """Draw an event with the same ``agent`` or ``patient``; an unrelated one where none turns up soon."""
        side = 0 if keep == "agent" else 1
        signatures = self.world.signatures
        wanted = signatures[event.verb.group][side]
        groups = [group for group in self._groups if signatures[group][side] == wanted]
        for _ in range(30):
            drawn = self._draw(self._pick(groups))
            drawn = drawn._replace(agent=event.agent) if keep == "agent" else drawn._replace(patient=event.patient)
            if self.fits(drawn):
                return drawn
        return self.event()

    def fits(self, event: Event) -> bool:
        """Whether the participants differ from each other and from the place, and belong to this split."""
        agent, patient = self.world.referent(event.agent), self.world.referent(event.patient)
        if isinstance(event.place, Name) and "+".join(event.place.words) in (agent, patient):
            return False
        return agent != patient and self.world.split(event) == self.wanted

    def _draw(self, group: int) -> Event:
        rng = self.rng
        agent_kind, patient_kind = self.world.signatures[group]
        if patient_kind == "THING":
            patient = self._noun(self._pick(THINGS))
        else:
            patient = self._participant(patient_kind, 0.2)
        agent = self._participant(agent_kind, 0.15 if isinstance(patient.head, Name) else 0.0)
        return Event(
            agent,
            Term(group, rng.getrandbits(1), rng.getrandbits(1)),
            rng.random() < 0.15,
            patient,
            self._pick(self.world.adverbs) if rng.random() < 0.5 else None,
            self._name("LOC") if rng.random() < 0.5 else None,
        )

    def _participant(self, kind: str, nouns: float) -> Phrase:
        if kind in NOUN_OF and self.rng.random() < nouns:
            return self._noun(NOUN_OF[kind])
        return Phrase(self._name(kind))

    def _name(self, kind: str) -> Name:
        return self._pick(self._pick(self._pools)[kind])

    def _noun(self, category: str) -> Phrase:
        rng = self.rng
        head = category if rng.random() < 0.25 else self._pick(self.world.kinds[category])
        adjective = Term(self._pick(range(self.world.adjectives)), rng.getrandbits(1), rng.getrandbits(1)) if rng.random() < 0.5 else None
        return Phrase(head, adjective, self._pick(COUNTS) if rng.random() < 0.35 else 0)

    def _pick(self, options: Sequence[Some]) -> Some:
        return options[int(self.rng.random() * len(options))]  # thrice as fast as rng.choice, and most of the time is spent here
