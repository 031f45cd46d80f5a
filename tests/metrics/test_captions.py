"""BLEU-4 and CIDEr-D against stored outputs of the COCO evaluation, and by hand."""

from math import exp, sqrt
from pathlib import Path

import numpy as np
import pytest

from moebench.metrics.captions import ABSENT, caption_scores, cider_scores, tokens

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics_captions.npz", allow_pickle=False)


@pytest.mark.parametrize("case", ["many", "five", "two"])
def test_equals_the_coco_evaluation(case):
    """With one to five references, an empty caption and one of a single word."""
    predictions = [str(caption) for caption in GOLDEN[f"{case}/predictions"]]
    references = [[str(text) for text in row[:n]] for row, n in zip(GOLDEN[f"{case}/references"], GOLDEN[f"{case}/counts"], strict=True)]
    scores = caption_scores(predictions, references)
    assert scores["bleu4"] == pytest.approx(float(GOLDEN[f"{case}/bleu4"]), abs=1e-9)
    assert scores["cider"] == pytest.approx(float(GOLDEN[f"{case}/cider"]), abs=1e-12)
    np.testing.assert_allclose(cider_scores(predictions, references), GOLDEN[f"{case}/cider_each"], atol=1e-12)


def test_bleu_by_hand():
    def bleu(said, *references):
        return caption_scores([said], [references])["bleu4"]

    # 5 of 6 words (the second "the" is one too many), 3 of 5, 2 of 4 and 1 of 3 n-grams
    assert bleu("the cat sat on the mat", "the cat sat on a mat") == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu("a b c d", "a b c d e f") == pytest.approx(exp(1 - 6 / 4))
    assert bleu("a b c d", "a b c d e f", "a b c") == pytest.approx(1)  # of the lengths 6 and 3 the latter is closer
    assert bleu("a b c d", "d c b a") == 0


def test_cider_by_hand():
    """Two images that share no word, so every n-gram weighs ln 2, which cancels."""
    assert cider_scores(["a b", "c d"], [["a b"], ["c d"]]) == [pytest.approx(5)] * 2  # n = 3 and 4 are not there
    short = 10 / 4 / sqrt(2) * exp(-1 / 72)  # one bigram fewer
    assert cider_scores(["a", "c d"], [["a b"], ["c d"]])[0] == pytest.approx(short)
    assert cider_scores(["a", "c d"], [["a b", "x"], ["c d"]])[0] == pytest.approx(short / 2)
    assert cider_scores(["a b c d", "e"], [["a b c d"], ["e f"]])[0] == pytest.approx(10)


def test_what_every_image_has_weighs_nothing():
    assert cider_scores(["a dog", "a cat"], [["a horse"], ["a cow"]]) == [0, 0]
    assert cider_scores(["a dog"], [["a dog"]]) == [0]


def test_repeating_the_right_word_gains_nothing():
    """The clipping of CIDEr-D."""
    once, thrice = (cider_scores([said, "c d"], [["a b"], ["c d"]])[0] for said in ("a b", "a b a b a b"))
    assert thrice < once


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a horse.", "a man riding a horse"),
        ("It's a dog's t-shirt!", "it 's a dog 's t-shirt"),
        ('He doesn\'t say "hello"', "he does n't say hello"),
        ("1,000 people at 3.30 -- two/three?", "1,000 people at 3.30 two/three"),
        (" ", ""),
    ],
)
def test_tokens(caption, words):
    assert tokens(caption) == words.split()


def test_what_needs_java_is_none_and_says_why():
    scores = caption_scores(["a b c d"], [["a b c d"]])
    assert (scores["meteor"], scores["spice"]) == (None, None)
    assert set(ABSENT) == {"meteor", "spice"}
    assert all("Java" in why for why in ABSENT.values())


def test_refuses_what_it_cannot_score():
    for predictions, references in (([], []), (["a"], []), (["a"], [["a"], ["b"]])):
        with pytest.raises(ValueError, match="should be one of each, of one image at least"):
            caption_scores(predictions, references)
    with pytest.raises(ValueError, match="image 1 has no reference"):
        cider_scores(["a", "b"], [["a"], []])
