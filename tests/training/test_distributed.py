"""Two processes on one machine (gloo): the path that several GPUs take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
import test_runs
test_runs.SCALE["devices"] = 2
folder, corpus = Path(sys.argv[1]), Path(sys.argv[2])
module, trainer = test_runs.run(folder, corpus, "xmoe", ranks=2)
torch.save({"weights": module.state_dict(), "step": trainer.global_step}, folder / f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks_train_one_model(tmp_path, corpus):
    import torch

    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run", corpus], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / "run" / f"rank{rank}.pt") for rank in range(2))
    assert one["step"] == two["step"] == 12
    assert all(torch.equal(value, two["weights"][name]) for name, value in one["weights"].items())
