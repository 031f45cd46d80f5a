"""The script that tells how well constructed languages align: which word a form is, and which pivot word is nearest."""

import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from moebench.data.constructed import ConstructedSource
from moebench.data.constructed.tasks import tagged
from moebench.data.constructed.world import Sampler
from moebench.data.text_settings import Constructed

PATH = Path(__file__).parents[1] / "benchmarks" / "word_translation.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("word_translation", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["word_translation"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("romanised", [False, True])
def test_a_sentence_has_the_same_words_in_every_language(script, romanised):
    source = ConstructedSource(Constructed(languages=8, romanised=romanised))
    rng = random.Random(0)
    drawn = tagged(source.world, Sampler(source.world, rng, "train", "all"), rng)
    for sentence in (next(drawn).sentences[0] for _ in range(40)):
        read = {name: script.read(source.world, speaker, [sentence])[0] for name, speaker in source.speakers.items()}
        words = {name: Counter(word for _, word in statement if word) for name, statement in read.items()}
        assert words["toma"]
        assert all(found == words["toma"] for found in words.values())
        for name, statement in read.items():
            assert [form for form, _ in statement] == [token.form for token in script.tokens(source.speakers[name].sentence(sentence))]


def test_the_nearest_pivot_word_counts(script):
    pivot = {("NOUN", "a"): torch.tensor([1.0, 0.0]), ("NOUN", "b"): torch.tensor([0.0, 1.0]), ("VERB", "c"): torch.tensor([-1.0, 0.0])}
    other = {("NOUN", "a"): torch.tensor([9.0, 1.0]), ("NOUN", "b"): torch.tensor([3.0, 1.0]), ("VERB", "c"): torch.tensor([0.1, 0.2])}
    assert script.shares(pivot, other, list(other)) == (1 / 3, 2 / 3)  # a: itself; b: a; c: b
    assert script.shares(pivot, other, [("NOUN", "b")]) == (0, 1)
