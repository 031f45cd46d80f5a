"""A model that is always right has the whole answer, whatever the tokenizer, script and normal form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import EVERY_TEXT, write_bundle
from tiny_texts import FORMS, SCRIPTS, TEXTS, in_form
from tiny_vocabularies import unigram, wordpiece
from tokenizers import normalizers

from moebench.data import tokenizer
from moebench.data.bundled import Bundle
from moebench.data.catalogue import task
from moebench.data.hub_tokenizer import from_checkpoint
from moebench.data.normaliser import MARK
from moebench.data.tokenizer import Tokenizer
from moebench.protocols.transfer.config import Finetuning
from moebench.protocols.transfer.features import features, predictions

OPTIONS = Finetuning(steps=1, batch=1, rate=1e-3, max_length=512, stride=128)
KIND = task("xquad")
NORMALISERS = {"nfc": normalizers.NFC(), "nfkc": normalizers.NFKC(), "nfkd": normalizers.NFKD(), "lowercase": normalizers.Lowercase()}
NORMALISERS["accents"] = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])


@pytest.fixture(scope="module", params=["trained", "bundled", "xlmr", "camembert", "mbert", "uncased", *NORMALISERS])
def ours(request, tmp_path_factory):
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    if name == "trained":
        return tokenizer.train(SCRIPTS, 400, folder)
    if name == "bundled":
        write_bundle(folder / "tiny.bin")
        return tokenizer.from_bundle(Bundle(folder / "tiny.bin"), EVERY_TEXT, folder)
    if name in ("xlmr", "camembert"):
        unigram(folder, split=name == "xlmr")
    else:
        wordpiece(folder, lowercase=name == "uncased", normaliser=NORMALISERS.get(name))
    return from_checkpoint(folder, folder / "prepared")


def words(text: str, ours: Tokenizer) -> list[tuple[int, int]]:
    """Ranges of the words between white space; what stands at the beginning of one and is nothing to the vocabulary is not in it."""
    ranges, begin = [], 0
    for place, character in enumerate(text + " "):
        if character.isspace() or character == MARK:
            if begin < place:
                ranges.append((begin, place))
            begin = place + 1
        elif begin == place and not ours.encode(character)[0]:
            begin += 1
    return ranges


def perfect(context: str, start: int, stop: int, ours: Tokenizer) -> str:
    """The prediction of a model that gives the gold span."""
    rows = [{"id": "q", "context": context, "question": "a", "answers": [{"text": context[start:stop], "start": start}]}]
    inputs = features(KIND, rows, ours, OPTIONS)
    assert inputs[0].span != (0, 0)
    return predictions(KIND, rows, inputs, [np.array([1.0, *inputs[0].span])])[0][0]["prediction"]


@settings(max_examples=150, deadline=None)
@given(context=TEXTS, data=st.data())
def test_an_answer_of_whole_words_reads_back(ours, context, data):
    ranges = words(context, ours)
    if ranges:
        first = data.draw(st.integers(0, len(ranges) - 1))
        start, stop = ranges[first][0], ranges[data.draw(st.integers(first, len(ranges) - 1))][1]
        assert perfect(context, start, stop, ours) == context[start:stop]


@pytest.mark.parametrize("form", FORMS)
def test_every_word_of_every_script_reads_back(ours, form):
    for text in SCRIPTS:
        context = in_form(text, form)
        for start, stop in words(context, ours):
            assert perfect(context, start, stop, ours) == context[start:stop]
