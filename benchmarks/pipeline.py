"""What a stage costs beside what it computes: a graph of trivial stages, by `moebench run` and by plain `dvc repro`.

    python benchmarks/pipeline.py [--stages 100] [--jobs 1]

Both run the same pipeline from nothing in a folder of its own: the toy paper of ``tests/toy`` with a training that trains nothing, so that
its stages are Python's start, the configuration, the files and DVC. Seconds of CPU are those of all processes that the command started.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
TRAIN = """
from moebench.files import write_json

def train(experiment, run):
    for name, content in (("right", [True]), ("measures", []), ("costs", {})):
        write_json(experiment.folder(run) / f"{name}.json", content)
"""


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="of moebench run; dvc runs one stage at a time")
    parser.add_argument("--torch", action="store_true", help="training imports torch and Lightning, as every real one does")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans come to this process, which counts what they used
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        build(root, options.stages, options.torch)
        run = [sys.executable, "-m", "moebench", "run", "--profile", "smoke", "--jobs", str(options.jobs)]
        repro = [sys.executable, "-m", "dvc", "repro", "experiments/toy/smoke/dvc.yaml"]
        print(f"{options.stages} stages, {options.jobs} at a time   CPU s a stage   wall s a stage        CPU s       wall s")
        for label, command in (("moebench run", run), ("moebench run, again", run), ("dvc repro", repro), ("dvc repro, again", repro)):
            if label == "dvc repro":
                for made in ("runs", "data", "results", ".dvc/cache", ".dvc/tmp", "experiments/toy/smoke/dvc.lock"):
                    shutil.rmtree(root / made) if (root / made).is_dir() else (root / made).unlink()
            cpu, wall = measured(command, root)
            print(f"{label:30} {cpu / options.stages:15.3f} {wall / options.stages:16.3f} {cpu:12.1f} {wall:12.1f}", flush=True)


def build(root: Path, stages: int, torch: bool) -> None:
    """Write the project: five stages, and all others are training runs, an equal number of seeds of two methods."""
    shutil.copytree(ROOT / "moebench", root / "moebench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/toy/protocol", root / "moebench/protocols/toy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/toy/experiment", root / "experiments/toy")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n")
    heavy = "import lightning.pytorch, torch\n" if torch else ""
    (root / "moebench/pipeline/train.py").write_text(heavy + TRAIN)
    (root / "moebench/protocols/toy/training.py").write_text(heavy)
    profile = root / "experiments/toy/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("[0, 1]", str(list(range((stages - 5) // 2)))))


def measured(command: list[str], root: Path) -> tuple[float, float]:
    """Run a command to the end of its last descendant; returns seconds of CPU, and of the clock until the command itself ended."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=root, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    wall = time.monotonic() - began
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main()
