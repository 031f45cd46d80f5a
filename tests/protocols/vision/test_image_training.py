"""The stages of papers on images up to predictions, as the pipeline calls them, on a few images and the smallest transformers."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from moebench.data.image_sets import names, read_set
from moebench.data.images import ImageSet
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import read_json, sha256
from moebench.models.shapes import Vision
from moebench.pipeline.plan import plan
from moebench.pipeline.prepare import prepare
from moebench.pipeline.select import select
from moebench.pipeline.train import train
from moebench.protocols.vision.build import build_vit
from moebench.protocols.vision.classification import ImageBatches, ImageModule, pixels, shifted
from moebench.protocols.vision.config import ImageTraining, Method

MEMBERS = {"vit": 1, "vmoe": 1, "e3": 2, "multi_head": 2, "only_tiling": 2, "batch_ensemble": 2, "mimo": 2, "mc_dropout": 3}


def run_of(paper, stage, method):
    return next(run for run in paper.runs if (run.stage, run.method) == (stage, method))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, project):
    root = tmp_path_factory.mktemp("images")
    home = root / "experiments/e3"
    shutil.copytree(project / "experiments/e3", home)
    path = home / "profiles/smoke.yaml"
    setting = yaml.safe_load(path.read_text()) | {"methods": sorted(MEMBERS), "seeds": [0]}
    for stage in ("pretrain", "finetune"):
        setting[stage] = setting[stage] | {"steps": 3, "batch": 16}
    path.write_text(yaml.safe_dump(setting))
    dropout = home / "methods/mc_dropout.yaml"
    dropout.write_text(yaml.safe_dump(yaml.safe_load(dropout.read_text()) | {"members": 3}))
    data = {"max_train": 240, "max_test": 30, "max_corrupted": 20, "corruptions": ["contrast"], "severities": [2]}
    (home / "data/smoke.yaml").write_text(yaml.safe_dump(data))
    paper = Experiment(root, "e3", "smoke")
    select(paper)
    plan(paper)
    prepare(paper)
    for name in ("vit", "vmoe"):
        train(paper, run_of(paper, "pretrain", name))
    return paper


def prediction(paper, method, name):
    with np.load(paper.folder(run_of(paper, "finetune", method)) / f"predictions/{name}.npz") as arrays:
        return dict(arrays)


def test_the_prepared_sets_are_the_first_images_and_a_corruption_changes_them(tiny):
    folder = tiny.prepared
    assert {"upstream_train", "downstream_test", "shift_digits", "ood_near_digits", "corrupted_contrast_2"} <= set(names(folder))
    clean, corrupted = read_set(folder, "downstream_test"), read_set(folder, "corrupted_contrast_2")
    assert (len(clean), len(read_set(folder, "downstream_train"))) == (30, 240)
    np.testing.assert_array_equal(clean.labels[:20], corrupted.labels)
    assert (np.asarray(clean.images)[:20] != np.asarray(corrupted.images)).any()
    with pytest.raises(MoebenchError, match=r"smoke/e3/nothing\.npz: not a readable image set"):
        read_set(folder, "nothing")


def test_the_one_part_is_all_that_is_prepared(tiny):
    files = [tiny.prepared / f"{name}.npz" for name in names(tiny.prepared)] + [tiny.prepared / "manifest.json"]
    assert read_json(tiny.part_file("images")) == {path.name: sha256(path) for path in files}


@pytest.mark.parametrize("method", sorted(MEMBERS))
def test_every_variant_predicts_every_set(tiny, method):
    train(tiny, run_of(tiny, "finetune", method))
    folder = tiny.folder(run_of(tiny, "finetune", method))
    for name in names(tiny.prepared):
        if name.startswith("upstream"):
            continue
        arrays = prediction(tiny, method, name)
        count = 240 if name.endswith("_train") else 20 if name.startswith("corrupted") else 30
        assert arrays["labels"].shape == (count,)
        if name == "downstream_train":
            assert arrays.keys() == {"labels", "features"}
        else:
            assert arrays["logits"].shape == (count, MEMBERS[method], 8)
            assert np.isfinite(arrays["logits"]).all()
    with np.load(folder / "fewshot.npz") as arrays:
        assert arrays["train"].shape[1] == 16 * (2 if method in ("e3", "only_tiling", "batch_ensemble") else 1)
    measured = {row["metric"]: row["value"] for row in read_json(folder / "measures.json")}
    assert measured["parameters"] == read_json(folder / "costs.json")["parameters"]
    assert not (folder / "run.json").exists()
    logits = prediction(tiny, method, "downstream_test")["logits"]
    if MEMBERS[method] > 1 and method != "only_tiling":  # without noise and drops its members are alike
        assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-6


def test_a_second_run_gives_the_same_bytes(tiny):
    run = run_of(tiny, "finetune", "e3")
    train(tiny, run)
    before = prediction(tiny, "e3", "downstream_test")["logits"]
    shutil.rmtree(tiny.folder(run))
    train(tiny, run)
    assert prediction(tiny, "e3", "downstream_test")["logits"].tobytes() == before.tobytes()


def test_the_start_is_the_pretrained_model_but_for_the_head(tiny):
    start = tiny.start(run_of(tiny, "finetune", "e3"))
    assert start == tiny.folder(run_of(tiny, "pretrain", "vmoe")) / "model.safetensors"
    setting, method = tiny.setting, tiny.method("e3")
    model = build_vit(setting.vision, method, setting.experts, setting.last, 8, start)
    theirs = load_file(start)
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, theirs[name]), name
    start.with_name("damaged.safetensors").write_bytes(start.read_bytes()[:100])
    with pytest.raises(MoebenchError, match=r"damaged\.safetensors: not a readable checkpoint"):
        build_vit(setting.vision, method, setting.experts, setting.last, 8, start.with_name("damaged.safetensors"))


def random_set(count):
    generator = np.random.default_rng(0)
    return ImageSet(generator.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8), generator.integers(0, 3, count), ("a", "b", "c"))


def test_an_epoch_has_every_image_once_and_ranks_share_it():
    data = random_set(23)
    options = ImageTraining(steps=1, batch=5, rate=0.1)
    one = ImageBatches(data, options, seed=1, part=0, parts=1)
    whole = torch.cat([one(step)["images"] for step in range(5)])
    assert sorted(map(tuple, whole.flatten(1).tolist())) == sorted(map(tuple, pixels(np.asarray(data.images)).flatten(1).tolist()))
    assert not torch.equal(whole, torch.cat([one(step)["images"] for step in range(5, 10)]))
    both = [ImageBatches(data, options, seed=1, part=part, parts=2)(0)["labels"] for part in (0, 1)]
    assert sorted(torch.cat(both).tolist()) == sorted(one(0)["labels"].tolist())
    shifting = options.model_copy(update={"shift": 1})
    for parts in (2, 7):  # of the last batch's three images, some of seven parts have none
        made = [ImageBatches(data, shifting, 1, part, parts)(4) for part in range(parts)]
        undivided = ImageBatches(data, shifting, 1, 0, 1)(4)
        moved = torch.cat([batch["images"] for batch in made])
        assert sorted(moved.flatten(1).tolist()) == sorted(undivided["images"].flatten(1).tolist())
        assert sum(batch["weight"].item() for batch in made) == pytest.approx(parts)
    assert whole.min() >= -1
    assert whole.max() <= 1


def test_a_shift_moves_the_whole_image_and_leaves_black_behind():
    images = np.asarray(random_set(40).images) // 2 + 1
    moved = shifted(images, 2, np.random.default_rng(0).integers(0, 5, (2, 40)))
    places = set()
    for before, after in zip(images[..., 0], moved[..., 0], strict=True):
        fits = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                expected = np.zeros_like(before)
                for row in range(4):
                    for column in range(4):
                        if 0 <= row + down < 4 and 0 <= column + right < 4:
                            expected[row, column] = before[row + down, column + right]
                if (expected == after).all():
                    fits.append((down, right))
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) > 10
    options = ImageTraining(steps=1, batch=40, rate=0.1, shift=2)
    first, again, later = (ImageBatches(random_set(40), options, 1, 0, 1)(step)["images"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_the_loss_is_the_mean_of_the_members_cross_entropies_and_vectors_have_a_rate_and_no_decay():
    shape = Vision(image=4, patch=2, channels=1, layers=2, width=8, heads=2, inner=8)
    method = Method(label="", variant="batch_ensemble", members=2)
    torch.manual_seed(0)
    model = build_vit(shape, method, 1, None, 3)
    options = ImageTraining(steps=4, batch=4, rate=0.01, ensemble_rate=5, head_rate=2, weight_decay=0.1)
    module = ImageModule(model, method, options, 0)
    batch = ImageBatches(random_set(8), options, 0, 0, 1)(0)
    loss = module.training_step(batch, 0)
    logits_BMC = model(batch["images"])[0]
    expected = torch.stack([torch.nn.functional.cross_entropy(logits_BMC[:, member], batch["labels"]) for member in range(2)]).mean()
    torch.testing.assert_close(loss, expected)
    found = {}
    for group in module.configure_optimizers()["optimizer"].param_groups:
        for name, parameter in module.named_parameters():
            if any(parameter is other for other in group["params"]):
                found[name] = (round(group["initial_lr"], 6), group["weight_decay"])
    assert found["model.blocks.1.layer.inner.fast_input"] == (0.05, 0.0)
    assert found["model.blocks.1.layer.inner.weight"] == (0.01, 0.1)
    assert found["model.head.weight"] == (0.02, 0.1)
