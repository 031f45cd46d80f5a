"""Prepared images and texts: their layout, that splits share nothing, and what is made of original files."""

import json
from collections import Counter

import numpy as np
import pytest
from tiny_originals import write_picture

from moebench.data.scenes import DIGITS
from moebench.errors import MoebenchError
from moebench.files import read_json, read_jsonl
from moebench.metrics.vqa import vqa_accuracies
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.protocols.vision_language.config import SPECIAL, TASKS
from moebench.protocols.vision_language.sources import answer_list, targets

SPLITS = ("train", "validation", "test")


def arrays(folder):
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def words_of(paper):
    return read_json(paper.prepared / "words.json")


# ---------------------------------------------------------------------------------------------------------------- scenes


def test_what_is_pretrained_on_has_the_shapes_that_are_asked_for(prepared_paper):
    for split, (pairs, images, texts) in (("train", (30, 20, 25)), ("validation", (8, 8, 8))):
        found = arrays(prepared_paper.prepared / "pretrain" / split)
        assert {name: (one.shape, str(one.dtype)) for name, one in found.items()} == {
            "images": ((pairs, 24, 24, 1), "uint8"),
            "visual": ((pairs, 9), "int32"),
            "captions": ((pairs, 25), "int32"),
            "alone": ((images, 24, 24, 1), "uint8"),
            "alone_visual": ((images, 9), "int32"),
            "texts": ((texts, 25), "int32"),
        }
    manifest = read_json(prepared_paper.prepared / "manifest.json")
    words, answers = words_of(prepared_paper), read_json(prepared_paper.prepared / "answers.json")
    assert (manifest["vocabulary"], manifest["answers"], manifest["codebook"]) == (len(words), len(answers), 8)
    assert np.load(prepared_paper.prepared / "codebook.npy").shape == (8, 64)
    assert manifest["source"] == "scenes"
    assert manifest["revision"].startswith("scenes-")


def test_texts_stand_between_special_words_and_say_what_they_said(prepared_paper):
    words = words_of(prepared_paper)
    assert tuple(words[:5]) == SPECIAL
    assert len(set(words)) == len(words)
    first, said = arrays(prepared_paper.prepared / "pretrain" / "train"), []
    for row in (*first["captions"].tolist(), *first["texts"].tolist()):
        length = sum(word != 0 for word in row)
        assert (row[0], row[length - 1], set(row[length:])) in ((1, 2, {0}), (1, 2, set()))
        assert min(row[1 : length - 1]) > 4  # all words of scenes are known
        said.append(" ".join(words[word] for word in row[1 : length - 1]))
    assert any(text.startswith("there is a") and " above " in text for text in said[:30])
    assert {"how many", "there are", "both images"} <= {" ".join(text.split()[:2]) for text in said[30:]}  # questions and statements, alone


def test_visual_tokens_are_the_nearest_entries(prepared_paper):
    codebook = np.load(prepared_paper.prepared / "codebook.npy").astype(int)
    for folder in (prepared_paper.prepared / "pretrain/validation", prepared_paper.prepared / "nlvr/test"):
        found = arrays(folder)
        for image, tokens in zip(found["images"][:5].astype(int), found["visual"], strict=False):
            for place, token in enumerate(tokens):
                row, column = divmod(place, 3)
                patch = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].ravel()
                distances = ((codebook - patch) ** 2).sum(1)
                assert distances[token] == distances.min()


def test_rows_of_tasks_have_ids_of_their_words_and_questions_their_targets(prepared_paper):
    words, answers = words_of(prepared_paper), read_json(prepared_paper.prepared / "answers.json")
    for task, key in (("vqa", "question"), ("nlvr", "sentence"), ("caption", "captions")):
        for split, count in (("train", 48), ("validation", 12), ("test", 24)):
            rows = read_jsonl(prepared_paper.prepared / task / split / "rows.jsonl")
            assert len(rows) == count
            for row in rows:
                texts, ids = (row[key], row["ids"]) if task == "caption" else ([row[key]], [row["ids"]])
                assert [" ".join(words[word] for word in one) for one in ids] == texts
                if task == "vqa":
                    assert row["targets"] == [[answers.index(answer), 1.0] for answer in row["answers"] if answer in answers]
                    assert row["targets"] or split != "train"
    counts = Counter(row["answers"][0] for row in read_jsonl(prepared_paper.prepared / "vqa/train/rows.jsonl"))
    assert [counts[answer] for answer in answers] == sorted(counts.values(), reverse=True)


def composition(caption):
    """Which digits a caption speaks of, however they stand."""
    return tuple(sorted(word for word in caption.split() if word in DIGITS))


def test_splits_share_neither_images_nor_compositions(prepared_paper):
    folder = prepared_paper.prepared
    seen = {split: {composition(row["captions"][0]) for row in read_jsonl(folder / f"caption/{split}/rows.jsonl")} for split in SPLITS}
    words = words_of(prepared_paper)
    for split in ("train", "validation"):
        captions = np.load(folder / f"pretrain/{split}/captions.npy")
        seen[split] |= {composition(" ".join(words[word] for word in row)) for row in captions.tolist()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    images = {split: set() for split in SPLITS}
    for split in SPLITS:
        for path in (*folder.glob(f"*/{split}/images.npy"), *folder.glob(f"*/{split}/alone.npy")):
            images[split] |= {tile.tobytes() for tile in tiles(np.load(path)) if tile.any()}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]
    assert not images["validation"] & images["test"]


def tiles(images):
    """The digits of scenes."""
    return [image[row : row + 8, column : column + 8] for image in images for row in (0, 8, 16) for column in (0, 8, 16)]


def test_the_same_configuration_makes_the_same_data(write, prepared_paper):
    again = write()
    prepare(again)
    assert read_json(again.prepared / "manifest.json") == read_json(prepared_paper.prepared / "manifest.json")
    assert read_json(again.part_file("vqa")) == read_json(prepared_paper.part_file("vqa"))


def test_a_run_depends_on_its_own_rows(prepared_paper):
    for part in ("pretrain", *TASKS):
        files = read_json(prepared_paper.part_file(part))
        assert {name.split("/")[0] for name in files} == {part, "words.json", "codebook.npy", "answers.json"}


def test_texts_that_are_too_long_are_refused(write):
    with pytest.raises(MoebenchError, match=r"smoke\.yaml: key 'model\.words' has the value 12; should be at least \d+ for '"):
        prepare(write(("setting", "model", "words", 12)))


# --------------------------------------------------------------------------------------------------- words and answers


@pytest.mark.parametrize("people", [["x"] * n + ["y"] * (10 - n) for n in range(11)] + [list("pqrstuvwxy"), ["x", "z"] * 5])
def test_targets_are_the_scores_that_the_evaluation_gives(people):
    places = {answer: place for place, answer in enumerate("yxwv")}
    found = targets(people, places, str)
    expected = {place: vqa_accuracies([answer], [people])[0] for answer, place in places.items() if answer in people}
    assert dict(found) == pytest.approx(expected)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_the_list_of_answers_is_that_of_each_questions_most_frequent_one():
    rows = [{"answers": ["Yes", "yes", "no"]}, {"answers": ["no", "no", "yes"]}, {"answers": ["two", "2", "yes"]}, {"answers": ["no"]}]
    assert answer_list(rows, str.lower, None) == ["no", "2", "yes"]
    assert answer_list(rows, str.lower, 1) == ["no"]


# -------------------------------------------------------------------------------------------------------- original files

QUESTIONS = 6
"""Images of VQAv2's training set, each with two questions."""


def write_vqa(folder, split, count, said):
    questions = [{"question_id": 10 * at + n, "image_id": at, "question": f"{said} {n}?"} for at in range(count) for n in (0, 1)]
    annotations = [
        {
            "question_id": one["question_id"],
            "image_id": one["image_id"],
            "question_type": said,
            "answers": [{"answer": answer} for answer in ["two"] * 6 + ["The dog."] * 4],
        }
        for one in questions
    ]
    for at in range(count):
        write_picture(folder / f"coco/{split}/COCO_{split}_{at:012}.jpg", colour=(40 * at, 7, 9))
    (folder / "vqa").mkdir(exist_ok=True)
    (folder / f"vqa/v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"data_subtype": split, "questions": questions}))
    (folder / f"vqa/v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))


@pytest.fixture
def originals(tmp_path, write, monkeypatch):
    """Tiny original files, and the paper that reads them."""
    folder = tmp_path / "files"
    write_vqa(folder, "train2014", QUESTIONS, "what is this")
    write_vqa(folder, "val2014", 2, "where is")
    for name, count in (("train", 4), ("dev", 2), ("test1", 2)):
        lines = []
        for at in range(count):
            lines.append({"identifier": f"{name}-{at}-0-0", "sentence": f"Both of {at} are red.", "label": "True"})
            for side in (0, 1):
                write_picture(folder / f"nlvr/images/{name}/{name}-{at}-0-img{side}.png", colour=(30 * at, 100 * side, 5))
        (folder / f"nlvr/{name}.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    splits = ["train"] * 3 + ["restval", "val", "test"]
    images = [
        {
            "cocoid": at,
            "split": split,
            "filepath": "karpathy",
            "filename": f"{at}.jpg",
            "sentences": [{"raw": f"A dog on picture number {at}, said {n} times."} for n in range(2)],
        }
        for at, split in enumerate(splits)
    ]
    for at in range(len(splits)):
        write_picture(folder / f"coco/karpathy/{at}.jpg", colour=(9, 40 * at, 3))
    (folder / "captions.json").write_text(json.dumps({"images": images}))
    monkeypatch.setenv("MOEBENCH_FOLDER", str(folder))

    def paper(**files):
        return write(
            ("data", "source", "files"),
            ("data", "files", {"coco": "coco", "vqa": "vqa", "nlvr": "nlvr", "captions": "captions.json"} | files),
            *(("data", task, {"validation": 2} if task == "vqa" else {}) for task in TASKS),
            ("data", "vocabulary", 17),
            ("data", "answers", 1),
            ("data", "codebook", 4),
            *(("setting", "model", key, value) for key, value in (("image", 16), ("channels", 3), ("words", 7))),
        )

    return folder, paper


def test_original_files_become_the_same_rows(originals):
    _, paper = originals
    paper = paper()
    prepare(paper)
    folder, manifest = paper.prepared, read_json(paper.prepared / "manifest.json")
    rows = {(task, split): read_jsonl(folder / task / split / "rows.jsonl") for task in TASKS for split in SPLITS}
    assert {key: len(found) for key, found in rows.items()} == {
        **{("vqa", "train"): 2 * QUESTIONS - 2, ("vqa", "validation"): 2, ("vqa", "test"): 4},
        **{("nlvr", "train"): 4, ("nlvr", "validation"): 2, ("nlvr", "test"): 2},
        **{("caption", "train"): 4, ("caption", "validation"): 1, ("caption", "test"): 1},
    }
    held_out = {row["id"] for row in rows["vqa", "validation"]}
    assert len({int(number) // 10 for number in held_out}) == 1  # both questions on one image, and on no image that is trained on
    assert not {int(number) // 10 for number in held_out} & {int(row["id"]) // 10 for row in rows["vqa", "train"]}
    assert read_json(folder / "answers.json") == ["2"]
    assert rows["vqa", "train"][0]["targets"] == [[0, 1.0]]
    words = words_of(paper)
    assert len(words) == 17
    assert words[:5] == list(SPECIAL)
    caption = rows["caption", "train"][0]["ids"][0]
    assert [words[word] for word in caption] == ["a", "dog", "on", "picture", "number"]  # cut to what the model takes
    assert 4 in {word for row in rows["nlvr", "train"] for word in row["ids"]}  # words that are not kept
    assert manifest["cut"] > 0
    assert manifest["source"] == "files"
    pretrain = arrays(folder / "pretrain/train")
    assert pretrain["images"].shape == (4, 16, 16, 3)
    assert pretrain["alone"].shape == (8, 16, 16, 3)
    assert pretrain["texts"].shape == (14, 7)
    assert set(pretrain["visual"].ravel()) <= set(range(4))


def test_more_pairs_pictures_and_texts_join_those_of_the_tasks(originals):
    folder, paper = originals
    for at in range(5):
        write_picture(folder / f"more/{at}.png", colour=(1, 2, 50 * at))
    captions = {
        "images": [{"id": at, "file_name": f"{at}.png"} for at in range(2)],
        "annotations": [{"image_id": at, "caption": "more of it"} for at in range(2)],
    }
    (folder / "more.json").write_text(json.dumps(captions))
    (folder / "texts.txt").write_text("\n".join(f"line number {at}" for at in range(300)))
    paper = paper(pairs=[{"captions": "more.json", "pictures": "more"}], pictures="more", texts="texts.txt")
    prepare(paper)
    found = arrays(paper.prepared / "pretrain/train")
    assert len(found["images"]) == 6
    assert len(found["alone"]) == 5
    assert len(found["texts"]) == 25  # at most
    words = words_of(paper)
    assert {words[word] for word in found["texts"][:, 1]} == {"line"}


def test_a_missing_original_is_named_with_what_to_do(originals):
    folder, paper = originals
    (folder / "nlvr/test1.json").unlink()
    with pytest.raises(MoebenchError, match=r"nlvr/test1\.json(.|\n)*data/README\.md, section Images with text, says which files go where"):
        prepare(paper())


def test_the_plan_sees_that_original_files_change(originals):
    folder, paper = originals
    before = planned(paper())["prepare"]
    assert planned(paper())["prepare"] == before
    (folder / "nlvr/dev.json").write_text("{}")
    assert planned(paper())["prepare"] != before
