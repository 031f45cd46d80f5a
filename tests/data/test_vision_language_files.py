"""Readers of VQAv2, NLVR2 and COCO captions, on tiny files that are written here as the originals are."""

import json

import numpy as np
import pytest
from tiny_originals import write_picture

from moebench.data.vision_language_files import coco_captions, karpathy, nlvr2, vqa_v2
from moebench.errors import MoebenchError


def colours(data):
    """The red of each image, which tells which picture it is."""
    return data.images[:][..., 0].max((1, 2)).tolist()


@pytest.fixture
def vqa(tmp_path):
    for number, red in ((9, 10), (25, 200)):
        write_picture(tmp_path / "val2014" / f"COCO_val2014_{number:012}.jpg", colour=(red, 0, 0))
    asked = [(25000, 25, "What is it?"), (9000, 9, "How many?"), (25001, 25, "Is it red?")]
    questions = {
        "info": {"year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "questions": [{"image_id": image, "question": text, "question_id": number} for number, image, text in asked],
    }
    annotations = {
        "annotations": [  # in another order
            {
                "question_type": text.lower()[:-1],
                "multiple_choice_answer": "2",
                "answers": [{"answer": str(person % 3), "answer_confidence": "yes", "answer_id": person + 1} for person in range(10)],
                "image_id": image,
                "answer_type": "number",
                "question_id": number,
            }
            for number, image, text in asked[::-1]
        ]
    }
    files = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", tmp_path / "v2_mscoco_val2014_annotations.json"
    for file, value in zip(files, (questions, annotations), strict=True):
        file.write_text(json.dumps(value))
    return tmp_path, *files, questions, annotations


def test_vqa(vqa):
    folder, questions, annotations, *_ = vqa
    data = vqa_v2(questions, annotations, folder, 16)
    assert data.images.shape == (2, 16, 16, 3)
    assert np.abs(np.array(colours(data)) - [200, 10]).max() < 8
    assert [row["image"] for row in data.rows] == [0, 1, 0]
    assert [row["id"] for row in data.rows] == ["25000", "9000", "25001"]
    expected = {"id": "9000", "image": 1, "question": "How many?", "answers": list("0120120120"), "type": "how many"}
    assert data.rows[1] == expected


def test_vqa_without_answers(vqa):
    folder, questions, _, asked, _ = vqa
    for number in (9, 25):
        write_picture(folder / "test2015" / f"COCO_test2015_{number:012}.jpg")
    questions.write_text(json.dumps({**asked, "data_subtype": "test-dev2015"}))
    data = vqa_v2(questions, None, folder, 8)
    assert {(*row["answers"], row["type"]) for row in data.rows} == {("",)}
    assert data.images.paths[0].endswith("test2015/COCO_test2015_000000000025.jpg")


def test_vqa_mistakes(vqa):
    folder, questions, annotations, asked, answered = vqa
    entries = answered["annotations"]
    for wrong, message in (
        (entries[1:], r"annotations\.json: no annotation of question_id 25001, which .*questions\.json: questions\[2\] has"),
        ([{**entries[0], "image_id": 9}, *entries[1:]], r"annotations\[0\]: key 'image_id' has the value 9; should be 25, as in .*\[2\]"),
        ([{**entries[0], "answers": "2"}, *entries[1:]], r"annotations\[0\]: key 'answers' has the value '2'; should be of type list"),
        ([{**entries[0], "answers": [{}]}, *entries[1:]], r"annotations\[0\]: key 'answer' is missing; should be of type str"),
        ({}, r"annotations\.json: key 'annotations' has the value {}; should be of type list"),
        ([3], r"annotations\[0\]: key 'question_id' is missing"),
    ):
        annotations.write_text(json.dumps({"annotations": wrong}))
        with pytest.raises(MoebenchError, match=message):
            vqa_v2(questions, annotations, folder, 8)
    for wrong, message in (
        ([{**asked["questions"][0], "question_id": True}], r"questions\[0\]: key 'question_id' has the value True; should be of type int"),
        ([{**asked["questions"][0], "image_id": 8}], r"COCO_val2014_000000000008\.jpg: not there, but in .*questions\[0\]"),
    ):
        questions.write_text(json.dumps({**asked, "questions": wrong}))
        with pytest.raises(MoebenchError, match=message):
            vqa_v2(questions, None, folder, 8)
    questions.write_text("{")
    with pytest.raises(MoebenchError, match=r"questions\.json: not valid JSON"):
        vqa_v2(questions, None, folder, 8)
    questions.write_text("[]")
    with pytest.raises(MoebenchError, match=r"questions\.json: \[\]; should be a JSON object"):
        vqa_v2(questions, None, folder, 8)


def statement(identifier, label="True", **other):
    return json.dumps({"sentence": "Both are red.", "label": label, "identifier": identifier, "validation": {"77": "True"}, **other})


def test_nlvr2(tmp_path):
    for pair in (0, 3):
        for side in (0, 1):
            write_picture(tmp_path / f"dev-850-{pair}-img{side}.png", colour=(100 * side + pair, 0, 0))
    file = tmp_path / "dev.json"
    file.write_text("\n".join([statement("dev-850-3-1"), statement("dev-850-0-1", "False"), statement("dev-850-3-0")]) + "\n")
    data = nlvr2(file, tmp_path, 8)
    assert colours(data) == [3, 103, 0, 100]
    assert [(row["left"], row["right"], row["label"], row["group"]) for row in data.rows] == [
        (0, 1, "true", "dev-850-1"),
        (2, 3, "false", "dev-850-1"),
        (0, 1, "true", "dev-850-0"),
    ]
    assert data.rows[0]["id"] == "dev-850-3-1"
    assert data.rows[0]["sentence"] == "Both are red."


def test_nlvr2_training_images_are_in_numbered_folders(tmp_path):
    for side in (0, 1):
        write_picture(tmp_path / "37" / f"train-1-0-img{side}.png")
    (tmp_path / "train.json").write_text(statement("train-1-0-0", directory=37))
    assert len(nlvr2(tmp_path / "train.json", tmp_path, 8).images) == 2


def test_nlvr2_mistakes(tmp_path):
    for side in (0, 1):
        write_picture(tmp_path / f"dev-1-0-img{side}.png")
    file, good = tmp_path / "dev.json", statement("dev-1-0-0")
    for wrong, message in (
        (statement("dev-1-0"), r"dev\.json:2: key 'identifier' has the value 'dev-1-0'; should be <split>-<set>-<pair>-<sentence>"),
        (statement("dev-1-0-0", "Maybe"), r"dev\.json:2: key 'label' has the value 'Maybe'; should be True or False"),
        (statement("dev-1-1-0"), r"dev-1-1-img0\.png: not there, but in .*dev\.json:2"),
        (statement("dev-1-0-0", sentence=None), r"dev\.json:2: key 'sentence' has the value None; should be of type str"),
        ("", r"dev\.json:2: not valid JSON"),
    ):
        file.write_text(f"{good}\n{wrong}\n")
        with pytest.raises(MoebenchError, match=message):
            nlvr2(file, tmp_path, 8)
    file.write_text(json.dumps({key: value for key, value in json.loads(good).items() if key != "label"}))
    assert nlvr2(file, tmp_path, 8).rows[0]["label"] == ""  # a hidden test set


def test_coco_captions(tmp_path):
    for number in (1, 2):
        write_picture(tmp_path / f"{number}.png", colour=(number, 0, 0))
    said = ((9, "A."), (70, "B."), (9, "C."))
    whole = {
        "images": [{"id": 70, "file_name": "2.png", "height": 30}, {"id": 9, "file_name": "1.png"}],
        "annotations": [{"image_id": image, "id": number, "caption": text} for number, (image, text) in enumerate(said)],
    }
    file = tmp_path / "captions_val2014.json"
    file.write_text(json.dumps(whole))
    data = coco_captions(file, tmp_path, 8)
    assert colours(data) == [2, 1]
    assert data.rows == [{"id": "70", "image": 0, "captions": ["B."]}, {"id": "9", "image": 1, "captions": ["A.", "C."]}]
    file.write_text(json.dumps({**whole, "annotations": [{"image_id": 8, "id": 1, "caption": "A."}]}))
    with pytest.raises(MoebenchError, match=r"annotations\[0\]: key 'image_id' has the value 8; should be the id of one of its images"):
        coco_captions(file, tmp_path, 8)


def test_karpathy(tmp_path):
    entries = []
    for number, split in enumerate(("train", "val", "restval", "test"), start=1):
        folder = "train2014" if split == "train" else "val2014"
        write_picture(tmp_path / folder / f"{number}.png", colour=(number, 0, 0))
        sentences = [{"tokens": ["a"], "raw": f"{split} {at}", "imgid": number, "sentid": at} for at in (0, 1)]
        entries.append({"filepath": folder, "filename": f"{number}.png", "split": split, "cocoid": 10 * number, "imgid": number})
        entries[-1]["sentences"] = sentences
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    train = karpathy(file, tmp_path, ("train", "restval"), 8)
    assert colours(train) == [1, 3]
    assert train.rows[1] == {"id": "30", "image": 1, "captions": ["restval 0", "restval 1"]}
    assert [row["id"] for row in karpathy(file, tmp_path, ("test",), 8).rows] == ["40"]
    with pytest.raises(MoebenchError, match=r"no image has the split 'dev'; splits are restval, test, train, val"):
        karpathy(file, tmp_path, ("dev",), 8)
    entries[0]["sentences"][1] = {"tokens": []}
    file.write_text(json.dumps({"images": entries}))
    with pytest.raises(MoebenchError, match=r"images\[0\]: key 'raw' is missing; should be of type str"):
        karpathy(file, tmp_path, ("train",), 8)
