"""Constructed languages: scripts, cognates, word order, endings."""

import itertools
import unicodedata

import pytest

from moebench.data import tokenizer
from moebench.data.constructed import ConstructedSource
from moebench.data.constructed.language import TYPOLOGIES, alphabet, languages
from moebench.data.constructed.meaning import Event, Name, Phrase, Sentence, Term
from moebench.data.constructed.realise import Realiser, text, tokens
from moebench.data.constructed.scripts import LETTERS, spell
from moebench.data.constructed.world import World
from moebench.data.text_settings import Constructed
from moebench.errors import MoebenchError
from moebench.protocols.transfer.config import SPECIAL

OPTIONS = Constructed(languages=8)
WORLD = World(OPTIONS)
LANGUAGES = languages(WORLD, OPTIONS)
BUY = next(group for group, taken in enumerate(WORLD.signatures) if taken == ("ORG", "THING"))
EVENT = Event(
    agent=Phrase(WORLD.names["ORG"][1]),
    verb=Term(BUY, 0, 0),
    negated=True,
    patient=Phrase("tool.0", Term(0, 1, 1), 3),
    time="adverb1",
    place=WORLD.names["LOC"][1],
)


def scripts(word):
    return {unicodedata.name(letter).split()[0] for letter in word}


def test_world_has_the_size_that_was_asked_for():
    for lexicon, names in ((60, 40), (90, 90), (151, 77)):
        world = World(Constructed(lexicon=lexicon, names=names))
        assert len(world.upos) == lexicon
        assert sum(map(len, world.names.values())) == names
        assert all(len(nouns) >= 2 for nouns in world.kinds.values())  # a sister to contradict with
        for signature in world.signatures:
            assert world.signatures.count(signature) >= 2  # another verb of the same kind


@pytest.mark.parametrize(("count", "romanised", "cognates"), [(8, False, 0.12), (8, True, 0.12), (5, False, 0.0)])
def test_the_alphabet_is_that_of_the_texts_and_what_a_vocabulary_needs_at_least(tmp_path, count, romanised, cognates):
    options = Constructed(languages=count, romanised=romanised, cognates=cognates, lexicon=200, names=100, documents=60, parallel=0)
    texts = [line for _, line in ConstructedSource(options).documents("train")]
    assert alphabet(options) == set("".join(texts)) - {" "}
    least = SPECIAL + len(alphabet(options))
    assert tokenizer.train(texts, least, tmp_path).size == least
    with pytest.raises(MoebenchError, match=f"cannot be trained with tokens.vocabulary {least - 1}"):
        tokenizer.train(texts, least - 1, tmp_path)


def test_codes_are_four_ascii_letters_and_so_no_iso_639_codes():
    assert all(len(kind.name) == 4 and kind.name.isascii() and kind.name.isalpha() for kind in TYPOLOGIES)
    assert len({kind.name for kind in TYPOLOGIES}) == 8


def test_five_languages_cover_the_types():
    first = TYPOLOGIES[:5]
    assert {kind.order for kind in first} == {"SVO", "SOV", "VSO"}
    assert {kind.morphology for kind in first} == {"isolating", "agglutinating", "fusional"}
    assert [kind.script for kind in first].count("latin") == 3
    assert {kind.adjective_first for kind in first} == {kind.postpositions for kind in first} == {True, False}


def test_every_language_writes_in_its_own_script():
    for language in LANGUAGES.values():
        script = language.typology.script.upper()
        written = "".join(language.noun(lemma, "nominative", False) for lemma in [*WORLD.hypernym, *WORLD.name_words])
        assert scripts(written) == {script}
    assert len({kind.script for kind in TYPOLOGIES}) == 6


@pytest.mark.parametrize("script", LETTERS)
def test_spelling_loses_nothing_and_is_normalised(script):
    sounds = "ptkbdgmnslrvfzhjSCaeiou"
    words = [a + b + c for a in sounds for b in sounds for c in sounds]
    written = [spell(word, script) for word in words]
    assert len(set(written)) == len(words)
    assert all(unicodedata.normalize("NFC", word) == word for word in written[::7])


def test_devanagari_by_hand():
    assert spell("tilas", "devanagari") == "तिलस्"
    assert spell("amsu", "devanagari") == "अम्सु"


@pytest.mark.parametrize("cognates", [0.0, 0.12, 0.4, 1.0])
def test_share_of_cognates_is_as_asked(cognates):
    made = languages(WORLD, Constructed(languages=8, cognates=cognates))
    pivot = made["toma"].stems
    for name in list(made)[1:]:
        stems = made[name].stems
        same = sum(stems[lemma] == pivot[lemma] for lemma in WORLD.upos) / len(WORLD.upos)
        assert same == pytest.approx(cognates, abs=0.01)
        shared = sum(stems[word] == pivot[word] for word in WORLD.name_words) / len(WORLD.name_words)
        assert shared == pytest.approx(min(1, 2 * cognates), abs=0.01)


def test_cognates_are_spelt_alike_in_latin_and_transliterated_elsewhere():
    made = languages(WORLD, Constructed(languages=8, cognates=1.0))
    for lemma in WORLD.upos:
        pivot = made["toma"].adverb(lemma)
        assert made["nuwa"].adverb(lemma) == pivot
        assert made["kerv"].adverb(lemma) == pivot.translate(str.maketrans("ptkbdgmnslrvfaeiou", "пткбдгмнслрвфаеиоу"))


def test_romanised_languages_differ_from_others_by_their_letters_alone():
    made = languages(WORLD, Constructed(languages=8, romanised=True))
    pivot = made["toma"]
    for name, language in made.items():
        assert language.stems == LANGUAGES[name].stems
        assert language.mark(True) == "?"
        for lemma in WORLD.upos:
            assert scripts(language.adverb(lemma)) == {"LATIN"}
            assert (language.adverb(lemma) == pivot.adverb(lemma)) == (language.stems[lemma] == pivot.stems[lemma])
    assert made["kerv"].noun("tool.1", "oblique", True).startswith(spell(made["kerv"].stems["tool.1"], "latin"))


@pytest.mark.parametrize("name", LANGUAGES)
def test_no_stem_begins_another_and_homonyms_join_verbs_or_adjectives_with_nouns(name):
    stems = LANGUAGES[name].stems
    lemmas = {}
    for lemma, stem in stems.items():
        lemmas.setdefault(stem, []).append(WORLD.upos.get(lemma, "PROPN"))
    ordered = sorted(lemmas)
    assert not any(longer.startswith(shorter) for shorter, longer in itertools.pairwise(ordered))
    shared = [sorted(parts) for parts in lemmas.values() if len(parts) > 1]
    assert all(parts in (["NOUN", "VERB"], ["ADJ", "NOUN"]) for parts in shared)
    verbs = sum("VERB" in parts for parts in shared)
    assert 3 <= verbs <= 18  # of 32, one in three expected


SUBJECT, VERB, OBJECT = "agent", "verb", "patient"


@pytest.mark.parametrize("name", LANGUAGES)
def test_order_of_words_in_a_sample_sentence(name):
    language = LANGUAGES[name]
    kind, realiser = language.typology, Realiser(language)
    chunks = realiser.sentence(Sentence(EVENT))
    order = [chunk.slot for chunk in chunks if chunk.slot in (SUBJECT, VERB, OBJECT)]
    letters = {SUBJECT: "S", VERB: "V", OBJECT: "O"}
    assert "".join(letters[slot] for slot in order) == kind.order
    upos = [token.upos for token in tokens(chunks)]
    assert (upos.index("ADJ") < upos.index("NOUN")) == kind.adjective_first
    assert upos.index("NUM") < upos.index("NOUN")
    place = [chunk.slot for chunk in chunks].index("place")
    assert chunks[place + (1 if kind.postpositions else -1)].tokens[0].upos == "ADP"
    assert (upos.index("PART") > upos.index("VERB")) == (kind.order == "SOV")
    assert upos[-1] == "PUNCT"
    assert chunks[-1].text == {"rasu": "।", "vosk": "։"}.get(name, ".")
    assert next(chunk.slot for chunk in realiser.sentence(Sentence(EVENT, front="time"))) == "time"


@pytest.mark.parametrize("name", LANGUAGES)
def test_passive_moves_the_patient_to_the_front_and_marks_it(name):
    realiser = Realiser(LANGUAGES[name])
    active, passive = (realiser.sentence(Sentence(EVENT, passive=voice)) for voice in (False, True))
    slots = [chunk.slot for chunk in passive]
    assert slots.index("patient") < slots.index("agent")
    marked = {"AUX"} if LANGUAGES[name].typology.morphology == "isolating" else set()
    assert {token.upos for token in tokens(passive)} - {token.upos for token in tokens(active)} == marked
    verb = [next(token.form for token in tokens(chunks) if token.upos == "VERB") for chunks in (active, passive)]
    assert (verb[0] == verb[1]) == bool(marked)


@pytest.mark.parametrize("name", LANGUAGES)
def test_case_and_number_by_type(name):
    language = LANGUAGES[name]
    forms = {(case, plural): language.noun("tool.1", case, plural) for case in ("nominative", "accusative", "oblique") for plural in (0, 1)}
    kind = language.typology.morphology
    assert len(set(forms.values())) == (1 if kind == "isolating" else 6)
    adjectives = {language.adjective("adjective0.0.0", "tool.1", case, plural) for case, plural in forms}
    assert len(adjectives) == (6 if kind == "fusional" else 1)
    if kind == "agglutinating":  # one ending per feature, strung together
        stem, plural = forms["nominative", 0], forms["nominative", 1]
        assert forms["accusative", 1] == plural + forms["accusative", 0][len(stem) :]


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_two_roles_of_a_name_are_told_apart(name):
    one, other = (Phrase(person) for person in WORLD.names["PER"][1:3])
    event = EVENT._replace(agent=one, verb=Term(0, 0, 0), patient=other)
    realiser = Realiser(LANGUAGES[name])
    said = {text(realiser.sentence(Sentence(said, voice))) for said in (event, event.swapped()) for voice in (False, True)}
    assert len(said) == 4


def test_questions_front_their_question_word_where_the_language_does():
    for name, language in LANGUAGES.items():
        realiser = Realiser(language)
        for asked in ("agent", "patient", "time", "place", "count"):
            chunks = realiser.question(Sentence(EVENT), asked)
            word = language.word({"agent": "who", "patient": "what", "time": "when", "place": "where", "count": "how many"}[asked])
            words = [token.form for token in tokens(chunks)]
            assert word in words
            assert words[-1] == {"lyth": ";", "vosk": "՞"}.get(name, "?")
            if language.typology.fronting:
                assert words[0] == word


def test_a_language_does_not_depend_on_how_many_there_are():
    few = languages(WORLD, Constructed(languages=5))
    assert all(few[name].stems == LANGUAGES[name].stems for name in few)
    assert languages(WORLD, Constructed(languages=5, seed=1))["toma"].stems != few["toma"].stems


def test_seen_and_held_out_names_share_no_word_and_some_names_are_reused():
    by_words = {}
    for kind, names in WORLD.names.items():
        for name in names:
            assert isinstance(name, Name)
            assert len({word in WORLD.held_out for word in name.words}) == 1
            by_words.setdefault(name.words, set()).add(kind)
        held = sum(name.words[0] in WORLD.held_out for name in names) / len(names)
        assert held == pytest.approx(0.4, abs=0.05)
        assert any(len(name.words) == 2 for name in names)
    reused = sum(len(kinds) for kinds in by_words.values() if len(kinds) > 1)
    assert reused / OPTIONS.names == pytest.approx(0.25, abs=0.05)
