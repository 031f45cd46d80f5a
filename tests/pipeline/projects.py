"""A project of its own and how to call what is in it; what its stages are called."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "toy"

STAND_IN = '''
"""Training without torch: five steps, of which each is a checkpoint."""
import json, time
from moebench.files import write_json
from moebench.pipeline.guard import guard

def train(experiment, run):
    folder = experiment.folder(run)
    with guard(folder):
        state = folder / "checkpoints" / "step"
        first = int(state.read_text() or 0) if state.exists() else 0
        print(f"from step {first}")
        if (experiment.root / "fail").exists() and (experiment.root / "fail").read_text() == run.name:
            raise SystemExit("the stand-in fails")
        state.parent.mkdir(parents=True, exist_ok=True)
        for step in range(first, 5):
            state.write_text(str(step))
            write_json(folder / "progress.json", {"step": step, "steps": 5, "loss": 0.5})
            while step == 3 and (experiment.root / "hang").exists() and (experiment.root / "hang").read_text() == run.name:
                time.sleep(0.02)
        state.unlink()
        write_json(folder / "right.json", [True, False])
        write_json(folder / "measures.json", [])
        write_json(folder / "costs.json", {"plan": experiment.plan_file(run).read_text()})
'''


@dataclass
class Project:
    """The project, and how to call what is in it."""

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

    def run(self, *arguments: str, status: int = 0) -> str:
        """Bring the profile ``smoke`` up to date."""
        return self.call("moebench", "run", "--profile", "smoke", *arguments, status=status)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first ``old`` in a file."""
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new, 1))

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)


def ran(output: str) -> list[str]:
    """Names of the stages that ran, as `moebench run` and `dvc repro` say; sorted."""
    return sorted(
        re.findall(r"^\[\d+/\d+\] (?:\S+ )?(\S+) done", output, re.M) + re.findall(r"^Running stage '\S*?:?([^':]+)'", output, re.M)
    )


def stages(*methods: str, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    """What has to run for these methods, with everything else."""
    return sorted(["plan", "prepare", "baselines", *trained(*methods, seeds=seeds)])


def trained(*methods: str, seeds: tuple[int, ...] = (0, 1)) -> list[str]:
    """What has to run when these methods are trained."""
    return sorted([*(f"pretrain@{name}-{seed}" for name in methods for seed in seeds), "evaluate", "tabulate"])
