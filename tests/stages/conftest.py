"""A copy of the project whose training and evaluation are stand-ins: real pipeline files, plan, configuration and DVC, no torch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_INS = {
    "prepare": """
from moebench.files import read_json
from moebench.stages.standin import log, write
def prepare(root, profile):
    log(root, "prepare")
    folder = root / "data" / "prepared" / profile
    write(folder / "manifest.json", "{}")
    write(folder / "tokenizer" / "pieces", str(read_json(root / "runs" / profile / "plan" / "prepare.json")["config"]))
    for name in ("constructed_pos", "constructed_nli"):
        write(folder / "tasks" / name / "train.jsonl", "")
""",
    "baselines": """
from moebench.stages.standin import log, write
def baselines(root, profile):
    log(root, "baselines")
    write(root / "runs" / profile / "baselines" / "majority.jsonl", "")
""",
    "pretrain": """
import time
from moebench.files import write_json
from moebench.stages.guard import guard
from moebench.stages.standin import log, write
def reached():
    from moebench.moe import registry
def pretrain(root, profile, paper, method, seed):
    folder = root / "runs" / profile / paper / "pretrain" / f"{method}-{seed}"
    plan = (root / "runs" / profile / "plan" / paper / "pretrain" / f"{method}.json").read_text()
    with guard(folder):
        state = folder / "checkpoints" / "step"
        first = int(state.read_text()) if state.exists() else 0
        log(root, f"pretrain {method}-{seed}" + (f" from step {first}" if first else ""))
        if (root / "fail").exists() and (root / "fail").read_text() == method:
            raise SystemExit("the stand-in fails")
        for step in range(first, 5):
            write(state, str(step))
            write_json(folder / "progress.json", {"step": step, "steps": 5})
            while step == 3 and (root / "hang").exists() and (root / "hang").read_text() == method:
                time.sleep(0.05)
        write(folder / "model.safetensors", plan)
        state.unlink()
""",
    "finetune": """
from moebench.stages.standin import log, write
def reached():
    from moebench.moe import registry
def finetune(root, profile, paper, method, training_set, seed):
    name = f"{method}-{training_set}"
    log(root, f"finetune {name}-{seed}")
    plan = (root / "runs" / profile / "plan" / paper / "finetune" / f"{name}.json").read_text()
    write(root / "runs" / profile / paper / "finetune" / f"{name}-{seed}" / "predictions" / "all", plan)
""",
    "evaluate": """
from moebench.files import sha256, read_json
from moebench.results import records
from moebench.stages.kept import keep
from moebench.stages.original import FILES, expected_runs, made_from
from moebench.stages.standin import log
def evaluate(root, profile, paper, only=()):
    log(root, "evaluate")
    runs = expected_runs(root, profile, paper)
    rows, changed = keep(root, profile, paper, only, made_from(root, profile, paper), runs, FILES)
    for run in runs:
        if not only or run.method in only:
            assert run.folder(root, profile, paper).is_dir()
            plan = run.plan(root, profile, paper)
            row = dict.fromkeys(FILES["provenance.csv"].columns) | {"profile": profile, "paper": paper, "method": run.method}
            row |= {"seed": run.seed, "stage": run.stage, "task": run.training_set or "mlm"}
            row |= {"config_hash": sha256(plan), "fingerprint": read_json(plan)["fingerprint"]}
            rows["provenance.csv"].append(row)
    for name, form in FILES.items():
        records.write(root / "results" / profile / paper / name, rows[name], form)
    return changed
""",
    "tabulate": """
from moebench.stages.standin import log, write
def tabulate(root, profile, paper):
    log(root, "tabulate")
    for name in ("table1_xtreme", "table2_perplexity", "table3_routers", "table4_uncertainty"):
        for kind in ("csv", "md", "tex"):
            write(root / "results" / profile / paper / f"{name}.{kind}", "")
    write(root / "results" / profile / paper / "README.md", "")
    write(root / "results" / profile / paper / "costs.md", "")
""",
    "standin": """
def log(root, what):
    with open(root / "calls.log", "a") as file:
        file.write(what + "\\n")
def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
""",
}

FILES = {
    "params.yaml": "profile: smoke   # a remark\nfolder:\n",
    "experiments/xmoe/published.yaml": "",
    "experiments/xmoe/methods/dense.yaml": "{label: Dense, layer: none}",
    "experiments/xmoe/methods/dotted.yaml": "{label: Dot, layer: moe, router: dot, losses: {balance: 0}}",
    "experiments/xmoe/methods/frozen.yaml": "{label: Frozen, layer: moe, router: dot, losses: {balance: 0},"
    " freeze_in_finetuning: true, pretrain_as: dotted}",
    "experiments/xmoe/methods/lowdim.yaml": "{label: X-MoE, layer: moe, router: xmoe, losses: {balance: 0}}",
}
for _profile, _seeds in (("smoke", "[0]"), ("cpu", "[0, 1]")):
    FILES[f"data/profiles/{_profile}.yaml"] = (
        "{source: constructed, tasks: [constructed_pos, constructed_nli], constructed: {}, corpus: {}, tokens: {vocabulary: 100}}"
    )
    FILES[f"experiments/xmoe/profiles/{_profile}.yaml"] = f"""
seeds: {_seeds}
baseline: dense
encoder: {{layers: 2, width: 8, heads: 2, inner: 8}}
sparse: {{experts: 2, inner: 8}}
pretrain: {{steps: 5, batch: 1, rate: 0.1}}
finetune:
  constructed_pos: {{steps: 5, batch: 1, rate: 0.1}}
  constructed_nli: {{steps: 5, batch: 1, rate: 0.1}}
"""


@dataclass
class Project:
    """The copy, and how to call what is in it."""

    root: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``python -m ...`` in the project."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "PATH": path,
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # a shell lets what it starts in the background ignore Ctrl-C, and the tests may have been started so
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def call(self, *arguments: str, status: int = 0) -> str:
        """Run ``python -m ...`` in the project and return what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == status, output
        return output

    def calls(self) -> list[str]:
        """Names of the stages that ran since the last look, sorted."""
        log = self.root / "calls.log"
        found = sorted(log.read_text().splitlines()) if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first ``old`` in a file."""
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new, 1))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with four methods, two tasks, the profiles smoke (one seed) and cpu (two seeds); nothing has run."""
    shutil.copytree(ROOT / "moebench", tmp_path / "moebench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "moebench/stages/evaluate.py", tmp_path / "moebench/stages/original.py")
    for name, text in STAND_INS.items():
        (tmp_path / "moebench" / "stages" / f"{name}.py").write_text(text)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("dvc.yaml", "experiments/xmoe/dvc.yaml", ".dvcignore", ".dvc/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("data/images", "experiments/e3/methods", "experiments/e3/profiles"):  # the plan looks at them; no profile is of that paper
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return Project(tmp_path)
