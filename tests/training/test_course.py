"""How a training run goes, in its ``course.csv`` and what it is also reported to."""

import csv
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from test_runs import TOKENIZER, model, optimisation, run
from torch.nn import functional

from moebench.errors import MoebenchError
from moebench.files import read_json
from moebench.protocols.transfer.pretraining import MaskedLMBatches
from moebench.training import trainer as trainer_module
from moebench.training.trainer import Progress, make_logger


def rows(folder):
    with open(folder / "course.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stable(folder):
    """All but the last column, tokens a second."""
    return [line.rsplit(",", 1)[0] for line in (folder / "course.csv").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("method", "losses"), [("dense", []), ("xmoe", ["balance", "z", "largest_load"]), ("random", ["largest_load"])])
def test_a_short_run_has_a_row_a_step_with_the_losses_of_its_layer(tmp_path, corpus, method, losses):
    run(tmp_path / "run", corpus, method)
    found = rows(tmp_path / "run")
    assert list(found[0]) == ["step", "loss", *losses, "gradient_norm", "learning_rate", "tokens_per_second"]
    assert [int(row["step"]) for row in found] == list(range(1, 13))
    assert all(math.isfinite(float(value)) for row in found for value in row.values())
    assert all(float(row["tokens_per_second"]) > 0 for row in found)


def test_a_long_run_has_a_hundred_rows_or_up_to_twice_as_many(tmp_path, corpus):
    run(tmp_path / "run", corpus, "dense", steps=210)
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(2, 211, 2))
    for steps in (100, 199, 200, 12345, 10**6):
        assert 100 <= steps // Progress(tmp_path, steps).every < 200
    assert Progress(tmp_path, 99).every == 1


def test_a_row_says_what_the_step_computed(tmp_path, corpus):
    """Two steps by hand: the loss, those of the router, the norm before clipping; and the highest rate, as it was in each step."""
    changes = {"clip": 0.01, "head_rate": 2.0}
    run(tmp_path / "run", corpus, "xmoe", **changes)
    options = optimisation(**changes)
    module = model("xmoe", options).train()
    batches = MaskedLMBatches(corpus, TOKENIZER, options, 0)
    losses = []
    for step, row in enumerate(rows(tmp_path / "run")[:2]):
        torch.manual_seed(step)
        batch = batches(step)
        states, aux = module.encoder(batch["ids"], batch["mask"])
        logits = module.head(states[batch["chosen"]], module.encoder.embedding.weight)
        loss = functional.cross_entropy(logits, batch["targets"]) + 0.01 * aux.losses["balance"]
        module.zero_grad()
        loss.backward()
        trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in trained))
        assert norm > options.clip
        expected = {"loss": loss, "balance": aux.losses["balance"], "z": aux.losses["z"], "gradient_norm": norm}
        expected |= {"largest_load": aux.load.max() / (aux.load.sum() / len(aux.load))}
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(float(torch.as_tensor(value).detach()), rel=1e-4), name
        losses.append(loss.item())
        first_update(module, options, norm)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    rates = [0.006 * min(step + 1, (12 - step) / 11) for step in range(12)]  # 6 % of 12 steps are one step of warm-up
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "run")] == pytest.approx(rates, rel=1e-5)


def first_update(module, options, norm):
    """The first step of AdamW: m and v without their bias are the gradient and its square."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.grad is None:
                continue
            gradient = parameter.grad * (options.clip / (norm + 1e-6))
            rate = options.rate * (2 if name.startswith("head.") else 1)
            if parameter.ndim > 1 and not any(part in name for part in ("norm", "bias")):
                parameter *= 1 - rate * options.weight_decay
            parameter -= rate * gradient / (gradient.abs() + options.epsilon)
    module.encoder.sparse.after_optimizer_step()


def test_two_identical_runs_give_the_same_bytes_but_for_the_last_column(tmp_path, corpus):
    for name in ("one", "two"):
        run(tmp_path / name, corpus, "random")
    assert stable(tmp_path / "one") == stable(tmp_path / "two")
    assert stable(tmp_path / "one")[0].startswith("step,loss,")


def test_an_interrupted_run_has_the_rows_of_an_uninterrupted_one(tmp_path, corpus):
    run(tmp_path / "whole", corpus, "xmoe")
    with pytest.raises(KeyError):
        run(tmp_path / "broken", corpus, "xmoe", stop_at=9)
    assert len(rows(tmp_path / "broken")) > 5  # behind the checkpoint of step 5: these steps come again
    with open(tmp_path / "broken" / "course.csv", "a", encoding="utf-8") as file:
        file.write("9,0.12")  # killed while it wrote
    run(tmp_path / "broken", corpus, "xmoe")
    assert stable(tmp_path / "broken") == stable(tmp_path / "whole")


def test_a_run_that_never_reached_a_checkpoint_begins_its_course_anew(tmp_path, corpus):
    run(tmp_path / "whole", corpus, "dense")
    with pytest.raises(KeyError):
        run(tmp_path / "broken", corpus, "dense", stop_at=4)
    assert rows(tmp_path / "broken")
    run(tmp_path / "broken", corpus, "dense")
    assert stable(tmp_path / "broken") == stable(tmp_path / "whole")


def test_tokens_are_counted_from_row_to_row_and_progress_is_written_meanwhile(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # every step takes a second
    run(tmp_path / "run", corpus, "dense", steps=200)
    batches = MaskedLMBatches(corpus, TOKENIZER, optimisation(200), 0)
    tokens = [int(batches(step)["mask"].sum()) for step in range(200)]
    found = [float(row["tokens_per_second"]) for row in rows(tmp_path / "run")]
    assert found == pytest.approx([(one + two) / 2 for one, two in zip(tokens[::2], tokens[1::2], strict=True)], abs=0.51)
    progress = read_json(tmp_path / "run" / "progress.json")
    assert (progress["step"], progress["steps"]) == (198, 200)
    assert progress["loss"] == pytest.approx(float(rows(tmp_path / "run")[98]["loss"]), rel=1e-5)


def test_a_logger_is_told_what_the_course_says(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(trainer_module, "make_logger", lambda folder: CSVLogger(tmp_path, "logs", ""))
    run(tmp_path / "run", corpus, "xmoe")
    with open(next((tmp_path / "logs").rglob("metrics.csv")), encoding="utf-8", newline="") as file:
        told = list(csv.DictReader(file))
    course = rows(tmp_path / "run")
    assert [row["step"] for row in told] == [row["step"] for row in course]
    for name in ("loss", "balance", "gradient_norm"):
        assert [float(row[name]) for row in told] == pytest.approx([float(row[name]) for row in course], rel=1e-5)


def test_without_the_variable_there_is_no_logger(tmp_path, monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("MOEBENCH_LOGGER", raising=False)
        if value is not None:
            monkeypatch.setenv("MOEBENCH_LOGGER", value)
        assert make_logger(tmp_path) is False


def test_an_unknown_logger_is_named_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEBENCH_LOGGER", "tensorbord")
    with pytest.raises(MoebenchError, match=r"'tensorbord' \(did you mean 'tensorboard'\?\); loggers are: tensorboard, wandb"):
        make_logger(tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing_says_how_to_install_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    monkeypatch.setenv("MOEBENCH_LOGGER", name)
    with pytest.raises(MoebenchError, match=rf"(?s)logger '{name}': .*install it with: pip install {name}"):
        make_logger(tmp_path / "trained" / "pretrain" / "dense-0")
