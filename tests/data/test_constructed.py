"""The constructed source: reproducible, disjoint splits, labels that a reader of the surface agrees with, no shortcuts."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from moebench.data.catalogue import TASKS
from moebench.data.constructed import MAKERS, ConstructedSource, corpus
from moebench.data.constructed.meaning import Event, Name, Phrase, Sentence, Term
from moebench.data.constructed.scripts import spell
from moebench.data.constructed.world import CATEGORIES
from moebench.data.text_settings import Constructed
from moebench.errors import MoebenchError

OPTIONS = Constructed(documents=300, parallel=100, train=600, validation=30, test=150)
CONSTRUCTED = {name: task for name, task in TASKS.items() if task.constructed}
PAIRS = ("constructed_nli", "constructed_paraphrase")
QA = ("constructed_qa_parallel", "constructed_qa_cross", "constructed_qa_native")

DIGEST = """
import hashlib, json, sys
from moebench.data.text_settings import Constructed
from moebench.data.constructed import MAKERS, ConstructedSource
from moebench.data.catalogue import TASKS
source = ConstructedSource(Constructed(languages=8, lexicon=60, names=40, documents=20, parallel=10, train=20, validation=10, test=10))
made = [list(source.documents(split)) + list(source.parallel(split)) for split in ("train", "validation")]
made += [source.train(name) + source.validation(name) for name in MAKERS]
made += [source.test(name) for name in TASKS if name.startswith("constructed_")]
print(hashlib.sha256(json.dumps(made).encode()).hexdigest())
"""
REVISIONS = {"constructed-2": "1947d07c9ae0b2f0f794b5ecdb254ba6362bdd460278919546b37d8f4d291a1e"}
"""Revision → digest of what it makes. A change of the generator's text needs a new revision and a new line here."""


@pytest.fixture(scope="module")
def source():
    return ConstructedSource(OPTIONS)


@pytest.fixture(scope="module")
def tests(source):
    return {name: source.test(name) for name in CONSTRUCTED}


# ---------------------------------------------------------------------------------------------------- reproducible, streamed


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_same_bytes_in_a_fresh_process(hash_seed):
    made = subprocess.run(
        [sys.executable, "-c", DIGEST], env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout.strip() == REVISIONS[ConstructedSource.revision]


def test_no_torch_is_imported():
    code = "import sys, moebench.data.constructed; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout == "False\n"


def test_seeds_make_other_text(source):
    other = ConstructedSource(OPTIONS.model_copy(update={"seed": 1}))
    assert not {text for _, text in itertools.islice(other.documents("train"), 50)} & {text for _, text in source.documents("train")}


def test_documents_are_streamed_and_more_of_them_begin_alike(source):
    endless = ConstructedSource(OPTIONS.model_copy(update={"documents": 10**9, "parallel": 10**9}))
    assert list(itertools.islice(endless.documents("train"), 40)) == list(itertools.islice(source.documents("train"), 40))
    assert list(itertools.islice(endless.parallel("train"), 40)) == list(itertools.islice(source.parallel("train"), 40))


def test_text_has_the_size_that_was_asked_for(source):
    for split, documents, pairs in (("train", 300, 100), ("validation", 30, 10)):
        made = list(source.documents(split))
        assert Counter(name for name, _ in made) == dict.fromkeys(source.languages, documents)
        translated = list(source.parallel(split))
        assert Counter((one, other) for one, _, other, _ in translated) == dict.fromkeys(
            [(source.pivot, name) for name in source.languages[1:]], pairs
        )
        for name, text in made:
            ends = {source.speakers[name].language.mark(question) for question in (True, False)}
            assert 3 <= sum(word in ends for word in text.split(" ")) <= 6
    assert source.languages[0] == source.pivot


def test_translations_have_the_same_sentences_in_the_same_order(source):
    for one, text, other, translation in source.parallel("train"):
        shapes = []
        for name, document in ((one, text), (other, translation)):
            language = source.speakers[name].language
            marks = {language.mark(True): "?", language.mark(False): "."}
            shapes.append("".join(marks.get(word, "") for word in document.split(" ")))
        assert shapes[0] == shapes[1]


def test_translations_are_phrases_verbs_and_single_sentences(source):
    kinds = Counter()
    for line in corpus.phrase_book(source.world, "any", "train", 900):
        kinds[line.asked or line.kind] += 1
        for language in source.speakers.values():
            written = corpus.written([line], language).split(" ")
            assert written.pop() == language.language.mark(False)
            if line.asked == "verb":
                term, negated = line.sentence.event.verb, line.sentence.event.negated
                stem = spell(language.language.stems[f"verb{term.group}.{term.pole}.{term.variant}"], language.language.typology.script)
                assert sum(word.startswith(stem) for word in written) == 1
                assert (language.language.word("not") in written) == negated
                assert len(written) == 1 + negated
    assert set(kinds) == {"agent", "patient", "time", "place", "count", "verb", "statement"}
    assert kinds["statement"] == pytest.approx(300, abs=50)


# -------------------------------------------------------------------------------------------------------------- disjoint


def participants(event, source):
    """The pair that decides the split, from the meaning alone: names by their words, nouns by their category."""
    heads = [phrase.head for phrase in (event.agent, event.patient)]
    return frozenset("+".join(head.words) if isinstance(head, Name) else head.split(".")[0] for head in heads)


def sentences(item):
    values = item if isinstance(item, tuple) else ()
    if isinstance(item, Sentence):
        yield item
    else:
        for value in values:
            yield from sentences(value)


def test_splits_share_no_pair_of_participants(source):
    met = {"train": set(), "validation": set(), "test": set()}
    for split in ("train", "validation"):
        for name in source.languages:
            for document in source._stream(corpus.documents, f"documents/{name}", split, 300):
                met[split] |= {participants(line.sentence.event, source) for line in document}
            book = source._stream(corpus.phrase_book, f"parallel/{name}", split, 300)
            met[split] |= {participants(line.sentence.event, source) for line in book}
        for name in MAKERS:
            met[split] |= {participants(each.event, source) for item in source.items(name, split) for each in sentences(item)}
    for name in CONSTRUCTED:
        for language in source.languages if name == "constructed_qa_native" else ("",):
            met["test"] |= {participants(each.event, source) for item in source.items(name, "test", language) for each in sentences(item)}
    assert all(len(pair) == 2 for pairs in met.values() for pair in pairs)
    assert all(len(pairs) > 50 for pairs in met.values())
    assert not met["train"] & met["validation"] | met["train"] & met["test"] | met["validation"] & met["test"]


def statements(language, text, source):
    """Sentences of a text without their end marks, short answers left out."""
    found = text
    for question in (True, False):
        found = found.replace(f" {source.speakers[language].language.mark(question)}", "\n")
    return {line.strip() for line in found.split("\n") if len(line.split()) > 2}


def test_no_test_sentence_is_in_any_text_or_training_set(source, tests):
    seen = {name: set() for name in source.languages}
    for name, text in source.documents("train"):
        seen[name] |= statements(name, text, source)
    for one, text, other, translation in source.parallel("train"):
        seen[one] |= statements(one, text, source)
        seen[other] |= statements(other, translation, source)
    for name in MAKERS:
        for row in source.train(name) + source.validation(name):
            text = " ".join(row["words"]) if "words" in row else f"{row.get('context', '')} {row.get('text_a', '')} {row.get('text_b', '')}"
            seen[source.pivot] |= statements(source.pivot, text, source)
    for task, languages in tests.items():
        for name, rows in languages.items():
            for row in rows:
                text = " ".join(row["words"]) if "words" in row else row.get("context", "") or f"{row['text_a']} {row['text_b']}"
                language = name.split("-")[0]
                assert not statements(language, text, source) & seen[language], (task, row)


def test_examples_of_a_set_are_different(source):
    for name in MAKERS:
        rows = source.train(name)
        assert len({json.dumps({key: row[key] for key in row if key not in ("id", "group")}) for row in rows}) >= 0.995 * len(rows)


def test_held_out_names_stay_out_of_task_training_and_fill_the_tests(source, tests):
    language = source.speakers[source.pivot].language
    held = {language.noun(word, "nominative", False) for word in source.world.held_out}
    every = {language.noun(word, "nominative", False) for word in source.world.name_words}
    for name in MAKERS:
        words = {word for row in source.train(name) + source.validation(name) for word in json.dumps(row).replace('"', " ").split()}
        assert not words & held, name
        assert len(words & every) > 10
    for name in CONSTRUCTED:
        counts = Counter(
            word in held for row in tests[name][source.pivot] for word in json.dumps(row).replace('"', " ").split() if word in every
        )
        assert counts[True] > counts[False], name
    pretraining = {word for name, text in source.documents("train") if name == source.pivot for word in text.split()}
    assert len(held & pretraining) == len(held)


# ---------------------------------------------------------------------------------------------------------------- schemas


def test_rows_follow_the_schemas(source, tests):
    wanted = {
        "pair": {"id", "text_a", "text_b", "label", "group"},
        "tagging": {"id", "words", "tags"},
        "qa": {"id", "context", "question", "answers"},
    }
    for name, task in CONSTRUCTED.items():
        train, validation = source.train(task.train), source.validation(task.train)
        assert (len(train), len(validation)) == (OPTIONS.train, OPTIONS.validation)
        for rows in (train, validation, *tests[name].values()):
            assert all(set(row) == wanted[task.kind] for row in rows)
            assert len({row["id"] for row in rows}) == len(rows)
        assert all(len(rows) == OPTIONS.test for rows in tests[name].values())


def test_languages_of_each_test(source, tests):
    pivot, *others = source.languages
    crossed = {pivot} | {f"{name}-{pivot}" for name in others} | {f"{pivot}-{name}" for name in others}
    for name in CONSTRUCTED:
        assert set(tests[name]) == (crossed if name == "constructed_qa_cross" else set(source.languages))


def test_parallel_tests_agree_on_ids_labels_and_groups(source, tests):
    for name in PAIRS:
        for rows in tests[name].values():
            pivot = tests[name][source.pivot]
            assert [(row["id"], row["label"], row["group"]) for row in rows] == [(row["id"], row["label"], row["group"]) for row in pivot]
    for name in ("constructed_pos", "constructed_ner"):
        for rows in tests[name].values():
            for row, other in zip(rows, tests[name][source.pivot], strict=True):
                kinds = [
                    Counter(tag for tag in each["tags"] if tag[0] == "B" or tag in ("NOUN", "ADJ", "NUM", "ADV")) for each in (row, other)
                ]
                assert kinds[0] == kinds[1]


def test_crossed_questions_stand_on_the_same_contexts(source, tests):
    rows = tests["constructed_qa_cross"]
    pivot = source.pivot
    for name in source.languages[1:]:
        for ours, there, back in zip(rows[pivot], rows[f"{name}-{pivot}"], rows[f"{pivot}-{name}"], strict=True):
            assert ours["question"] == there["question"] != back["question"]
            assert ours["context"] == back["context"] != there["context"]
            assert ours["answers"] == back["answers"]


def test_native_contexts_are_no_translations(source):
    items = [tuple(source.items("constructed_qa_native", "test", name)) for name in source.languages]
    assert not set.intersection(*(set(each) for each in items))


# ------------------------------------------------------------------------------------------------------- reading the surface


class Reader:
    """Reads sentences of the pivot back into events, knowing its word list and its grammar but not its realiser."""

    def __init__(self, source):
        world, self.language = source.world, source.speakers[source.pivot].language
        self.function = {self.language.word(word): word for word in ("in", "by", "not", "passive", *(f"number{n}" for n in range(2, 8)))}
        self.lemmas = {}
        for lemma in world.upos:
            self.lemmas.setdefault(self.language.adverb(lemma), []).append(lemma)
        self.name_words = {self.language.adverb(word): word for word in world.name_words}
        self.names = {name for names in world.names.values() for name in names}
        self.signatures = world.signatures

    def of_class(self, word, beginning):
        return [lemma for lemma in self.lemmas.get(word, []) if lemma.startswith(beginning)]

    def term(self, lemma):
        return Term(*map(int, lemma.removeprefix("verb").removeprefix("adjective").split(".")))

    def name(self, words, kinds):
        for length in (1, 2):
            ids = tuple(self.name_words.get(word, "") for word in words[:length])
            for kind in kinds:
                if len(ids) == length and Name(kind, ids) in self.names:
                    yield Name(kind, ids), words[length:]

    def phrase(self, words):
        for name, rest in self.name(words, ("PER", "ORG", "LOC")):
            yield Phrase(name), rest
        number = self.function.get(words[0], "") if words else ""
        count = int(number[-1]) if number.startswith("number") else 0
        rest = words[1:] if count else words
        for adjectives in (0, 1):
            if len(rest) > adjectives:
                for noun in self.of_class(rest[adjectives], CATEGORIES):
                    for lemma in self.of_class(rest[0], "adjective") if adjectives else [None]:
                        yield Phrase(noun, lemma and self.term(lemma), count), rest[adjectives + 1 :]

    def adjuncts(self, words):
        yield None, None, words
        for adverb in self.of_class(words[0], "adverb") if words else []:
            yield adverb, None, words[1:]
        if words and self.function.get(words[0]) == "in":
            for name, rest in self.name(words[1:], ("LOC",)):
                yield None, name, rest
                for adverb in self.of_class(rest[0], "adverb") if rest else []:
                    yield adverb, name, rest[1:]

    def read(self, text):
        """Yield every event that the sentence can mean and whose verb takes these participants."""
        *words, stop = text.split(" ")
        assert stop == "."
        for time, place, rest in self.adjuncts(words):
            if time and place:
                continue
            for subject, after in self.phrase(rest):
                negated = bool(after) and self.function.get(after[0]) == "not"
                after = after[negated:]
                passive = bool(after) and self.function.get(after[0]) == "passive"
                after = after[passive:]
                for lemma in self.of_class(after[0], "verb") if after else []:
                    objects = after[1:]
                    if passive and (not objects or self.function.get(objects[0]) != "by"):
                        continue
                    for other, ending in self.phrase(objects[passive:]):
                        for late_time, late_place, nothing in self.adjuncts(ending):
                            if nothing or (time and late_time) or (place and late_place):
                                continue
                            agent, patient = (other, subject) if passive else (subject, other)
                            event = Event(agent, self.term(lemma), negated, patient, time or late_time, place or late_place)
                            if self.takes(event):
                                yield event

    def takes(self, event):
        nouns = {"person": "PER", "institution": "ORG", "animal": "THING", "food": "THING", "tool": "THING"}
        heads = (event.agent.head, event.patient.head)
        return self.signatures[event.verb.group] == tuple(
            head.kind if isinstance(head, Name) else nouns[head.split(".")[0]] for head in heads
        )


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a sentence says as a product of sets of possibilities, one a dimension; a missing dimension excludes nothing.

    Verbs and adjectives of different groups are independent properties with two values each.
    """

    sets: dict

    @classmethod
    def of(cls, event, kinds):
        sets = {("verb", event.verb.group): {event.verb.pole ^ event.negated}}
        for role, phrase in (("agent", event.agent), ("patient", event.patient)):
            head = phrase.head
            sets[role] = {head.words} if isinstance(head, Name) else set(kinds.get(head, [head]))
            if phrase.adjective:
                sets[role, "adjective", phrase.adjective.group] = {phrase.adjective.pole}
            if phrase.number:
                sets[role, "count"] = {phrase.number}
        sets |= {slot: {value} for slot, value in (("time", event.time), ("place", event.place)) if value}
        return cls(sets)

    def entails(self, other):
        return all(dimension in self.sets and self.sets[dimension] <= values for dimension, values in other.sets.items())

    def excludes(self, other):
        return any(dimension in self.sets and not self.sets[dimension] & values for dimension, values in other.sets.items())

    def label(self, other):
        return "contradiction" if self.excludes(other) else "entailment" if self.entails(other) else "neutral"


@pytest.fixture(scope="module")
def reader(source):
    return Reader(source)


@pytest.mark.parametrize("name", PAIRS)
def test_labels_of_pairs_follow_from_their_surface(source, reader, tests, name):
    rows = source.train(name) + tests[name][source.pivot]
    sure = 0
    for row in rows:
        claims = [[Claim.of(event, source.world.kinds) for event in reader.read(row[text])] for text in ("text_a", "text_b")]
        assert all(claims), row
        if name == "constructed_nli":
            labels = {one.label(other) for one, other in itertools.product(*claims)}
        else:
            labels = {str(int(one.entails(other) and other.entails(one))) for one, other in itertools.product(*claims)}
        assert row["label"] in labels, row
        sure += len(labels) == 1
    assert sure > 0.97 * len(rows)


def test_labels_are_balanced(source, tests):
    for name, classes in (("constructed_nli", 3), ("constructed_paraphrase", 2)):
        for rows in (source.train(name), tests[name][source.pivot]):
            counts = Counter(row["label"] for row in rows)
            assert set(counts) == set(TASKS[name].labels)
            assert len(counts) == classes
            assert max(counts.values()) - min(counts.values()) <= 1


def test_pairs_of_a_group_share_their_first_text(source):
    for name, size in (("constructed_nli", 3), ("constructed_paraphrase", 2)):
        groups = {}
        for row in source.train(name):
            groups.setdefault(row["group"], []).append(row)
        assert {len(rows) for rows in groups.values()} == {size}
        assert all(len({row["text_a"] for row in rows}) == 1 and len({row["label"] for row in rows}) == size for rows in groups.values())
        assert all(row["text_a"] != row["text_b"] for row in source.train(name))


def test_answers_stand_where_the_row_says(source, tests):
    rows = [(name, row) for task in QA for name, found in tests[task].items() for row in found]
    rows += [(source.pivot, row) for name in ("constructed_qa", "constructed_qa_native") for row in source.train(name)]
    for name, row in rows:
        (answer,) = row["answers"]
        start, end = answer["start"], answer["start"] + len(answer["text"])
        assert row["context"][start:end] == answer["text"] != ""
        assert row["context"][end] == " "  # never in the middle of a word
        assert start == 0 or row["context"][start - 1] == " "
        stop = source.speakers[name.split("-")[0]].language.mark(False)
        assert row["context"].split(" ").count(stop) in (3, 4)


def test_exactly_one_sentence_answers_a_question(source, reader):
    kinds = source.world.kinds
    for item, row in zip(source.items("constructed_qa", "train"), source.train("constructed_qa"), strict=True):
        question = Claim.of(item.question.event, kinds).sets
        asked = {"count": ("patient", "count")}.get(item.asked, item.asked)
        part = {asked} if item.asked != "patient" else {key for key in question if "patient" in key}
        part = {key for key in question if "agent" in key} if item.asked == "agent" else part
        open_question = Claim({key: values for key, values in question.items() if key not in part})
        texts = [f"{text} ." for text in row["context"].removesuffix(" .").split(" . ")]
        answering = [any(Claim.of(event, kinds).entails(open_question) for event in reader.read(text)) for text in texts]
        assert answering[item.target]
        said = [Claim.of(sentence.event, kinds).entails(open_question) for sentence in item.context]
        assert said == [index == item.target for index in range(len(said))]
        start = row["answers"][0]["start"]
        assert row["context"][:start].split(" ").count(".") == item.target


def test_answers_are_spread_over_the_context(source):
    items = source.items("constructed_qa", "train")
    first = Counter((len(item.context), item.target) for item in items)
    assert all(
        first[size, target] > 0.5 * sum(first[size, other] for other in range(size)) / size for size in (3, 4) for target in range(size)
    )
    assert set(Counter(item.asked for item in items)) == {"agent", "patient", "time", "place", "count"}


def test_tags_fit_their_words(source, tests):
    for name in ("constructed_pos", "constructed_ner"):
        for language, rows in tests[name].items():
            speaker = source.speakers[language].language
            for row in rows:
                words, tags = row["words"], row["tags"]
                assert len(words) == len(tags)
                assert set(tags) <= set(TASKS[name].labels)
                assert all(word and " " not in word for word in words)
                if name == "constructed_ner":
                    assert all(
                        before[2:] == tag[2:] and before[0] in "BI" for before, tag in itertools.pairwise(["O", *tags]) if tag[0] == "I"
                    )
                else:
                    assert tags.count("VERB") == tags.count("CCONJ") + 1
                    assert (words[-1], tags[-1]) == (speaker.mark(False), "PUNCT")
                    assert all((word == speaker.word("in")) <= (tag == "ADP") for word, tag in zip(words, tags, strict=True))


def test_entity_spans_are_the_names_of_the_meaning(source, tests):
    items = source.items("constructed_ner", "test")
    for rows in tests["constructed_ner"].values():
        for item, row in zip(items, rows, strict=True):
            wanted = Counter()
            for sentence in item.sentences:
                event = sentence.event
                for name in (event.agent.head, event.patient.head, event.place):
                    if isinstance(name, Name):
                        wanted[name.kind, len(name.words)] += 1
            found, length, kind = Counter(), 0, ""
            for tag in [*row["tags"], "O"]:
                if tag[0] != "I" and length:
                    found[kind, length] += 1
                length = length + 1 if tag[0] == "I" else int(tag[0] == "B")
                kind = tag[2:] if tag[0] == "B" else kind
            assert found == wanted


def test_parts_of_speech_and_kinds_of_name_are_more_than_a_dictionary(source):
    for name, few, most in (("constructed_pos", 4, 0.99), ("constructed_ner", 3, 0.99)):
        found = {}
        for row in source.train(name):
            for word, tag in zip(row["words"], row["tags"], strict=True):
                found.setdefault(word, Counter())[tag] += 1
        assert sum(len(tags) > 1 for tags in found.values()) >= few
        assert sum(max(tags.values()) for tags in found.values()) < most * sum(map(Counter.total, found.values()))


# -------------------------------------------------------------------------------------------------------------- shortcuts


def overlap(row):
    one, other = row["text_a"].split(), row["text_b"].split()
    common = sum((Counter(one) & Counter(other)).values())
    return [
        common,
        common / len(one),
        common / len(other),
        len(one),
        len(other),
        len(row["text_a"]),
        len(row["text_b"]),
        one[0] == other[0],
    ]


@pytest.mark.parametrize(("name", "bound"), [("constructed_nli", 0.39), ("constructed_paraphrase", 0.56)])
def test_overlap_and_length_do_not_tell_the_label(name, bound):
    source = ConstructedSource(Constructed(train=3000, test=600))
    train = source.train(name)
    model, scale = LogisticRegression(), StandardScaler()
    model.fit(scale.fit_transform(np.array([overlap(row) for row in train], float)), [row["label"] for row in train])
    for language, rows in source.test(name).items():
        score = model.score(scale.transform(np.array([overlap(row) for row in rows], float)), [row["label"] for row in rows])
        assert score < bound, language
        shared = {label: [overlap(row)[1] for row in rows if row["label"] == label] for label in TASKS[name].labels}
        means = [float(np.mean(values)) for values in shared.values()]
        assert max(means) - min(means) < 0.04, language


@pytest.mark.parametrize("name", PAIRS)
def test_negation_does_not_tell_the_label(source, name):
    negation = source.speakers[source.pivot].language.word("not")
    shares = {}
    for row in ConstructedSource(Constructed(train=3000)).train(name):
        changed = (negation in row["text_a"].split()) != (negation in row["text_b"].split())
        shares.setdefault(row["label"], []).append(changed)
    means = [float(np.mean(values)) for values in shares.values()]
    assert min(means) > 0.1
    assert max(means) - min(means) < 0.05


def test_the_first_text_alone_says_nothing(source):
    rows = source.train("constructed_nli")
    by_text = {}
    for row in rows:
        by_text.setdefault(row["text_a"], Counter())[row["label"]] += 1
    assert sum(max(counts.values()) for counts in by_text.values()) <= len(rows) / 3 + 3


# ---------------------------------------------------------------------------------------------------------------- options


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.builds(
        Constructed,
        languages=st.integers(2, 8),
        romanised=st.booleans(),
        seed=st.integers(0, 1000),
        cognates=st.sampled_from([0.0, 0.12, 0.5, 1.0]),
        lexicon=st.integers(60, 160),
        names=st.integers(40, 120),
        documents=st.just(3),
        parallel=st.sampled_from([0, 3]),
        train=st.just(20),
        validation=st.just(5),
        test=st.just(8),
    )
)
def test_any_options_make_whole_data(options):
    source = ConstructedSource(options)
    assert len(source.languages) == len(set(source.languages)) == options.languages
    assert len(list(source.documents("train"))) == 3 * options.languages
    assert len(list(source.parallel("train"))) == options.parallel * (options.languages - 1)
    assert len(list(source.documents("validation"))) == options.languages
    for name, task in CONSTRUCTED.items():
        assert len(source.train(task.train)) == 20
        for rows in source.test(name).values():
            assert len(rows) == 8
            for row in rows:
                for answer in row.get("answers", ()):
                    assert row["context"][answer["start"] :].startswith(answer["text"] + " ")
                assert len(row.get("words", ())) == len(row.get("tags", ()))


def test_unknown_task_is_refused_with_the_nearest_name(source):
    with pytest.raises(MoebenchError, match=r"'constructed_nil' \(did you mean 'constructed_nli'\?\)"):
        source.test("constructed_nil")


def test_running_out_of_examples_is_said(source, monkeypatch):
    monkeypatch.setitem(MAKERS, "constructed_nli", lambda world, sampler, rng: itertools.repeat("one"))
    with pytest.raises(MoebenchError, match="no more than 1 different examples of constructed_nli"):
        source.items("constructed_nli", "train")


def test_questions_in_documents_are_answered_at_once(source):
    asked = 0
    for document in corpus.documents(source.world, "any", "train", 200):
        for line, following in itertools.pairwise(document):
            if line.kind == "question":
                asked += 1
                assert following.kind == "answer"
                assert following.asked == line.asked
        assert document[0].kind == "statement"
    assert asked > 30
