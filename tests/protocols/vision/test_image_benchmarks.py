"""The profiles `real` and `paper` of E³ from original image files to predictions, on tiny files in the original formats."""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from tiny_originals import pixels, write_originals, write_picture

from moebench.data import image_sets
from moebench.data.corruptions import corrupt
from moebench.data.image_sets import names, read_set
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import read_json, write_json
from moebench.pipeline.plan import planned
from moebench.pipeline.prepare import prepare
from moebench.pipeline.train import train
from moebench.protocols.vision import prepare as room
from moebench.protocols.vision.build import build_vit
from moebench.protocols.vision.config import vision

SMALL = {"corruptions": ["fog"], "severities": [1, 5], "max_corrupted": 4}


@pytest.fixture
def root(tmp_path, monkeypatch, project):
    """The paper's configuration, and the originals."""
    shutil.copytree(project / "experiments/e3", tmp_path / "experiments/e3")
    (tmp_path / "params.yaml").write_text("profile: real\nfolder:\n")
    write_originals(tmp_path / "files")
    monkeypatch.setenv("MOEBENCH_FOLDER", str(tmp_path / "files"))
    change(tmp_path, "real", {"validation": 5})
    change(tmp_path, "paper", {"validation": 5, "side": 8, "upstream_side": 16})
    return tmp_path


def change(root, profile, files, data=SMALL):
    path = root / f"experiments/e3/data/{profile}.yaml"
    old = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(old | data | {"files": old["files"] | files}))


def e3(root, profile):
    """The paper as its files are now."""
    return Experiment(root, "e3", profile)


def prepared(root, profile):
    paper = e3(root, profile)
    prepare(paper)
    return {name: read_set(paper.prepared, name) for name in names(paper.prepared)}, read_json(paper.prepared / "manifest.json")


def rows(images):
    return [image.tobytes() for image in images]


def test_the_sets_of_real(root):
    sets, manifest = prepared(root, "real")
    sizes = {name: len(each) for name, each in sets.items()}
    assert sizes == {
        "upstream_train": 30,
        "upstream_test": 10,
        "downstream_train": 35,
        "downstream_validation": 5,
        "downstream_test": 10,
        "ood_far_svhn": 10,  # of 25
        "ood_far_dtd": 4,
        "ood_far_places365": 10,  # of 12
        "corrupted_fog_1": 4,
        "corrupted_fog_5": 4,
    }
    assert {each.images.shape[1:] for each in sets.values()} == {(32, 32, 3)}
    train = np.concatenate([pixels(8, 32, 32, 3, seed=number) for number in range(1, 6)])
    together = rows(sets["downstream_train"].images) + rows(sets["downstream_validation"].images)
    assert sorted(together) == sorted(rows(train))
    assert rows(sets["downstream_validation"].images) != rows(train[:5])
    test = pixels(10, 32, 32, 3)
    np.testing.assert_array_equal(sets["downstream_test"].images, test)
    assert sets["downstream_test"].classes == ("airplane", "automobile", "bird")
    corrupted = rows(pixels(50, 32, 32, 3, seed=9))
    first, fifth = ([corrupted.index(row) for row in rows(sets[f"corrupted_fog_{severity}"].images)] for severity in (1, 5))
    assert [place + 40 for place in first] == fifth
    assert sets["corrupted_fog_1"].labels.tolist() == [place % 3 for place in first]
    assert (manifest["source"], manifest["left_out"]) == ("files", [])
    assert re.fullmatch("[0-9a-f]{12}", manifest["revision"])
    assert prepared(root, "real")[1] == manifest


def test_a_large_set_is_written_in_blocks_and_mapped(root, monkeypatch):
    sets, manifest = prepared(root, "paper")
    monkeypatch.setattr(image_sets, "LARGE", 700)
    monkeypatch.setattr(image_sets, "AT_ONCE", 3)
    mapped, again = prepared(root, "paper")
    assert manifest == again
    for name, each in sets.items():
        assert isinstance(mapped[name].images, np.memmap)
        np.testing.assert_array_equal(each.images, mapped[name].images)
        np.testing.assert_array_equal(each.labels, mapped[name].labels)
    path = e3(root, "paper").prepared / "upstream_train.images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MoebenchError, match=r"upstream_train\.images\.npy: not a readable array"):
        read_set(path.parent, "upstream_train")


def test_the_sets_of_paper(root):
    sets, _ = prepared(root, "paper")
    assert sets["upstream_train"].images.shape == (18, 16, 16, 3)
    assert sets["upstream_train"].classes == sets["upstream_test"].classes == ("n01", "n02", "n03")
    assert np.abs(np.asarray(sets["upstream_test"].images)[:, 8, 8].astype(int)[-1] - (160, 40, 255)).max() < 12
    others = {name: each.images.shape[1:] for name, each in sets.items() if not name.startswith("upstream")}
    assert set(others.values()) == {(8, 8, 3)}
    assert {"ood_near_cifar10", "ood_far_dtd", "corrupted_fog_5"} <= set(others)


def test_limits_draw(root):
    change(root, "real", {}, {"max_train": 12, "max_test": 6})
    sets, _ = prepared(root, "real")
    sizes = [len(sets[name]) for name in ("upstream_train", "downstream_train", "downstream_test", "ood_far_svhn", "ood_far_dtd")]
    assert sizes == [12, 12, 6, 6, 4]
    corrupted = rows(pixels(50, 32, 32, 3, seed=9))
    test = rows(pixels(10, 32, 32, 3))
    tested = [test.index(row) for row in rows(sets["downstream_test"].images)]
    assert tested != list(range(6))
    assert {corrupted.index(row) for row in rows(sets["corrupted_fog_1"].images)} <= set(tested)


def test_own_corruptions_are_of_drawn_test_images(root):
    change(root, "real", {"corrupted": None, "optional": [], "side": 16}, {"corruptions": ["contrast"], "severities": [3]})
    path = root / "experiments/e3/data/real.yaml"
    data = yaml.safe_load(path.read_text())
    del data["files"]["folders"]["cifar10_c"]
    path.write_text(yaml.safe_dump(data))
    sets, _ = prepared(root, "real")
    wanted = rows(corrupt(np.asarray(sets["downstream_test"].images), "contrast", 3, 0))
    assert len(sets["corrupted_contrast_3"]) == 4
    assert set(rows(sets["corrupted_contrast_3"].images)) <= set(wanted)


def test_imagenet_as_both_tasks_as_the_readme_has_it(root, project):
    text = (project / "data" / "README.md").read_text(encoding="utf-8")
    data = yaml.safe_load(re.findall(r"```yaml\n(source: files\n.*?)```", text, re.DOTALL)[0])
    data["files"] |= {"validation": 3, "side": 8, "upstream_side": 16}
    (root / "experiments/e3/data/paper.yaml").write_text(yaml.safe_dump(data | SMALL))
    sets, _ = prepared(root, "paper")
    assert {name: len(each) for name, each in sets.items() if name.startswith("shift")} == {
        "shift_imagenet_a": 1,
        "shift_imagenet_r": 1,
        "shift_imagenet_v2": 3,
    }
    assert (sets["shift_imagenet_a"].labels.tolist(), sets["shift_imagenet_r"].labels.tolist()) == ([1], [2])
    assert len(sets["upstream_train"]) == len(sets["downstream_train"]) == 15  # validation is seen by neither
    np.testing.assert_array_equal(sets["upstream_train"].labels, sets["downstream_train"].labels)
    assert len(sets["corrupted_fog_5"]) == 4
    assert len(sets["ood_far_places365"]) == 6


def test_missing_files_name_the_home_and_what_runs_without(root):
    _, manifest = prepared(root, "real")
    (root / "files/svhn/test_32x32.mat").unlink()
    with pytest.raises(MoebenchError) as error:
        prepare(e3(root, "real"))
    message = str(error.value)
    assert "test_32x32.mat: cannot be read" in message
    assert "http://ufldl.stanford.edu/housenumbers/" in message
    assert "`moebench run --profile real --paper NAME` runs another paper alone" in message
    folder = e3(root, "real").prepared
    assert read_json(folder / "manifest.json") == manifest  # what was there is kept
    assert len(read_set(folder, "ood_far_svhn")) == 10
    assert sorted(path.name for path in folder.parent.iterdir()) == [".e3.lock", "e3"]


def test_an_optional_dataset_is_left_out_and_the_plan_sees_when_it_comes(root, monkeypatch):
    plan = room.plan(e3(root, "real")).config
    shutil.move(root / "files/CIFAR-10-C", root / "elsewhere")
    sets, manifest = prepared(root, "real")
    assert manifest["left_out"] == ["cifar10_c"]
    assert not any(name.startswith("corrupted") for name in sets)
    without = room.plan(e3(root, "real")).config
    assert {name for name in plan["listings"] if plan["listings"][name] != without["listings"][name]} == {"cifar10_c"}
    shutil.move(root / "elsewhere", root / "files/CIFAR-10-C")
    assert room.plan(e3(root, "real")).config == plan
    monkeypatch.delenv("MOEBENCH_FOLDER")
    assert "listings" not in room.plan(e3(root, "real")).config  # an error of stage prepare alone
    with pytest.raises(MoebenchError, match="no folder is given"):
        prepare(e3(root, "real"))


def test_files_that_do_not_fit(root):
    write_picture(root / "files/imagenet/val/n04/a.JPEG")
    with pytest.raises(MoebenchError, match=r"val/n04: not a class(.|\n)*https://www\.image-net\.org"):
        prepare(e3(root, "paper"))
    labels = np.load(root / "files/CIFAR-10-C/labels.npy")
    np.save(root / "files/CIFAR-10-C/labels.npy", labels[::-1].copy())
    with pytest.raises(MoebenchError, match=r"CIFAR-10-C: fog, severity 1, has not the labels of the test set"):
        prepare(e3(root, "real"))
    change(root, "real", {"validation": 40})
    with pytest.raises(
        MoebenchError, match=r"'files\.validation' has the value 40: should be less than the 40 training images of 'cifar10'"
    ):
        prepare(e3(root, "real"))


@pytest.mark.parametrize(
    ("files", "data", "complaint"),
    [
        (
            {"far": ["svnh"]},
            {},
            r"far names 'svnh' \(did you mean 'svhn'\?\), which is no such set here; should be one of svhn, imagenet, dtd",
        ),
        ({"near": ["cifar100"]}, {}, "near names 'cifar100', which is trained on"),
        ({"near": ["svhn"]}, {}, "name a dataset twice"),
        ({"upstream": "dtd"}, {}, "upstream names 'dtd', which is no such set here; should be one of cifar10, cifar100, svhn, imagenet"),
        ({"upstream": "imagenet"}, {}, "upstream names 'imagenet', but folders does not say where it lies"),
        ({"shifts": ["imagenet_a"]}, {}, "shifts names 'imagenet_a', which is no such set here; downstream 'cifar10' has none"),
        ({"corrupted": "cifar100_c"}, {}, r"corrupted names 'cifar100_c'.*should be one of cifar10_c"),
        ({"far": ["svhn", "dtd"]}, {}, "folders names 'places365', which is no such set here"),
        ({"optional": ["cifar10"]}, {}, "optional names 'cifar10'"),
        ({"sides": 32}, {}, r"unknown key 'files\.sides' \(did you mean 'side'\?\)"),
        ({}, {"corruptions": None}, "corruptions is missing: which of 'cifar10_c'"),
        ({}, {"source": "builtin"}, "the section 'files' belongs to, and is required by, source 'files' alone"),
    ],
)
def test_wrong_keys_are_refused(root, files, data, complaint):
    change(root, "real", files, data)
    with pytest.raises(MoebenchError, match=r"e3/data/real\.yaml: .*" + complaint):
        e3(root, "real").check()


def test_the_transformer_should_have_the_side_of_the_images(root):
    e3(root, "real").check()
    with pytest.raises(MoebenchError, match=r"profiles/paper\.yaml: key 'vision\.image' has the value 224; the images .* have 16"):
        e3(root, "paper").check()
    change(root, "paper", {"upstream_side": 224})
    with pytest.raises(MoebenchError, match=r"paper\.yaml: key 'finetune_side' has the value 128; the images .* have 8"):
        e3(root, "paper").check()


def test_pretraining_and_finetuning_at_another_side(root):
    path = root / "experiments/e3/profiles/paper.yaml"
    setting = yaml.safe_load(path.read_text())
    setting |= {"methods": ["vmoe", "e3"], "precision": "fp32", "devices": 1, "finetune_side": 8, "draws": 0}
    setting["vision"] |= {"image": 16, "patch": 4, "width": 16, "heads": 2, "inner": 16, "layers": 4}
    for name in ("pretrain", "finetune"):
        setting[name] |= {"steps": 2, "batch": 8}
    path.write_text(yaml.safe_dump(setting))
    paper = e3(root, "paper")
    paper.check()
    for name, value in planned(paper).items():
        write_json(paper.plan_folder / f"{name}.json", value)
    prepare(paper)
    finetuning = next(run for run in paper.runs if run.method == "e3")
    train(paper, next(run for run in paper.runs if run.name == finetuning.start))
    train(paper, finetuning)
    for name, count in (("downstream_test", 10), ("ood_far_dtd", 4), ("corrupted_fog_5", 4)):
        with np.load(paper.folder(finetuning) / f"predictions/{name}.npz") as arrays:
            assert arrays["logits"].shape == (count, 2, 3)
            assert np.isfinite(arrays["logits"]).all()


def test_the_delivered_profiles_fit_and_paper_has_the_published_sizes(project):
    for profile in ("real", "paper"):
        e3(project, profile).check()
        assert planned(e3(project, profile))
    paper = e3(project, "paper")
    setting = paper.setting
    expert = 512 * 2048 + 2048 + 2048 * 512 + 512
    block = 4 * (512 * 512 + 512) + 2 * 2 * 512  # attention and two norms
    with torch.device("meta"):
        for name, experts, router in (("vit", 1, 0), ("vmoe", 8, 512 * 8), ("e3", 8, 512 * 8)):
            method = paper.method(name)
            for side, positions, classes in ((224, 50, 1000), (128, 17, 100)):
                shape = vision(setting, method).model_copy(update={"image": side})
                model = build_vit(shape, method, setting.experts, setting.last, classes)
                sizes = 32 * 32 * 3 * 512 + 512 + 512 + positions * 512 + 2 * 512 + 512 * classes + classes
                sizes += 8 * block + 6 * expert + 2 * (experts * expert + router)
                assert sum(parameter.numel() for parameter in model.parameters()) == sizes
                sparse = [at for at, block in enumerate(model.blocks) if hasattr(block.layer, "experts")]
                assert sparse == ([5, 7] if experts > 1 else [])
