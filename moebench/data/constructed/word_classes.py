"""Classes of words: which forms of a language are function words, content words, or content words with two meanings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from moebench.data.constructed.language import CASES, FUNCTION_WORDS, Language
from moebench.data.constructed.world import World

CLASSES = ("other", "function", "content", "homonym")
"""Names of the codes 0, 1, …: what is no word; a word of the closed list `FUNCTION_WORDS`, numerals included; a word of an open class or of
a name with one meaning; one that writes two lemmas, a verb or an adjective that looks like a noun."""


def word_classes(language: Language, world: World) -> dict[str, int]:
    """Return form → code, of every word and mark that the language can write.

    No form is of a closed and of an open class at once: function words have three sounds at most, all others four at least.
    """
    lemmas: dict[str, set[str]] = defaultdict(set)
    for lemma, form in _forms(language, world):
        lemmas[form].add(lemma)
    found = {form: CLASSES.index("content" if len(named) == 1 else "homonym") for form, named in lemmas.items()}
    found |= {language.word(function): CLASSES.index("function") for function in FUNCTION_WORDS}
    return found | {language.mark(question): CLASSES.index("other") for question in (False, True)}


def _forms(language: Language, world: World) -> Iterator[tuple[str, str]]:
    """Yield (lemma, or word of a name; form), of the open classes."""
    cases = CASES if language.typology.morphology == "agglutinating" else CASES[:3]
    both = (False, True)
    nouns = [lemma for lemma, upos in world.upos.items() if upos == "NOUN"]
    for word in world.name_words:
        yield from ((word, language.noun(word, case, False, last)) for case in cases for last in both)
    for lemma, upos in world.upos.items():
        if upos == "NOUN":
            yield from ((lemma, language.noun(lemma, case, plural)) for case in cases for plural in both)
        elif upos == "ADJ":
            yield from ((lemma, language.adjective(lemma, noun, case, plural)) for noun in nouns for case in cases for plural in both)
        elif upos == "VERB":
            yield from ((lemma, language.verb(lemma, passive, plural)) for passive in both for plural in both)
        else:
            yield lemma, language.adverb(lemma)
