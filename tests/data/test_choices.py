"""Constructed multiple choice: reproducible, balanced, right by a reading of the surface, and nowhere in the training text."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from moebench.data.choices import TASKS, ChoiceSource
from moebench.data.constructed import ConstructedSource
from moebench.data.text_settings import Constructed
from moebench.errors import MoebenchError

OPTIONS = Constructed(languages=2, documents=2000, test=240)
DIGEST = """
import hashlib, json
from moebench.data.choices import TASKS, ChoiceSource
from moebench.data.text_settings import Constructed
source = ChoiceSource(Constructed(languages=2, lexicon=60, names=40, documents=20, test=10))
print(hashlib.sha256(json.dumps([source.items(task) for task in TASKS]).encode()).hexdigest())
"""
REVISIONS = {"constructed-2-choices-1": "126455843bb631d164b09852c6b10c03287d371c5aadc55460081ad5abd85fad"}
"""Revision → digest of what it makes. Other items need a new revision and a new line here."""


@pytest.fixture(scope="module")
def source():
    return ChoiceSource(OPTIONS)


@pytest.fixture(scope="module")
def tasks(source):
    return {task: source.items(task) for task in TASKS}


@pytest.fixture(scope="module")
def documents(source):
    return list(source.documents("train"))


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_same_bytes_in_a_fresh_process(hash_seed):
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == REVISIONS[ChoiceSource.revision]


def test_documents_are_those_of_the_pivot(documents):
    source = ConstructedSource(OPTIONS.model_copy(update={"documents": 30}))
    other = ChoiceSource(source.options)
    for split in ("train", "validation"):
        assert list(other.documents(split)) == [text for language, text in source.documents(split) if language == source.pivot]
    assert len(documents) == OPTIONS.documents


@pytest.mark.parametrize("task", TASKS)
def test_items_are_balanced_distinct_and_of_equal_length(tasks, task):
    items = tasks[task]
    assert [item["id"] for item in items] == [str(place) for place in range(OPTIONS.test)]
    count = 4 if task == "continuation" else 2
    labels = Counter(item["label"] for item in items)
    assert sorted(labels) == list(range(count))
    assert max(labels.values()) - min(labels.values()) <= 4
    assert len({(item["context"], *item["choices"]) for item in items}) == len(items)
    for item in items:
        assert len(item["choices"]) == count == len(set(item["choices"]))
        assert len({len(choice.split()) for choice in item["choices"]}) == 1
        assert not any(text != text.strip() or not text for text in (item["context"], *item["choices"]))


@pytest.mark.parametrize("task", ["role", "entailment"])
def test_what_is_right_after_one_context_is_wrong_after_the_next(tasks, task):
    for one, other in zip(tasks[task][::2], tasks[task][1::2], strict=True):
        assert one["choices"] == other["choices"]
        assert {one["label"], other["label"]} == {0, 1}
        assert sorted(one["choices"][0].split()) == sorted(one["choices"][1].split()) or task == "entailment"


@pytest.mark.parametrize("task", TASKS)
def test_no_item_stands_in_the_training_text(tasks, documents, task):
    text = "\n".join(documents)
    for item in tasks[task]:
        right = item["choices"][item["label"]]
        assert f"{item['context']} {right}" not in text
        assert right not in text or task == "agreement"  # whose questions name one participant alone


# ------------------------------------------------------------------------------------- right by a reading of the surface


@pytest.fixture(scope="module")
def word(source):
    return source.speaker.language.word


@pytest.fixture(scope="module")
def verbs(source):
    """Form of a verb → (group, pole)."""
    lemmas = {
        form: lemma.removeprefix("verb").split(".") for lemma, form in source.speaker.language.stems.items() if lemma.startswith("verb")
    }
    return {form: (int(group), int(pole)) for form, (group, pole, _) in lemmas.items()}


def read(text, verbs):
    """The verb of a clause; none if a noun in it looks like a verb."""
    found = [piece for piece in text.split() if piece in verbs]
    return found[0] if len(found) == 1 else None


def test_the_question_word_fits_the_clause(source, tasks, verbs, word):
    seen = Counter()
    for item in tasks["agreement"]:
        first, *rest = item["choices"][item["label"]].split()
        wrong, *same = item["choices"][1 - item["label"]].split()
        assert rest == same
        if first in (word("when"), word("where")):
            assert (word("in") in rest) == (first == word("when"))
            assert {first, wrong} == {word("when"), word("where")}
        elif verb := read(" ".join(rest), verbs):
            assert source.world.signatures[verbs[verb][0]][1] == {word("who"): "PER", word("what"): "LOC"}[first]
            assert {first, wrong} == {word("who"), word("what")}
        else:
            continue
        seen[first] += 1
    assert min(seen[word(kind)] for kind in ("when", "where", "who", "what")) > 20


def test_the_answer_has_the_role_that_the_question_asks_for(tasks, verbs, word):
    read_items = 0
    for item in tasks["role"]:
        for place, choice in enumerate(item["choices"]):
            question, answer = choice.removesuffix(" .").split(" ? ")
            verb = read(item["context"], verbs)
            asked = question.split()
            if verb is None or read(question, verbs) != verb or f" {answer} " not in f" {item['context']} ":
                break
            before, _ = f" {item['context']} ".split(f" {verb} ")
            passive = word("by") in item["context"].split()
            is_agent = (f" {answer} " in f" {before} ") != passive
            if word("passive") in asked:
                wants_agent = asked[0] == word("by")
            else:
                wants_agent = asked[1] in (verb, word("not"))
            assert (is_agent == wants_agent) == (place == item["label"])
            assert passive != (word("passive") in asked)
            read_items += 1
    assert read_items > 200


def test_what_follows_restates_or_contradicts(tasks, verbs, word):
    seen = Counter()
    for item in tasks["entailment"]:
        *premise, connective = item["context"].split()
        first = read(" ".join(premise), verbs)
        polarity = first and verbs[first][1] ^ (word("not") in premise)
        for place, choice in enumerate(item["choices"]):
            second = read(choice, verbs)
            if first is None or second in (None, first):
                break
            assert verbs[second][0] == verbs[first][0]
            restates = polarity == verbs[second][1] ^ (word("not") in choice.split())
            assert (restates == (connective == word("same"))) == (place == item["label"])
            seen[connective, restates] += 1
    assert min(seen.values()) > 20
    assert len(seen) == 4


def test_the_next_line_speaks_of_the_event_before(tasks, verbs, word):
    read_items = 0
    for item in tasks["continuation"]:
        sentences = [sentence.split() for sentence in item["context"].replace("?", ".").split(" .") if sentence.strip()]
        events = [words for words in sentences if words[0] not in (word("same"), word("but")) and len(words) > 2]
        connective, *_ = item["choices"][0].split()
        choices = [read(choice, verbs) for choice in item["choices"]]
        first = read(" ".join(events[-1]), verbs)
        if first is None or None in choices or "?" in item["context"]:
            continue
        negated = word("not") in item["choices"][0].split()
        polarity = verbs[first][1] ^ (word("not") in events[-1])
        fits = [
            verbs[choice][0] == verbs[first][0] and ((polarity == verbs[choice][1] ^ negated) == (connective == word("same")))
            for choice in choices
        ]
        assert fits == [place == item["label"] for place in range(4)]
        read_items += 1
    assert read_items > 50


def test_no_choice_shares_more_with_its_context_than_another(tasks):
    for item in tasks["continuation"]:
        known = set(item["context"].split())
        assert len({sum(piece in known for piece in choice.split()) for choice in item["choices"]}) == 1


# ------------------------------------------------------------------------------------------------------ in every language

EIGHT = Constructed(languages=8, documents=1, test=160)


@pytest.fixture(scope="module")
def sources():
    return [ChoiceSource(EIGHT, language) for language in range(EIGHT.languages)]


@pytest.fixture(scope="module")
def by_language(sources):
    return [{task: source.items(task) for task in TASKS} for source in sources]


@pytest.mark.parametrize("task", TASKS)
def test_items_of_all_languages_have_the_same_answers_and_choices_of_equal_length(by_language, task):
    pivot = by_language[0][task]
    for items in (tasks[task] for tasks in by_language):
        assert [(item["id"], item["label"]) for item in items] == [(item["id"], item["label"]) for item in pivot]
        for item in items:
            assert len(set(item["choices"])) == len(item["choices"])
            assert len({len(choice.split()) for choice in item["choices"]}) == 1
    assert len({items[task][0]["context"] for items in by_language}) == EIGHT.languages


def lemmas(source):
    """Form → what it can stand for, in a language without endings."""
    language = source.speaker.language
    found = {language.mark(asks): {f"mark {asks}"} for asks in (True, False)}
    for function in language._function:
        found.setdefault(language.word(function), set()).add(function)
    for lemma in language.stems:
        found.setdefault(language.noun(lemma, "nominative", False), set()).add(lemma)
    return found


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_an_item_is_the_pivots_word_for_word_but_for_their_order(sources, by_language, number, task):
    """Languages without endings: nouns and verbs of one form aside, each word has its translation."""
    mine, theirs = lemmas(sources[0]), lemmas(sources[number])
    assert sources[number].speaker.language.typology.morphology == "isolating"
    for one, other in zip(by_language[0][task], by_language[number][task], strict=True):
        for text, translation in zip((one["context"], *one["choices"]), (other["context"], *other["choices"]), strict=True):
            left = translation.split()
            for word in sorted(text.split(), key=lambda word: len(mine[word])):  # first those that stand for one thing alone
                partner = min((form for form in left if theirs[form] & mine[word]), key=lambda form: len(theirs[form]))
                left.remove(partner)
            assert left == []


@pytest.mark.parametrize("number", range(8))
def test_choices_of_agreement_differ_in_the_question_word_alone(sources, by_language, number):
    language = sources[number].speaker.language
    words = {language.word(word): word for word in ("when", "where", "who", "what")}
    places = set()
    for item in by_language[number]["agreement"]:
        pairs = list(zip(*(choice.split() for choice in item["choices"]), strict=True))
        ((place, pair),) = [(place, pair) for place, pair in enumerate(pairs) if len(set(pair)) > 1]
        assert {words[word] for word in pair} in ({"when", "where"}, {"who", "what"})
        places.add(place)
    assert (places == {0}) == language.typology.fronting


def test_errors_say_what_would_be_right(source, monkeypatch):
    with pytest.raises(MoebenchError, match=r"unknown multiple-choice task 'rolle' \(did you mean 'role'\?\)"):
        source.items("rolle")
    monkeypatch.setattr("moebench.data.choices.PATIENCE", 0)
    many = ChoiceSource(Constructed(languages=2, lexicon=60, names=40, documents=1, test=10**6))
    with pytest.raises(MoebenchError, match=r"no more than \d+ different items of role, 1000000 wanted: raise 'lexicon' or 'names'"):
        many.items("role")
