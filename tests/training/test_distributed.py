"""Two processes on one machine (gloo): the path that several GPUs take, and what they should do as one process does."""

import csv
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_steps import KINDS, STEPS, TASKS, job, train
from test_runs import run

TRAIN = """
import sys
from pathlib import Path
import torch
import test_runs
test_runs.SCALE["devices"] = 2
folder, corpus, stop_at, accumulate = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
module, trainer = test_runs.run(folder, corpus, "xmoe", stop_at=stop_at, accumulate=accumulate)
torch.save({"weights": module.state_dict(), "step": trainer.global_step}, folder / f"rank{trainer.global_rank}.pt")
"""
SHARE = """
import os, sys
from pathlib import Path
import torch
from shared_steps import KINDS, train
folder = Path(sys.argv[1])
found = {(kind, accumulate): train(kind, folder, 2, accumulate) for kind in KINDS for accumulate in (1, 2)}
torch.save(found, folder / f"rank{os.environ['LOCAL_RANK']}.pt")
"""
LAUNCHED = """
import os, sys
from pathlib import Path
import torch
import test_runs
from moebench.moe.routers.xmoe import XMoE
test_runs.SCALE["devices"] = 2
rank, folder, corpus, nan_at = os.environ["RANK"], Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
route, calls = XMoE.forward, []
def forward(self, inputs):
    routing = route(self, inputs)
    calls.append(rank)
    if rank == "1" and len(calls) == nan_at:
        routing.scores[0] = torch.nan
    return routing
XMoE.forward = forward
module, trainer = test_runs.run(folder / rank, corpus, "xmoe")
torch.save({"weights": module.state_dict(), "steps": len(calls)}, folder / f"rank{rank}.pt")
"""


def launched(folder, *arguments):
    """Start two ranks as torchrun does; the folder of each is what it sees of the run's. Returns what both said."""
    here, path = Path(__file__).parent, folder / "launched.py"
    path.write_text(LAUNCHED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, str(path), str(folder), *map(str, arguments)]
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in "01"
    ]
    try:
        return [rank.communicate(timeout=100)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
def test_what_another_rank_sees_of_an_earlier_run_is_not_continued(tmp_path, corpus):
    with pytest.raises(KeyError):
        run(tmp_path / "1", corpus, "xmoe", stop_at=8)
    said = launched(tmp_path, corpus, -1)
    assert all((tmp_path / f"rank{rank}.pt").exists() for rank in range(2)), said
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert one["steps"] == two["steps"] == 12
    assert all(torch.equal(value, two["weights"][key]) for key, value in one["weights"].items())


@pytest.mark.slow
def test_all_ranks_refuse_a_checkpoint_that_the_first_finds_damaged(tmp_path, corpus):
    saved = tmp_path / "0" / "checkpoints" / "last.ckpt"
    with pytest.raises(KeyError):
        run(tmp_path / "0", corpus, "xmoe", stop_at=8)
    saved.write_bytes(saved.read_bytes()[:1000])
    for said in launched(tmp_path, corpus, -1):
        assert "last.ckpt: damaged checkpoint" in said
    assert not saved.exists()
    assert saved.with_suffix(".damaged").exists()


@pytest.mark.slow
def test_a_score_that_is_not_finite_on_one_rank_ends_all(tmp_path, corpus):
    first, second = launched(tmp_path, corpus, 4)
    assert first.splitlines()[-1].endswith("FloatingPointError: the training loss is nan at step 3; lower the learning rate")
    assert "scores of the router are not finite" in second.splitlines()[-1]


def two_ranks(folder, script, *arguments):
    """Run a script, a file in the folder, for Lightning starts it a second time."""
    here, path = Path(__file__).parent, folder / "two.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_train_one_model_and_an_interrupted_run_ends_with_the_same_bits(tmp_path, corpus, accumulate):
    weights = {}
    for name, stops in {"whole": [-1], "broken": [8, -1]}.items():
        for stop_at in stops:
            done = two_ranks(tmp_path, TRAIN, tmp_path / name, corpus, stop_at, accumulate)
            assert (done.returncode == 0) == (stop_at < 0), done.stderr[-3000:]
        one, two = (torch.load(tmp_path / name / f"rank{rank}.pt") for rank in range(2))
        assert one["step"] == two["step"] == 12
        assert all(torch.equal(value, two["weights"][key]) for key, value in one["weights"].items())
        weights[name] = one["weights"]
    assert all(torch.equal(value, weights["broken"][key]) for key, value in weights["whole"].items())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What both ranks found, and where."""
    folder = tmp_path_factory.mktemp("shared")
    done = two_ranks(folder, SHARE, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_batch_make_the_step_of_one_process(shared, tmp_path, kind):
    """Loss and gradient of every step, also where a rank has no row or nothing to predict; capacities are each part's own."""
    folder, found = shared
    whole = train(kind, tmp_path, 1, 1)
    assert whole["gradients"].isfinite().all()
    assert len(whole["gradients"]) == STEPS
    divided = {"two ranks": found[0][kind, 1], "the other rank": found[1][kind, 1], "two ranks, two parts": found[0][kind, 2]}
    for name, other in (divided | {"one process, two parts": train(kind, tmp_path, 1, 2)}).items():
        assert other["tokens"] == whole["tokens"] > 0, name
        if kind == "capacity":
            continue
        distance = (other["gradients"] - whole["gradients"]).norm(dim=1)
        assert (distance <= 1e-6 * whole["gradients"].norm(dim=1)).all(), name
        assert other["losses"] == pytest.approx(whole["losses"], rel=1e-6), name
        assert torch.equal(other["usage"], whole["usage"]), name
    assert (whole["gradients"].norm(dim=1) > 0).all() != (kind == "mlm_without_targets")
    with open(folder / f"{kind}-2-2" / "course.csv", encoding="utf-8", newline="") as file:
        course = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in course] == pytest.approx(found[0][kind, 2]["losses"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_was_used_and_dropped_is_that_of_all_ranks(shared, accumulate):
    one, two = (found["capacity", accumulate] for found in shared[1])
    assert torch.equal(one["usage"], one["own"] + two["own"])
    assert torch.equal(one["usage"], two["usage"])
    assert one["own"][2] > 0
    assert two["own"][2] > 0


@pytest.mark.slow
def test_every_part_of_every_step_draws_its_own_and_the_first_part_what_one_process_draws(shared):
    one, two = (found["mlm", 2]["seeds"] for found in shared[1])
    assert len({*one, *two}) == 4 * STEPS
    assert one[::2] == shared[1][0]["mlm", 1]["seeds"] == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlm", "tagging"])
def test_the_course_has_the_load_of_the_whole_batch(shared, tmp_path, kind):
    folder, _ = shared
    train(kind, tmp_path, 1, 1)
    loads = []
    for course in (tmp_path / f"{kind}-1-1", folder / f"{kind}-2-1", folder / f"{kind}-2-2"):
        with open(course / "course.csv", encoding="utf-8", newline="") as file:
            loads.append([float(row["largest_load"]) for row in csv.DictReader(file)])
    assert loads[0] == loads[1] == loads[2]
    assert all(math.isfinite(load) for load in loads[0])


@pytest.mark.parametrize("kind", ["mlm", "counting", "tagging", "mimo"])
def test_one_process_computes_a_batch_in_parts_also_in_more_than_it_has_rows(tmp_path, kind):
    whole, parts = (train(kind, tmp_path, 1, accumulate) for accumulate in (1, 5))
    distance = (parts["gradients"] - whole["gradients"]).norm(dim=1)
    assert (distance <= 1e-6 * whole["gradients"].norm(dim=1)).all()
    assert torch.equal(parts["usage"], whole["usage"])
    assert parts["tokens"] == whole["tokens"]


def test_the_parts_of_a_fine_tuning_batch_are_its_rows_once(tmp_path):
    for kind in TASKS:
        _, batches = job(kind, tmp_path, 1)
        for step in range(3):
            whole, parts = batches(0, 1)(step), [batches(part, 3)(step) for part in range(3)]
            rows = [ids[mask].tolist() for batch in parts for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
            assert sorted(rows) == sorted(ids[mask].tolist() for ids, mask in zip(whole["ids"], whole["mask"], strict=True))
            assert sum(batch["weight"].item() for batch in parts) == pytest.approx(3)
            assert all(batch["labels"].dtype == torch.int64 and batch["labels"].ndim == whole["labels"].ndim for batch in parts)
