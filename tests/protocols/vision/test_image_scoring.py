"""The stages ``baselines`` and ``evaluate`` of a made-up paper on images: records against direct calls of the metrics, holes, damage."""

import hashlib
import shutil

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import SVC

from moebench import files
from moebench.errors import MoebenchError
from moebench.metrics import calibration, diversity, fewshot, ood, selective
from moebench.pipeline.baselines import baselines
from moebench.pipeline.evaluate import evaluate
from moebench.protocols.vision.numbers import DETECTION, SCORES
from moebench.results import records

OPTIMISATION = {"steps": 10, "batch": 2, "rate": 0.001}
SETTING = {
    "seeds": [0, 1],
    "baseline": "vit",
    "vision": {"image": 28, "patch": 14, "channels": 1, "layers": 2, "width": 4, "heads": 2, "inner": 8},
    "experts": 2,
    "pretrain": OPTIMISATION,
    "finetune": OPTIMISATION,
    "shots": [1, 3],
    "draws": 2,
}
METHODS = {
    "vit": {"label": "ViT", "variant": "dense"},
    "mimo": {"label": "MIMO", "variant": "mimo", "members": 2},
    "dropout": {"label": "MC dropout", "variant": "mc_dropout", "members": 3, "pretrain_as": "vit"},
    "deep": {"label": "Deep ensemble", "variant": "deep", "of": {"vit": [0, 1]}},
}
COPIES = {"vit": 1, "mimo": 1, "dropout": 3}
"""Members with features of their own."""
N, C, WIDTH = 40, 3, 4
SETS = ("downstream_validation", "downstream_test", "shift_digits", "ood_near", "corrupted_salt_pepper_1", "corrupted_salt_pepper_3")
COSTS = {"seconds": 1.5, "peak_memory_mb": 100.0, "parameters": 1000, "hardware": "a machine", "torch": "2", "commit": "abc"}


def arrays(seed, name, members, copies):
    """What a run leaves for a set; labels are the same in all runs."""
    rng = np.random.default_rng([seed, len(name), sum(name.encode())])
    labels = np.random.default_rng(len(name)).integers(C, size=N)
    logits = (rng.normal(size=(N, members, C)) + np.eye(C)[labels][:, None]).astype(np.float32)
    features = (rng.normal(size=(N, copies * WIDTH)) + labels[:, None]).astype(np.float32)
    left = {} if name == "downstream_train" else {"logits": logits}
    left |= {"features": features} if name.startswith(("downstream_t", "ood")) else {}
    return left | {"labels": labels}


def pictures(name):
    """Images of the size of the setting, brighter in the row of their class."""
    labels = np.random.default_rng(len(name)).integers(C, size=N)
    images = np.random.default_rng(len(name)).integers(0, 120, size=(N, 8, 8, 1))
    images[np.arange(N), labels] += 100
    return images.astype(np.uint8), labels


def few_arrays(seed):
    rng = np.random.default_rng([seed, 99])
    left = {}
    for part in ("train", "validation", "test"):
        labels = np.random.default_rng(len(part)).permutation(np.arange(N) % C)
        left |= {part: (rng.normal(size=(N, WIDTH)) + labels[:, None]).astype(np.float32), f"{part}_labels": labels}
    return left


def run_of(paper, stage, method, seed):
    return next(run for run in paper.runs if (run.stage, run.method, run.seed) == (stage, method, seed))


def leave(paper, method, seed, like=None):
    """A finished fine-tuning run; ``like``: the seed that its content is drawn from."""
    folder, drawn = paper.folder(run_of(paper, "finetune", method, seed)), seed if like is None else like
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    for name in (*SETS, "downstream_train"):
        np.savez(folder / f"predictions/{name}.npz", **arrays(drawn, name, METHODS[method].get("members", 1), COPIES[method]))
    np.savez(folder / "fewshot.npz", **few_arrays(drawn))
    measure = {"stage": "finetune", "task": "model", "language": "", "n": 1}
    sizes = {"parameters": 1000.0 + drawn, "flops_per_image": 2e6, "experts_per_token": 1.0}
    files.write_json(folder / "measures.json", [measure | {"metric": metric, "value": value} for metric, value in sizes.items()])
    files.write_json(folder / "costs.json", COSTS)


@pytest.fixture(scope="module")
def make(write_paper):
    """Function that writes a paper of which all runs and the baselines are there."""

    def make(root):
        paper = write_paper(root, SETTING, METHODS)
        manifest = {"source": "builtin", "revision": "images-0123456789ab"}
        manifest["sets"] = {name: {"classes": list("abc")} for name in ("upstream_train", "downstream_train", *SETS)}
        files.write_json(paper.prepared / "manifest.json", manifest)
        for name in ("downstream_train", "downstream_test"):
            images, labels = pictures(name)
            np.savez(paper.prepared / f"{name}.npz", images=images, labels=labels)
        for run in paper.runs:
            files.write_json(paper.plan_file(run), {"config": {"method": run.method}, "fingerprint": "f" * 8})
            if run.stage == "finetune":
                leave(paper, run.method, run.seed)
            else:
                measure = {"stage": "pretrain", "task": "upstream_test", "language": "", "metric": "accuracy", "value": 70 + run.seed}
                files.write_json(paper.folder(run) / "measures.json", [measure | {"n": 64}])
                files.write_json(paper.folder(run) / "costs.json", COSTS)
        baselines(paper)
        return paper

    return make


@pytest.fixture
def paper(tmp_path, make):
    return make(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory, make):
    """A paper that is evaluated, to be looked at only."""
    paper = make(tmp_path_factory.mktemp("done"))
    evaluate(paper)
    return paper


def result(paper, name="records", form=records.RECORDS):
    return records.read(paper.records_folder / f"{name}.csv", form)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def predictions(paper, method, seed):
    return paper.folder(run_of(paper, "finetune", method, seed)) / "predictions"


def found(paper, method, task, seed=0, language="", stage="finetune"):
    table = result(paper)
    mine = table[(table["method"] == method) & (table["seed"] == seed) & (table["stage"] == stage)]
    mine = mine[(mine["task"] == task) & (mine["language"] == language)]
    return {row["metric"]: row["value"] for row in mine.to_dict("records")}


def probabilities(runs, name):
    """(M, N, C) of runs (method, seed) and the labels."""
    left = [arrays(seed, name, METHODS[method].get("members", 1), 1) for method, seed in runs]
    stacked = np.concatenate([one["logits"] for one in left], axis=1).astype(np.float64)
    return softmax(stacked, axis=2).transpose(1, 0, 2), left[0]["labels"]


PREDICTS = {"vit": [("vit", 0)], "mimo": [("mimo", 0)], "dropout": [("dropout", 0)], "deep": [("vit", 0), ("vit", 1)]}
"""Method → its runs at seed 0."""


@pytest.mark.parametrize("method", PREDICTS)
def test_the_test_set_is_judged_as_by_direct_calls(done, method):
    values = found(done, method, "downstream_test")
    probs, labels = probabilities(PREDICTS[method], "downstream_test")
    mean, right = probs.mean(axis=0), probs.mean(axis=0).argmax(axis=1) == labels
    held_out, held_out_labels = probabilities(PREDICTS[method], "downstream_validation")
    temperature = calibration.fit_temperature(np.log(held_out.mean(axis=0)), held_out_labels)
    scaled = calibration.at_temperature(np.log(mean), temperature)
    expected = {
        "accuracy": 100 * right.mean(),
        "nll": -np.log(mean[np.arange(N), labels]).mean(),
        "brier": calibration.brier(mean, labels),
        "ece": calibration.ece(mean, labels),
        "signed_ece": mean.max(axis=1).mean() - right.mean(),
        "adaptive_ece": calibration.adaptive_ece(mean, labels),
        "classwise_ece": calibration.classwise_ece(mean, labels),
        "aurc": selective.aurc(mean.max(axis=1), right),
        "nll_scaled": calibration.nll(scaled, labels),
        "ece_scaled": calibration.ece(scaled, labels),
    }
    if len(probs) > 1:
        expected |= {
            "disagreement": diversity.disagreement(probs),
            "normalised_disagreement": diversity.normalised_disagreement(probs, labels),
            "mutual_information": diversity.mutual_information(probs).mean(),
            "pairwise_kl": diversity.pairwise_kl(probs),
            "cosine_diversity": diversity.cosine_diversity(probs),
        }
    error = values.pop("accuracy_bootstrap_se")
    assert values == pytest.approx(expected, abs=2e-6)
    assert error == pytest.approx(100 * np.sqrt(right.mean() * (1 - right.mean()) / N), rel=0.1)
    assert found(done, method, "downstream_validation") == {"temperature": pytest.approx(temperature, abs=2e-6)}


@pytest.mark.parametrize("method", PREDICTS)
@pytest.mark.parametrize(
    ("name", "task", "language"), [("shift_digits", "shift_digits", ""), ("corrupted_salt_pepper_3", "corrupted_salt_pepper", "s3")]
)
def test_shift_and_corruption_keep_their_severity_as_language(done, method, name, task, language):
    probs, labels = probabilities(PREDICTS[method], name)
    mean = probs.mean(axis=0)
    expected = {"accuracy": 100 * (mean.argmax(axis=1) == labels).mean(), "nll": calibration.nll(mean, labels)}
    expected |= {"brier": calibration.brier(mean, labels), "ece": calibration.ece(mean, labels)}
    expected |= {"disagreement": diversity.disagreement(probs)} if len(probs) > 1 else {}
    assert found(done, method, task, language=language) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", PREDICTS)
def test_every_score_is_averaged_over_members_and_told_from_the_test_set(done, method):
    values = found(done, method, "ood_near")
    scores = {}
    for name in ("downstream_test", "ood_near"):
        probs, _ = probabilities(PREDICTS[method], name)
        copies = []
        logits = []
        for member, seed in PREDICTS[method]:
            left, trained = (arrays(seed, each, METHODS[member].get("members", 1), COPIES[member]) for each in (name, "downstream_train"))
            logits += list(left["logits"].transpose(1, 0, 2))
            for at in range(0, COPIES[member] * WIDTH, WIDTH):
                fitted = ood.fit_gaussians(trained["features"][:, at : at + WIDTH], trained["labels"])
                copies.append((left["features"][:, at : at + WIDTH], fitted))
        one = {"max_probability": 1 - probs.mean(axis=0).max(axis=1), "entropy": calibration.entropy(probs.mean(axis=0))}
        one |= {"mutual_information": diversity.mutual_information(probs)} if len(probs) > 1 else {}
        one |= {"max_logit": sum(-each.max(axis=1) for each in logits), "energy": sum(map(ood.energy, logits))}
        one["mahalanobis"] = sum(ood.mahalanobis(*copy) for copy in copies)
        one["relative_mahalanobis"] = sum(ood.relative_mahalanobis(*copy) for copy in copies)
        scores[name] = one
    expected = {
        f"{measure}_{score}": getattr(ood, measure)(scores["downstream_test"][score], values)
        for score, values in scores["ood_near"].items()
        for measure in DETECTION
    }
    assert len(expected) == len(DETECTION) * (len(SCORES) - (method == "vit"))
    assert values == pytest.approx(expected, abs=2e-6)


def test_few_shot_penalties_are_chosen_on_validation_and_members_stand_side_by_side(done):
    for method, seeds in (("vit", [1]), ("deep", [1, 0])):
        left = [few_arrays(seed) for seed in seeds]
        data = {part: np.concatenate([one[part] for one in left], axis=1) for part in ("train", "validation", "test")}
        labels = {part: left[0][f"{part}_labels"] for part in data}
        found_on = {
            part: [fewshot.few_shot(data["train"], labels["train"], data[part], labels[part], (1, 3), seed=draw) for draw in range(2)]
            for part in ("validation", "test")
        }
        chosen = fewshot.best_l2(dict(enumerate(found_on["validation"])))
        expected = {f"accuracy_{k}_shot": 100 * np.mean([one[i, chosen[i]] for one in found_on["test"]]) for i, k in enumerate((1, 3))}
        assert found(done, method, "fewshot", seed=1) == pytest.approx(expected, abs=1e-6)


def test_a_deep_ensemble_of_identical_runs_is_the_run(paper):
    leave(paper, "vit", 1, like=0)
    evaluate(paper)
    for task, language in (("downstream_test", ""), ("shift_digits", ""), ("corrupted_salt_pepper", "s1"), ("ood_near", "")):
        one, together = found(paper, "vit", task, language=language), found(paper, "deep", task, language=language)
        assert {metric: together[metric] for metric in one} == pytest.approx(one, abs=2e-6)
        if task == "downstream_test":
            assert {together[metric] for metric in ("disagreement", "mutual_information", "pairwise_kl", "cosine_diversity")} == {0}


def test_a_deep_ensemble_costs_the_sum_of_its_members(done):
    assert found(done, "deep", "model") == {"parameters": 2001.0, "flops_per_image": 4e6}
    assert found(done, "vit", "model", seed=1) == {"parameters": 1001.0, "flops_per_image": 2e6, "experts_per_token": 1.0}


def test_what_runs_measured_themselves_their_provenance_and_costs(done):
    assert found(done, "mimo", "upstream_test", 1, stage="pretrain") == {"accuracy": 71.0}
    assert not found(done, "dropout", "upstream_test", 1, stage="pretrain")
    assert set(result(done)["data"]) == {"images-0123456789ab"}
    provenance, costs = result(done, "provenance", records.PROVENANCE), result(done, "costs", records.COSTS)
    assert len(provenance) == len(costs) == 2 * 2 + 3 * 2
    assert set(zip(costs["stage"], costs["task"], strict=True)) == {("pretrain", "upstream"), ("finetune", "downstream")}
    row = provenance[(provenance["method"] == "mimo") & (provenance["stage"] == "finetune")].iloc[0]
    plan = done.plan_file(run_of(done, "finetune", "mimo", 0))
    assert (row["config_hash"], row["hardware"]) == (hashlib.sha256(plan.read_bytes()).hexdigest(), "a machine")


def test_curves_end_at_the_accuracy_and_count_every_image(done):
    points = result(done, "curves", records.CURVES)
    mine = points[(points["method"] == "deep") & (points["seed"] == 1)]
    bins, rest = (mine[mine["curve"] == curve] for curve in ("reliability", "accuracy_rejection"))
    accuracy = found(done, "deep", "downstream_test", 1)["accuracy"] / 100
    assert bins["n"].sum() == N
    assert (bins["n"] * bins["y"]).sum() / N == pytest.approx(accuracy, abs=1e-6)
    assert (rest["n"].iloc[0], rest["x"].iloc[0]) == (N, 0)
    assert rest["y"].iloc[0] == pytest.approx(accuracy, abs=1e-6)
    assert list(rest["x"]) == pytest.approx(np.arange(20) / 20)


def test_what_is_not_defined_has_no_record(paper):
    path = predictions(paper, "mimo", 0) / "downstream_test.npz"
    left = arrays(0, "downstream_test", 2, 1)
    np.savez(path, **left | {"logits": np.float32(9) * np.eye(C, dtype=np.float32)[left["labels"]][:, None].repeat(2, 1)})
    evaluate(paper)
    values = found(paper, "mimo", "downstream_test")
    assert values["accuracy"] == 100
    assert "normalised_disagreement" not in values
    assert "normalised_disagreement" in found(paper, "mimo", "downstream_test", 1)


def test_the_same_runs_give_the_same_bytes(paper):
    evaluate(paper)
    first = contents(paper.records_folder)
    evaluate(paper)
    assert contents(paper.records_folder) == first
    assert set(first) == {"records.csv", "provenance.csv", "costs.csv", "curves.csv"}


def test_missing_runs_and_sets_are_all_listed_with_the_command_of_the_first(paper):
    shutil.rmtree(paper.folder(run_of(paper, "pretrain", "mimo", 1)))
    files.write_json(paper.folder(run_of(paper, "finetune", "vit", 1)) / "run.json", {"key": "k"})  # unfinished
    (predictions(paper, "dropout", 0) / "ood_near.npz").unlink()
    (predictions(paper, "dropout", 0).parent / "fewshot.npz").unlink()
    with pytest.raises(MoebenchError) as error:
        evaluate(paper)
    first, *listed, last = str(error.value).splitlines()
    assert first.startswith("4 missing")
    assert [line.removeprefix("  runs/cpu/e3/trained/") for line in listed] == [
        "pretrain/mimo-1",
        "finetune/vit-downstream-1",
        "finetune/dropout-downstream-0/predictions/ood_near.npz",
        "finetune/dropout-downstream-0/fewshot.npz",
    ]
    assert last.endswith("made by: dvc repro experiments/e3/cpu/dvc.yaml:pretrain@mimo-1")
    assert not paper.records_folder.exists()


def test_a_member_that_is_not_there_is_missing_from_its_ensemble_alone(paper):
    evaluate(paper)
    shutil.copytree(paper.records_folder, paper.results)
    shutil.rmtree(paper.folder(run_of(paper, "finetune", "vit", 1)))
    evaluate(paper, only=["mimo"])
    with pytest.raises(MoebenchError, match=r"1 missing(.|\n)*made by: dvc repro experiments/e3/cpu/dvc\.yaml:finetune@vit-downstream-1$"):
        evaluate(paper, only=["deep"])


def test_a_shallow_baseline_that_is_not_there_is_missing(paper):
    shutil.rmtree(paper.baselines_folder / "svm")
    with pytest.raises(
        MoebenchError, match=r"1 missing(.|\n)*baselines/svm/downstream_test\.npz\n.*: dvc repro experiments/e3/cpu/dvc\.yaml:baselines$"
    ):
        evaluate(paper)


@pytest.mark.parametrize(("only", "unneeded"), [(["mimo"], ["vit", "dropout"]), (["deep"], ["mimo", "dropout"])])
def test_some_methods_alone_change_their_records_only(paper, only, unneeded):
    evaluate(paper)
    whole = contents(paper.records_folder)
    for name, text in whole.items():  # as if the methods were new
        files.write_text(paper.results / name, "".join(line for line in text.splitlines(True) if f",{only[0]}," not in line))
    for run in paper.runs:
        if run.method in unneeded:
            shutil.rmtree(paper.folder(run))
    assert contents(paper.results) != whole
    assert evaluate(paper, only=only) == []
    assert contents(paper.records_folder) == whole


def test_an_ensemble_has_to_be_named_with_its_member(paper):
    evaluate(paper)
    shutil.copytree(paper.records_folder, paper.results)
    with pytest.raises(MoebenchError, match="method 'dropout' is made from the runs of 'vit': name it too, --method dropout"):
        evaluate(paper, only=["vit", "deep"])
    evaluate(paper, only=["vit", "deep", "dropout"])
    assert contents(paper.records_folder) == contents(paper.results)


def damaged(path):
    path.write_bytes(path.read_bytes()[:100])


def changed(**values):
    def change(path):
        with np.load(path) as file:
            np.savez(path, **dict(file) | {name: change(file[name]) for name, change in values.items()})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, r"vit-downstream-1/predictions/downstream_test\.npz: not readable arrays .*; delete the run's folder"),
        (changed(logits=lambda values: values * np.nan), r"downstream_test\.npz: 'logits' should be finite numbers \(N, M, C\)"),
        (changed(logits=lambda values: values[:, 0]), r"'logits' should be finite numbers \(N, M, C\); their shape is \(40, 3\)"),
        (changed(logits=lambda values: values[:5]), r"of one length; holds logits \(5, 1, 3\), labels \(40,\)"),
        (changed(labels=lambda values: 1 - values), r"vit-downstream-1.*: has not the images and classes of .*vit-downstream-0"),
        (
            changed(features=lambda values: values[:, :3]),
            r"'features' has the shape \(40, 3\); should be \(N, F\), F a multiple of width 4",
        ),
    ],
)
def test_damage_is_named_and_nothing_is_written(paper, change, message):
    change(predictions(paper, "vit", 1) / "downstream_test.npz")
    with pytest.raises(MoebenchError, match=message):
        evaluate(paper)
    assert not paper.records_folder.exists()


def test_a_set_of_which_nothing_is_known_is_named(paper):
    path = paper.prepared / "manifest.json"
    files.write_json(path, files.read_json(path) | {"sets": {"downstream_test": {}, "corrupted_fog": {}}})
    with pytest.raises(MoebenchError, match=r"manifest\.json: unknown set 'corrupted_fog'; should be .* or corrupted_<name>_<severity>"):
        evaluate(paper)


def test_too_few_examples_for_the_shots_are_named(paper, write_paper):
    paper = write_paper(paper.root, SETTING | {"shots": [1, 30]}, METHODS)
    with pytest.raises(MoebenchError, match=r"method 'deep', seed 0, .*vit-downstream-0: class . has 1. training examples; should be 30"):
        evaluate(paper)


def test_a_deep_ensemble_of_what_does_not_run_is_named(paper, write_paper):
    paper = write_paper(paper.root, SETTING | {"methods": ["mimo", "deep"], "baseline": "mimo"}, METHODS)
    with pytest.raises(MoebenchError, match=r"deep\.yaml: key 'of\.vit'.*: should be a method with runs that takes part"):
        paper.check()


def test_shallow_baselines_see_the_pixels_of_the_first_training_images(done, paper, write_paper):
    (train, train_N), (test, test_N) = (pictures(name) for name in ("downstream_train", "downstream_test"))
    train, test = train.reshape(N, -1) / 255, test.reshape(N, -1) / 255
    model = LogisticRegression(max_iter=2000).fit(train, train_N)
    measured = found(done, "logistic_regression", "downstream_test", stage="baseline")
    assert measured.keys() == {"accuracy", "nll", "brier", "ece"}
    assert measured["accuracy"] == pytest.approx(100 * model.score(test, test_N))
    assert measured["nll"] == pytest.approx(log_loss(test_N, model.predict_proba(test)), rel=1e-5)
    assert found(done, "svm", "downstream_test", stage="baseline") == {
        "accuracy": pytest.approx(100 * SVC().fit(train, train_N).score(test, test_N))
    }
    few = write_paper(paper.root, SETTING | {"shallow": 20}, METHODS)
    baselines(few)
    with np.load(few.baselines_folder / "svm/downstream_test.npz") as left:
        np.testing.assert_array_equal(left["predictions"], SVC().fit(train[:20], train_N[:20]).predict(test))
        np.testing.assert_array_equal(left["labels"], test_N)
    none = write_paper(paper.root, SETTING | {"shallow": 0}, METHODS)
    baselines(none)
    assert not list(none.baselines_folder.iterdir())
    evaluate(none)
    assert "baseline" not in set(result(none)["stage"])
