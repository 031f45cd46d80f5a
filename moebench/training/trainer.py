"""One resumable, guarded training run: the run's folder, the Lightning trainer, its callbacks, and what the run costs."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

import moebench
from moebench.config import Optimisation
from moebench.errors import MoebenchError, nearest
from moebench.files import atomic_write, sha256, write_json, write_text
from moebench.training.batches import Batch, StepBatches
from moebench.training.module import Training

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
COURSE_ROWS = 100
"""So many rows a run's course has, or up to twice as many."""
FINISHED = "finished.json"
LOGGERS = ("tensorboard", "wandb")


def is_finished(folder: Path, key: str) -> bool:
    """Whether the folder holds a finished run of this key, and every file is as the run left it.

    So a run is never repeated because DVC has forgotten it, as after a kill.
    """
    try:
        said = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
        return bool(said["key"] == key and all(sha256(folder / name) == digest for name, digest in said["files"].items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MoebenchError):
        return False


@rank_zero_only
def open_run(folder: Path, key: str) -> None:
    """Prepare a run's folder: keep it when it belongs to an unfinished run of the same key, else empty it.

    Args:
        folder: where the run writes.
        key: everything the run depends on, hashed; a run of another key must not be continued.
    """
    try:
        same = json.loads((folder / "run.json").read_text(encoding="utf-8")) == {"key": key}
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "run.json", {"key": key})


def close_run(folder: Path, key: str) -> None:
    """Remove what only an unfinished run needs, and write down that it is finished, with the checksums of its files."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for left in (folder / "progress.json", *folder.rglob(".*.tmp")):  # of a killed process
        left.unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    write_json(folder / FINISHED, {"key": key, "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files}})
    (folder / "run.json").unlink(missing_ok=True)


class Progress(pl.Callback):
    """Counts training seconds, and tokens of all ranks, over interruptions, and writes down how the run goes.

    ``progress.json``, every two seconds: step, steps and loss; it is gone when the run is finished. ``course.csv``, kept: every n-th step's
    loss, each loss of the sparse layers (unscaled, summed over layers), the largest load of an expert over the mean load (the worst layer),
    the norm of all gradients before clipping, the highest learning rate of any parameter, and tokens a second since the row before; the
    same bytes for the same run, but for that last column.
    """

    def __init__(self, folder: Path, steps: int):
        self.path, self.course, self.steps = folder / "progress.json", folder / "course.csv", steps
        self.every = max(1, steps // COURSE_ROWS)
        self.seconds = 0.0
        self.tokens = 0
        self.rate = 0.0
        self._last = self._written = time.monotonic()
        self._row = (0.0, 0)  # seconds and tokens at the last row of the course

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.seconds, self.tokens = state_dict["seconds"], state_dict["tokens"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and drop what the course says of steps after the checkpoint."""
        self._last = self._written = time.monotonic()
        self._row = (self.seconds, self.tokens)
        if trainer.is_global_zero and self.course.is_file():
            header, *rows = self.course.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= trainer.global_step]
            write_text(self.course, "".join([header, *kept] if kept else []))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the module to watch the steps that the course shows."""
        assert isinstance(pl_module, Training)
        if batch_idx % trainer.accumulate_grad_batches:  # a step begins with its first part
            return
        pl_module.watched = {} if (trainer.global_step + 1) % self.every == 0 else None
        self.rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step."""
        assert isinstance(pl_module, Training)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.monotonic()
        self.seconds += now - self._last
        self.tokens += pl_module.tokens
        self._last = now
        if not trainer.is_global_zero:
            return
        if now - self._written > 2:
            self._written = now
            write_json(self.path, {"step": trainer.global_step, "steps": self.steps, "loss": pl_module.loss})
        if pl_module.watched is not None:
            self._write_row(trainer, pl_module, pl_module.watched)

    def _write_row(self, trainer: pl.Trainer, module: Training, watched: dict[str, float]) -> None:
        seconds, tokens = self.seconds - self._row[0], self.tokens - self._row[1]
        self._row = (self.seconds, self.tokens)
        row = {"loss": module.loss, **watched, "gradient_norm": float(module.gradient_norm), "learning_rate": self.rate}
        with open(self.course, "a", encoding="utf-8") as file:
            if not file.tell():
                file.write(",".join(["step", *row, "tokens_per_second"]) + "\n")
            cells = [str(trainer.global_step), *(f"{value:.6g}" for value in row.values()), f"{tokens / max(seconds, 1e-9):.0f}"]
            file.write(",".join(cells) + "\n")
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, trainer.global_step)


class Checkpoint(ModelCheckpoint):
    """Saves between steps only: a checkpoint holds no gradients, so those of a step's first parts would be lost."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning writes it among the system's temporary files, whence it is copied where that is another file system: a kill leaves it cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it."""
        with atomic_write(Path(path), binary=True) as file:
            torch.save(checkpoint, file)


def make_logger(folder: Path) -> Any:
    """The logger that the environment variable MOEBENCH_LOGGER asks for, ``tensorboard`` or ``wandb``; False: none, the usual case.

    Raises:
        MoebenchError: another value, or the package is not installed.
    """
    name = os.environ.get("MOEBENCH_LOGGER", "")
    if not name:
        return False
    if name not in LOGGERS:
        raise MoebenchError(f"MOEBENCH_LOGGER has the value {name!r}{nearest(name, LOGGERS)}; loggers are: {', '.join(LOGGERS)}")
    from lightning.pytorch import loggers

    home, run = folder.parents[2] / name, f"{folder.parent.name}/{folder.name}"
    try:
        if name == "tensorboard":
            return loggers.TensorBoardLogger(home, name=run, version="")
        return loggers.WandbLogger(project="moebench", name=run, save_dir=home.parent)
    except ModuleNotFoundError as error:
        raise MoebenchError(f"logger {name!r}: its package is not here; install it with: pip install {name}") from error


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back: every step would fetch it anew, a thousand page faults a step."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(parameter, 1 << 30)


def bf16_is_fast() -> bool:
    """Whether the processor has instructions for bf16; without them torch multiplies it fifty times slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(precision: str) -> None:
    """Refuse a precision that would never end.

    Raises:
        MoebenchError: bf16 on a processor without instructions for it, and no GPU.
    """
    if precision == "bf16" and not torch.cuda.is_available() and not bf16_is_fast():
        raise MoebenchError(f"precision: bf16, but {processor()} has no instructions for it and would take fifty times as long; use fp32")


def make_trainer(folder: Path, optimisation: Optimisation, scale: dict[str, Any]) -> tuple[pl.Trainer, Progress]:
    """Build the Lightning trainer of a run.

    Args:
        folder: the run's folder.
        optimisation: for how many steps, and how many of them between resumable checkpoints.
        scale: ``precision`` (fp32 or bf16), ``devices``, ``nodes``, ``threads`` of the profile.

    Raises:
        MoebenchError: the processor cannot do the precision.
    """
    check_precision(scale["precision"])
    torch.set_num_threads(scale["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # 2 % of a step; nothing here reads what it has not written
    keep_freed_memory()
    progress = Progress(folder, optimisation.steps)
    checkpoint = Checkpoint(
        dirpath=folder / "checkpoints",
        filename="last",
        every_n_train_steps=optimisation.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
    )
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="auto",
        devices=scale["devices"],
        num_nodes=scale["nodes"],
        strategy="ddp_find_unused_parameters_true" if scale["devices"] * scale["nodes"] > 1 else "auto",  # some routers rest in a stage
        precision="bf16-mixed" if scale["precision"] == "bf16" else "32-true",
        max_steps=optimisation.steps,
        accumulate_grad_batches=optimisation.accumulate,
        callbacks=[progress, checkpoint],
        plugins=[WholeFiles()],
        logger=make_logger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    return trainer, progress


def misfit(saved: Path, module: Training) -> str:
    """Say why a checkpoint is not one of this run's; empty if it is."""
    try:
        state = torch.load(saved, map_location="cpu", weights_only=True, mmap=True)
        missing = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step"} - state.keys()
        if missing:
            return f"it lacks {', '.join(sorted(missing))}"
        theirs = {name: tuple(value.shape) for name, value in state["state_dict"].items()}
        ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        return next(
            (f"{name} is {theirs.get(name)}, not {ours.get(name)}" for name in ours | theirs if theirs.get(name) != ours.get(name)), ""
        )
    except Exception as error:
        return str(error)


def as_the_first_rank(trainer: pl.Trainer, found: Any) -> Any:
    """Return what the first rank found, to all ranks that a launcher started, and not before it has come here.

    Lightning starts the others itself only when the first has been here.
    """
    if isinstance(trainer.strategy, DDPStrategy) and not isinstance(trainer.strategy.cluster_environment, LightningEnvironment):
        trainer.strategy.setup_environment()  # so that there is a group; `Trainer.fit` finds it
    return trainer.strategy.broadcast(found)


def fit(trainer: pl.Trainer, module: Training, batches: Callable[[int, int], Callable[[int], Batch]], folder: Path) -> None:
    """Train to the last step, from the run's checkpoint where there is one.

    Args:
        trainer: from `make_trainer`.
        module: what learns.
        batches: from a part and the number of parts to the function from a step to that part of its batch (`Job.batches`).
        folder: the run's folder.

    Raises:
        MoebenchError: the checkpoint is damaged (it is moved aside, so the next run starts this run anew), or the disk is full or fails.
    """
    saved = folder / "checkpoints" / "last.ckpt"
    parts = trainer.world_size * trainer.accumulate_grad_batches
    makes = [batches(part, parts) for part in range(trainer.global_rank, parts, trainer.world_size)]
    steps = StepBatches(makes, lambda: trainer.global_step, module.optimisation.steps)
    there = saved.is_file()  # on another rank this may be what the first has not yet removed
    there, wrong = as_the_first_rank(trainer, (there, misfit(saved, module) if there and trainer.is_global_zero else ""))
    if wrong:
        aside = saved.with_suffix(".damaged")
        if trainer.is_global_zero:
            saved.rename(aside)
        raise MoebenchError(f"{saved}: damaged checkpoint ({wrong}); moved to {aside.name}: run again to start this run anew")
    try:
        trainer.fit(module, steps, ckpt_path=saved if there else None, weights_only=True)
    except OSError as error:
        raise MoebenchError(f"{folder}: training stopped, {error}; the last whole checkpoint is kept, the next run continues") from error


def costs(trainer: pl.Trainer, progress: Progress, counts: dict[str, int]) -> dict[str, Any]:
    """Return what the run cost and where: seconds, memory, sizes, versions, hardware."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)
    return {
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else 0.0,
        "peak_memory_mb": round(peak, 1),
        **counts,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "moebench": moebench.__version__,
        "commit": commit(),
    }


def processor() -> str:
    """Name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The project's commit, with ``+`` where tracked files differ from it; ``unknown`` outside git."""
    try:
        folder = Path(moebench.__file__).parent

        def git(*arguments: str) -> str:
            return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
