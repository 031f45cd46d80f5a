"""Classes of words against the parts of speech that the realiser gives each word of a text."""

from collections import defaultdict

import pytest

from moebench.data.choices import ChoiceSource
from moebench.data.constructed import corpus
from moebench.data.constructed.realise import tokens
from moebench.data.constructed.word_classes import CLASSES
from moebench.data.text_settings import Constructed

CLOSED = {"ADP", "AUX", "CCONJ", "DET", "NUM", "PART", "PRON"}
"""Closed classes of Universal Dependencies; of adverbs there are both."""


def words_of(source, count=400):
    """Every word of documents, with its part of speech."""
    realiser = source.speaker
    for document in corpus.documents(source.world, "words", "train", count):
        for kind, sentence, connective, asked in document:
            if kind == "statement":
                yield from tokens(realiser.sentence(sentence, connective))
            elif kind == "question":
                yield from tokens(realiser.question(sentence, asked))
            else:
                yield from tokens(realiser.answer(sentence.event, asked))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("romanised", [False, True])
def test_every_word_has_the_class_of_its_part_of_speech(number, romanised):
    source = ChoiceSource(Constructed(languages=8, romanised=romanised, cognates=0.3, documents=30), number)
    code, language = source.word_classes(), source.speaker.language
    adverbs = {language.word(function) for function in ("same", "when", "where")}
    parts, classes = defaultdict(set), set()
    for word in words_of(source):
        found = CLASSES[code[word.form]]
        closed = word.upos in CLOSED or (word.upos == "ADV" and word.form in adverbs)
        assert (found == "function") == closed, word
        assert (found == "other") == (word.upos == "PUNCT"), word
        parts[word.form].add(word.upos)
        classes.add(found)
    ambiguous = {form for form, upos in parts.items() if len(upos) > 1}
    assert {CLASSES[code[form]] for form in ambiguous} <= {"homonym"}
    assert classes >= {"other", "function", "content"}
    assert bool(ambiguous) == ("homonym" in classes)
    assert set(" ".join(source.documents("train")).split(" ")) <= code.keys()


def test_homonyms_are_the_words_with_the_stem_of_two_lemmas_where_nothing_is_added_to_a_stem():
    source = ChoiceSource(Constructed(languages=2))
    lemmas = defaultdict(list)
    for lemma, stem in source.speaker.language.stems.items():
        lemmas[stem].append(lemma)
    double = {stem for stem, named in lemmas.items() if len(named) > 1}
    found = {form for form, code in source.word_classes().items() if CLASSES[code] == "homonym"}
    assert found == double
    assert 3 <= len(found) <= len(lemmas) // 3


def test_where_endings_tell_nouns_and_verbs_apart_no_word_has_two_meanings():
    assert "homonym" not in {CLASSES[code] for code in ChoiceSource(Constructed(languages=2), 1).word_classes().values()}
