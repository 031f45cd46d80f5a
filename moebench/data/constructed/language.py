"""Languages: eight types, and the lexicon and endings that a seed gives each of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from moebench.data.constructed.scripts import mark, spell
from moebench.data.constructed.world import COUNTS, World
from moebench.data.text_settings import Constructed

CASES = ("nominative", "accusative", "oblique", "instrumental")
FUNCTION_WORDS = {
    "in": "ADP",
    "by": "ADP",
    "not": "PART",
    "passive": "AUX",
    "and": "CCONJ",
    "but": "CCONJ",
    "same": "ADV",
    "who": "PRON",
    "what": "PRON",
    "when": "ADV",
    "where": "ADV",
    "how many": "DET",
} | {f"number{count}": "NUM" for count in COUNTS}
HOMONYMS = 1 / 3
"""Share of a language's own verbs and adjectives that look like one of its own nouns."""
LONGEST = 1000
"""Attempts at a new word before syllables are added."""


@dataclass(frozen=True)
class Typology:
    """What kind of language it is.

    Attributes:
        adjective_first: adjectives before their noun.
        postpositions: adpositions after their phrase.
        fronting: a question word opens its sentence.
        onsets: beginnings of syllables; repeated ones are frequent.
        vowels: sounds that carry a syllable.
        codas: ends of syllables, a blank being an open syllable.
    """

    name: str
    script: str
    order: Literal["SVO", "SOV", "VSO"]
    morphology: Literal["isolating", "agglutinating", "fusional"]
    adjective_first: bool
    postpositions: bool
    fronting: bool
    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    codas: tuple[str, ...]


def _syllables(onsets: str, vowels: str, codas: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return tuple(onsets.split()), tuple(vowels), tuple("" if coda == "-" else coda for coda in codas.split())


# The codes have four letters because ISO 639 codes have two or three.
TYPOLOGIES = (
    Typology("toma", "latin", "SVO", "isolating", True, False, True, *_syllables("p t k b d g m n s l r v f", "aeiou", "- - - n l s r")),
    Typology("sond", "latin", "SVO", "fusional", False, False, True, *_syllables("p t k d m n s S l r v br st tr", "aeioO", "- - n r s t")),
    Typology(
        "rasu", "devanagari", "SOV", "isolating", True, True, False, *_syllables("p t k b d g m n s S C l r v h j", "aeiou", "- - - n r")
    ),
    Typology("nuwa", "latin", "VSO", "isolating", False, False, False, *_syllables("p t k m n h l j f N", "aeiouA", "- - - n")),
    Typology(
        "kerv", "cyrillic", "SOV", "agglutinating", True, True, False, *_syllables("p t k b d g m n z S C l v h", "aeiouY", "- - k m r z")
    ),
    Typology(
        "lyth", "greek", "VSO", "fusional", False, False, True, *_syllables("p t k b d g m n s l r f h T pl kr", "aeioE", "- - n s r")
    ),
    Typology(
        "mzev", "georgian", "VSO", "agglutinating", False, False, False, *_syllables("p t k d g m n z S C l r v q mz", "aeiou", "- - b l d")
    ),
    Typology(
        "vosk", "armenian", "SOV", "fusional", True, True, False, *_syllables("p t k b d m n s z S C l r v h T", "aeiou", "- - k r n s")
    ),
)


class Language:
    """One language: its typology, words and endings.

    Args:
        typology: its type.
        world: the inventory to be named.
        options: share of cognates, and the seed.
        pivot: the language that cognates and shared names come from; none for the pivot itself.

    Attributes:
        stems: open-class lemma or name word → sounds of its stem. No stem begins another one, homonyms apart, so no
            ending can make one word look like another.
    """

    def __init__(self, typology: Typology, world: World, options: Constructed, pivot: Language | None = None) -> None:
        self.typology, self.name = typology, typology.name
        self._rng = random.Random(f"{options.seed}/language/{typology.name}")
        self._function = dict(zip(FUNCTION_WORDS, self._short(len(FUNCTION_WORDS)), strict=True))
        self._prefixes: set[str] = set()
        self._known: set[str] = set()
        self.stems: dict[str, str] = {}
        if pivot is not None:
            shared = self._rng.sample(list(world.upos), round(options.cognates * len(world.upos)))
            shared += self._rng.sample(world.name_words, round(min(1.0, 2 * options.cognates) * len(world.name_words)))
            for lemma in shared:
                self._keep(lemma, pivot.stems[lemma])
        own = {lemma: upos for lemma, upos in world.upos.items() if lemma not in self.stems}
        nouns = [lemma for lemma, upos in own.items() if upos == "NOUN"]
        for lemma in nouns:
            self._keep(lemma, self._new())
        self._rng.shuffle(nouns)
        for lemma, upos in own.items():
            if upos in ("VERB", "ADJ") and nouns and self._rng.random() < HOMONYMS:
                self.stems[lemma] = self.stems[nouns.pop()]
            elif upos != "NOUN":
                self._keep(lemma, self._new())
        for word in world.name_words:
            if word not in self.stems:
                self._keep(word, self._new())
        self._classes = {lemma: self._rng.getrandbits(1) for lemma in self.stems}
        self._endings()

    def _short(self, count: int) -> list[str]:
        """Distinct words of at most three sounds, so shorter than any stem."""
        made: dict[str, None] = {}
        while len(made) < count:
            word = self._syllable()
            if len(word) <= 3:
                made[word] = None
        return list(made)

    def _syllable(self) -> str:
        kind, rng = self.typology, self._rng
        return rng.choice(kind.onsets) + rng.choice(kind.vowels) + rng.choice(kind.codas)

    def _new(self) -> str:
        """Return a stem of two syllables, more where those are used up, that neither begins a known stem nor is begun by one."""
        for attempt in range(10 * LONGEST):
            sounds = "".join(self._syllable() for _ in range(2 + attempt // LONGEST))
            if sounds not in self._prefixes and not any(sounds[:end] in self._known for end in range(4, len(sounds))):
                return sounds
        raise AssertionError("unreachable: words of eleven syllables cannot be used up")

    def _keep(self, lemma: str, sounds: str) -> None:
        self.stems[lemma] = sounds
        self._known.add(sounds)
        self._prefixes.update(sounds[:end] for end in range(4, len(sounds) + 1))

    def _endings(self) -> None:
        vowels, codas = self.typology.vowels, [coda for coda in self.typology.codas if coda]
        shapes = [vowel + coda for vowel in vowels for coda in dict.fromkeys(codas)]
        shapes += [vowel + onset + other for vowel in vowels for onset in "tkmn" for other in vowels]
        self._rng.shuffle(shapes)
        self._suffix: dict[tuple[object, ...], str] = {}
        if self.typology.morphology == "agglutinating":
            for feature in (*CASES[1:], "plural", "passive", "finite", "agreement"):
                self._suffix[feature,] = shapes.pop()
        elif self.typology.morphology == "fusional":
            for part in ("noun", "adjective"):
                for gender in (0, 1):
                    for case in CASES[:3]:
                        for plural in (False, True):
                            self._suffix[part, gender, case, plural] = shapes.pop()
            for passive in (False, True):
                for plural in (False, True):
                    self._suffix["verb", passive, plural] = shapes.pop()

    def word(self, function: str) -> str:
        """Write a function word."""
        return spell(self._function[function], self.typology.script)

    def noun(self, lemma: str, case: str, plural: bool, last: bool = True) -> str:
        """Write a noun or a word of a name; where endings are strung together only the ``last`` word of a name takes them."""
        stem = self.stems[lemma]
        if self.typology.morphology == "fusional":
            stem += self._suffix["noun", self._classes[lemma], case, plural]
        elif self.typology.morphology == "agglutinating" and last:
            stem += (self._suffix["plural",] if plural else "") + ("" if case == CASES[0] else self._suffix[case,])
        return spell(stem, self.typology.script)

    def adjective(self, lemma: str, noun: str, case: str, plural: bool) -> str:
        """Write an adjective; in fusional languages it agrees with its noun in class, case and number."""
        stem = self.stems[lemma]
        if self.typology.morphology == "fusional":
            stem += self._suffix["adjective", self._classes[noun], case, plural]
        return spell(stem, self.typology.script)

    def verb(self, lemma: str, passive: bool, plural: bool) -> str:
        """Write a verb; it agrees in number with its subject, except in isolating languages."""
        stem = self.stems[lemma]
        if self.typology.morphology == "fusional":
            stem += self._suffix["verb", passive, plural]
        elif self.typology.morphology == "agglutinating":
            stem += (self._suffix["passive",] if passive else "") + self._suffix["finite",]
            stem += self._suffix["agreement",] if plural else ""
        return spell(stem, self.typology.script)

    def adverb(self, lemma: str) -> str:
        """Write a time adverb."""
        return spell(self.stems[lemma], self.typology.script)

    def mark(self, question: bool) -> str:
        """Return the mark that ends a question or a statement."""
        return mark("question" if question else "full stop", self.typology.script)


def typologies(options: Constructed) -> list[Typology]:
    """Return the first ``options.languages`` types, all in the letters of the pivot, the first one, if ``options.romanised``."""
    first, *others = TYPOLOGIES[: options.languages]
    return [first, *(replace(kind, script=first.script) if options.romanised else kind for kind in others)]


def alphabet(options: Constructed) -> set[str]:
    """Return every character but the space that the languages can write; no words are made for it."""
    first, *others = typologies(options)
    found: set[str] = set()
    for kind in (first, *others):
        for source in (kind, first) if options.cognates else (kind,):
            found.update(*(spell("".join(sounds), kind.script) for sounds in product(source.onsets, source.vowels, source.codas)))
        found.update(mark("question", kind.script), mark("full stop", kind.script))
    return found


def languages(world: World, options: Constructed) -> dict[str, Language]:
    """Make the languages."""
    first, *others = typologies(options)
    pivot = Language(first, world, options)
    return {pivot.name: pivot} | {kind.name: Language(kind, world, options, pivot) for kind in others}
