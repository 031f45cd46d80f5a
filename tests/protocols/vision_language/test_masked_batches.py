"""Masks and batches: how much is masked and where, batches as functions of the step, parts that make the whole."""

import numpy as np
import pytest
import torch
from handmade import CODEBOOK, MODEL, WORDS, write
from hypothesis import given, settings
from hypothesis import strategies as st

from moebench.data.visual_tokens import patches
from moebench.errors import MoebenchError
from moebench.files import read_jsonl, write_jsonl
from moebench.models.vision_language import CLASS, MASK, PAD, SEPARATOR, UNKNOWN
from moebench.protocols.vision_language.batches import (
    MaskedBatches,
    MaskedRows,
    TaskBatches,
    examples,
    hidden_patches,
    mask_words,
    validation_batches,
)
from moebench.protocols.vision_language.build import build
from moebench.protocols.vision_language.config import SPECIAL, Pretraining
from moebench.protocols.vision_language.pretraining import MaskedModelling

V, K, T = len(WORDS), len(CODEBOOK), 4
OPTIONS = Pretraining(steps=5, batch=14, rows={"pairs": 5, "images": 6, "texts": 3}, rate=1.0, mask_image=0.5, mask_text=0.3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def rows(prepared):
    return MaskedRows(prepared / "pretrain" / "train", 2)


def test_special_words_have_the_places_that_the_prepared_words_give_them():
    assert [SPECIAL.index(f"[{name}]") for name in ("pad", "cls", "sep", "mask", "unk")] == [PAD, CLASS, SEPARATOR, MASK, UNKNOWN]


@settings(max_examples=40, deadline=None)
@given(side=st.integers(1, 9), share=st.floats(0.01, 1), count=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_every_image_has_its_share_of_masked_patches(side, share, count, seed):
    hidden = hidden_patches(count, side, share, np.random.default_rng(seed))
    assert hidden.shape == (count, side**2)
    assert hidden.sum(axis=1).tolist() == [max(1, round(share * side**2))] * count


def test_masked_patches_are_blocks_anywhere_in_the_image():
    hidden = hidden_patches(3000, 6, 0.4, np.random.default_rng(0)).reshape(-1, 6, 6)
    assert len(np.unique(hidden, axis=0)) > 2500
    assert hidden.mean(axis=0).min() > 0.1
    assert hidden.mean(axis=0).max() < 0.7
    pairs = hidden[:, :, 1:][hidden[:, :, :-1]].mean(), hidden[:, 1:][hidden[:, :-1]].mean()
    assert min(pairs) > 0.6  # right of and below a masked patch; of patches one by one it would be 13 / 35
    small = hidden_patches(400, 6, 1 / 18, np.random.default_rng(0)).reshape(-1, 6, 6)  # two patches, of blocks of three
    beside = (small[:, :, 1:] & small[:, :, :-1]).any(axis=(1, 2)) | (small[:, 1:] & small[:, :-1]).any(axis=(1, 2))
    assert beside.mean() > 0.5


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    shares=st.lists(st.floats(0.01, 1), min_size=5, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_every_text_has_its_share_of_masked_words_and_none_of_them_special(lengths, shares, seed):
    generator = np.random.default_rng(seed)
    ids = np.zeros((len(lengths), 14), np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[: length + 2] = [CLASS, *generator.integers(UNKNOWN, 20, length), SEPARATOR]
    shares = np.array(shares[: len(lengths)])
    corrupted, chosen = mask_words(ids, shares, 20, generator)
    for row, hidden, there, share in zip(ids, corrupted, chosen, shares, strict=True):
        may = [place for place in range(14) if row[place] not in (PAD, CLASS, UNKNOWN)]
        assert there.sum() == min(max(int(share * len(may) + 0.5), 1), len(may))
        assert set(np.flatnonzero(there)) <= set(may)
        assert (hidden[~there] == row[~there]).all()
        assert set(hidden[there].tolist()) <= {MASK, *row.tolist(), *range(UNKNOWN + 1, 20)}


def test_of_the_chosen_words_most_are_masked_some_are_others_and_some_stay():
    ids = np.tile(np.arange(4, 104), (400, 1))
    corrupted, chosen = mask_words(ids, np.full(400, 0.5), 1000, np.random.default_rng(0))
    masked, stays = (corrupted[chosen] == MASK).mean(), (corrupted[chosen] == ids[chosen]).mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert stays == pytest.approx(0.1, abs=0.01)
    assert chosen.mean(axis=0)[1:].std() < 0.03  # anywhere in a text


def test_a_batch_holds_pairs_and_then_images_and_texts_that_are_apart(rows):
    numbers = np.array([3, 9]), np.array([1, 0, 7]), np.array([30])
    batch = rows.masked(numbers, OPTIONS, V, np.random.default_rng(0))
    assert batch["apart"].tolist() == [False, False, True, True, True]
    images = [rows.pairs.images[[3, 9]], rows.alone.images[[1, 0, 7]]]
    visual = [rows.pairs.visual_NT[[3, 9]], rows.alone.visual_NT[[1, 0, 7]]]
    assert torch.equal(batch["patches"], torch.from_numpy(patches(np.concatenate(images), 2)).float() / 127.5 - 1)
    assert batch["visual"].tolist() == np.concatenate(visual).tolist()
    assert batch["hidden"].sum(1).tolist() == [2] * 5
    restored = batch["words"].clone()
    restored[batch["chosen"]] = batch["targets"]
    texts = [*rows.captions_NW[[3, 9]], *rows.texts_NW[[30]], *np.zeros((2, 8), int)]
    assert restored.tolist() == [list(text[: restored.shape[1]]) for text in texts]
    assert restored.shape[1] == max((text != PAD).sum() for text in texts)
    words = (restored != PAD).sum(1).tolist()
    assert batch["mask"].sum(1).tolist() == [1 + T + length for length in words]
    shares = zip(words[:3], (OPTIONS.mask_text_of_pairs,) * 2 + (OPTIONS.mask_text,), strict=True)
    assert batch["chosen"].sum(1).tolist() == [max(1, int(share * (length - 1) + 0.5)) for length, share in shares] + [0, 0]
    assert batch["weight"].tolist() == [1, 1, 1]


def test_more_texts_than_images_leave_rows_without_an_image(rows):
    batch = rows.masked((np.arange(1), np.arange(2), np.arange(4)), OPTIONS, V, np.random.default_rng(0))
    assert batch["mask"][:, 0].tolist() == [True, True, True, False, False]
    assert not batch["mask"][3:, : 1 + T].any()
    assert batch["mask"][:, 1 + T].all()
    assert batch["hidden"].any(1).tolist() == [True, True, True, False, False]


def test_a_batch_is_a_function_of_the_step(rows):
    one, other = MaskedBatches(rows, OPTIONS, V, 3), MaskedBatches(rows, OPTIONS, V, 3)
    other(0)
    first, again, later = one(2), other(2), one(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patches"], later["patches"])
    assert not torch.equal(first["patches"], MaskedBatches(rows, OPTIONS, V, 4)(2)["patches"])


def module_of(rows):
    torch.manual_seed(0)
    plan = {"model": MODEL, "sparse_every": 2, "method": {"layer": "dense", "router": None, "options": {}}}
    encoder = build(plan | {"sizes": {"experts": 1, "inner": 12}}, V, K)
    return MaskedModelling(encoder, K, OPTIONS, {}, 0).double()


def doubled(batch):
    return batch | {"patches": batch["patches"].double()}


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_the_parts_of_a_batch_make_the_step_of_the_whole(rows, parts):
    """The mean over parts is the loss, and its gradient that of the whole; of eight parts some have no pair, some no text."""
    module, whole = module_of(rows), MaskedBatches(rows, OPTIONS, V, 0)(1)
    divided = [MaskedBatches(rows, OPTIONS, V, 0, part, parts)(1) for part in range(parts)]
    assert sum(len(batch["targets"]) for batch in divided) == len(whole["targets"])
    losses = [module.part_loss(doubled(batch))[0] for batch in (whole, *divided)]
    mean = torch.stack(losses[1:]).mean()
    torch.testing.assert_close(mean, losses[0])
    expected, found = (torch.autograd.grad(loss, list(module.parameters())) for loss in (losses[0], mean))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_is_the_sum_of_three_means(rows):
    """Each row by itself, without padding, and each masked token by itself."""
    module, batch = module_of(rows).eval(), doubled(MaskedBatches(rows, OPTIONS, V, 0)(1))
    targets, found = batch["targets"].tolist(), {"pairs": [], "images": [], "texts": []}
    for row, apart in enumerate(batch["apart"].tolist()):
        there = batch["mask"][row]
        length, seen = int(there[1 + T :].sum()), bool(there[0])
        image = batch["patches"][[row]] if seen else None
        given = {"hidden_BT": batch["hidden"][[row]], "visual_BT": batch["visual"][[row]]} if seen else {}
        text = batch["words"][[row], :length] if length else None
        states = (
            [module.encoder(image, None, **given)[0], None if text is None else module.encoder(None, text)[0]] if apart and seen else None
        )
        if not apart:
            both = module.encoder(image, text, **given)[0]
            states = [both[:, : 1 + T], both[:, 1 + T :]]
        elif not seen:
            states = [None, module.encoder(None, text)[0]]
        for place in batch["chosen"][row].nonzero()[:, 0].tolist():
            logits = module.words_head(states[1][0, place], module.encoder.words.weight)
            found["texts" if apart else "pairs"].append(-logits.log_softmax(-1)[targets.pop(0)].item())
        for place in batch["hidden"][row].nonzero()[:, 0].tolist():
            logits = module.patches_head(states[0][0, 1 + place])
            found["images" if apart else "pairs"].append(-logits.log_softmax(-1)[batch["visual"][row, place]].item())
    assert not targets
    assert module.part_loss(batch)[0].item() == pytest.approx(sum(np.mean(values) for values in found.values()), rel=1e-6)


def test_validation_has_every_row_once_masked_alike_every_time(rows):
    batches, again = (validation_batches(rows, OPTIONS, V, 16) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for one, other in zip(batches, again, strict=True) for name in one)
    assert [int((~batch["apart"]).sum()) for batch in batches] == [14, 13, 13]
    (whole,) = validation_batches(rows, OPTIONS, V, 100)
    assert sorted(whole["targets"].tolist()) == sorted(target for batch in batches for target in batch["targets"].tolist())
    assert sum(int((batch["apart"] & batch["mask"][:, 0]).sum()) for batch in batches) == 35
    assert sum(int((batch["apart"] & batch["mask"][:, 1 + T]).sum()) for batch in batches) == 43


def test_words_and_visual_tokens_are_counted(rows):
    counts = rows.counts(V, K).tolist()
    texts = [*rows.captions_NW.ravel().tolist(), *rows.texts_NW.ravel().tolist()]
    assert counts[:V] == [0] + [texts.count(word) for word in range(1, V)]
    visual = [*rows.pairs.visual_NT.ravel().tolist(), *rows.alone.visual_NT.ravel().tolist()]
    assert counts[V:] == [visual.count(token) for token in range(K)]


def test_files_that_are_not_of_the_same_rows_are_refused(tmp_path):
    write(tmp_path)
    folder = tmp_path / "pretrain" / "train"
    np.save(folder / "captions.npy", np.load(folder / "captions.npy")[1:])
    with pytest.raises(MoebenchError, match=r"captions\.npy: 39 captions; should be 40, one an image"):
        MaskedRows(folder, 2)
    np.save(folder / "alone_visual.npy", np.zeros((3, T), np.int32))
    with pytest.raises(MoebenchError, match=r"alone_visual\.npy: tokens of 3 images; should be 35, as alone\.npy has"):
        MaskedRows(folder, 2)


# ------------------------------------------------------------------------------------------------------------------- tasks


def read(prepared, task, split="train", learned=True):
    return examples(task, prepared / task / split, 2, 8, 2, learned)


def text_of(ids):
    return " ".join(WORDS[word] for word in ids if word > SEPARATOR)


def test_an_example_is_a_row_or_a_caption(prepared):
    vqa, rows = read(prepared, "vqa")
    assert vqa.targets_NC.argmax(1).tolist() == [["no", "yes"].index(row["answers"][0]) for row in rows]
    assert vqa.images_NI.tolist() == [[row["image"]] for row in rows]
    assert vqa.words[0] == [CLASS, *(WORDS.index(word) for word in ["is", "it", "bright"]), SEPARATOR]
    nlvr, rows = read(prepared, "nlvr")
    assert nlvr.targets_NC.argmax(1).tolist() == [["true", "false"].index(row["label"]) for row in rows]
    assert nlvr.images_NI.tolist() == [[row["left"], row["right"]] for row in rows]
    caption, rows = read(prepared, "caption")
    assert len(caption) == 60
    assert caption.images_NI[:4].tolist() == [[0], [0], [1], [1]]
    assert text_of(caption.words[2]) == " ".join(rows[2]["captions"][0].split()[:6])  # no more than eight words, special ones included
    assert all(text[0] == CLASS and text[-1] == SEPARATOR and len(text) <= 8 for text in caption.words)
    assert [row["id"] for row in read(prepared, "caption", "test", learned=False)[1]] == [f"test-{number}" for number in range(11)]


def test_soft_scores_become_a_distribution_and_what_cannot_be_learned_is_left_out(prepared, tmp_path):
    folder = tmp_path / "vqa" / "train"
    folder.mkdir(parents=True)
    for name in ("images", "visual"):
        np.save(folder / f"{name}.npy", np.load(prepared / "vqa" / "train" / f"{name}.npy"))
    rows = read_jsonl(prepared / "vqa" / "train" / "rows.jsonl")[:3]
    rows[0]["targets"], rows[1]["targets"] = [], [[0, 0.9], [1, 0.3]]
    write_jsonl(folder / "rows.jsonl", rows)
    learned, kept = read(tmp_path, "vqa")
    assert [row["id"] for row in kept] == ["train-1", "train-2"]
    assert learned.targets_NC[0].tolist() == pytest.approx([0.75, 0.25])
    assert len(read(tmp_path, "vqa", learned=False)[1]) == 3
    write_jsonl(folder / "rows.jsonl", rows[:1])
    with pytest.raises(MoebenchError, match=r"rows\.jsonl: no examples to train on"):
        read(tmp_path, "vqa")


def test_both_images_of_a_statement_stand_in_rows_of_their_own_with_its_sentence(prepared):
    nlvr, rows = read(prepared, "nlvr")
    batch = nlvr.batch(np.array([4, 9]))
    images = np.load(prepared / "nlvr" / "train" / "images.npy")[[rows[n][side] for n in (4, 9) for side in ("left", "right")]]
    assert torch.equal(batch["patches"], torch.from_numpy(patches(images, 2)).float() / 127.5 - 1)
    assert batch["words"].tolist() == [[CLASS, WORDS.index("it"), WORDS.index("is"), SEPARATOR]] * 4
    assert batch["mask"].all()
    assert len(batch["targets"]) == 2


@pytest.mark.parametrize("task", ["vqa", "nlvr", "caption"])
@pytest.mark.parametrize("parts", [2, 5])
def test_an_epoch_has_every_example_once_and_parts_make_the_batch(prepared, task, parts):
    given, _ = read(prepared, task)
    mask = 0.7 if task == "caption" else None

    def batches(part, parts):
        return TaskBatches(given, 7, mask, V, 0, part, parts)

    whole, steps = batches(0, 1), -(-len(given) // 7)
    seen = np.concatenate([whole.batches[step] for step in range(steps)])
    assert sorted(seen.tolist()) == list(range(len(given)))
    divided = [batches(part, parts) for part in range(parts)]
    for step in (1, steps + 2):
        batch, pieces = whole(step), [each(step) for each in divided]
        assert all(torch.equal(batch[name], batches(0, 1)(step)[name]) for name in batch)  # whatever was asked before
        images = given.images_NI.shape[1]
        for place in range(len(batch["patches"]) // images):
            piece, at = pieces[place % parts], place // parts
            for image in range(images):
                one, other = place * images + image, at * images + image
                assert torch.equal(batch["patches"][one], piece["patches"][other])
                length = int(batch["mask"][one].sum()) - 1 - T
                assert torch.equal(batch["words"][one, :length], piece["words"][other, :length])
                assert batch["mask"][one].sum() == piece["mask"][other].sum()
                if task == "caption":
                    assert torch.equal(batch["chosen"][one, :length], piece["chosen"][other, :length])
        assert sum(len(piece["targets"]) for piece in pieces) == len(batch["targets"])
        assert sum(piece["weight"].item() for piece in pieces) == pytest.approx(parts)
    if task == "caption":
        chosen, words = batch["chosen"].sum(1), batch["mask"][:, 1 + T :].sum(1)
        assert chosen.tolist() == [int(0.7 * (length - 1) + 0.5) for length in words.tolist()]
        assert not batch["chosen"][:, 0].any()


def test_an_empty_part_has_no_rows(prepared):
    given, _ = read(prepared, "caption")
    empty = TaskBatches(given, 1, 0.7, V, 0, 1, 2)
    assert len(empty(0)["patches"]) == len(empty(0)["targets"]) == 0
    assert empty(0)["weight"].item() == 0
