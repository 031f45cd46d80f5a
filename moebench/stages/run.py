"""Verb ``run``: brings everything up to date, stages side by side, one ``dvc repro`` each; DVC itself runs one stage at a time.

What DVC calls unchanged is asked in this process, stage by stage as its dependencies get ready, so a second run starts nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from moebench import config, config_images
from moebench.errors import MoebenchError
from moebench.files import read_json, write_json
from moebench.stages.select import select
from moebench.stages.warm import warm

LOOK_EVERY = 0.2
"""Seconds between two looks at the running stages."""
GRACE = 10.0
"""Seconds that an interrupted stage has to end by itself."""
TAIL = 20
"""Lines of a failed stage's log that are shown."""
DVC = """
import sys
from dvc.cli import main
from moebench.stages.guard import end_with_parent
end_with_parent()
sys.exit(main(sys.argv[1:]))
"""
"""DVC, ending with this process even if that is killed."""


@dataclass
class Work:
    """A stage of the pipeline on its way; ``stage`` is DVC's own object."""

    stage: Any
    address: str
    log: Path
    waits_for: set[str] = field(default_factory=set)
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    began: float = 0.0

    @property
    def name(self) -> str:
        """Its name in its file, such as ``pretrain@cpu-dense-0``."""
        return str(self.stage.name)

    @property
    def kind(self) -> str:
        """Its verb."""
        return self.name.partition("@")[0]

    @property
    def seed(self) -> int:
        """The last part of a training stage's name; -1 of other stages."""
        last = self.name.rpartition("-")[2]
        return int(last) if last.isdecimal() else -1

    @property
    def share_done(self) -> float | None:
        """Share of a training run that is done, if the run says so."""
        try:
            progress = json.loads((Path(self.stage.outs[0].fs_path) / "progress.json").read_text(encoding="utf-8"))
            return float(progress["step"] / progress["steps"])
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            return None


@dataclass
class Clock:
    """Estimates the time that is left from how long finished stages of the same kind took."""

    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def left(self, waiting: list[Work], running: list[Work], jobs: int) -> float | None:
        """Seconds until everything is done; none while too little is known."""
        seconds = 0.0
        for work in waiting + running:
            known, passed = self.took[work.kind], time.monotonic() - work.began if work.process else 0.0
            if known:
                seconds += max(sum(known) / len(known) - passed, 0.0)
            elif share := work.share_done if work.process else None:
                seconds += passed / share - passed
            else:
                return None
        return seconds / min(jobs, max(len(waiting) + len(running), 1))


def run(root: Path, profile: str, jobs: int | None = None, paper: str | None = None, methods: Collection[str] = ()) -> int:
    """Select the profile and bring it up to date, or only some methods of a paper and their part of its tables.

    Args:
        root: the project's root.
        profile: name of the profile.
        jobs: stages side by side; none: one a GPU, or as many as the cores allow.
        paper: name of the paper; none: all of them.
        methods: train and score these of ``paper`` alone, beside the records that are there; none: all of them.

    Returns:
        Exit status: 0, 1 if a stage failed, 130 if interrupted.

    Raises:
        MoebenchError: the configuration is wrong, DVC cannot read the pipeline, or the records of the other methods cannot stay.
    """
    select(root, profile)
    papers = [paper] if paper else config.papers(root, profile)
    pictures = {name for name in papers if config_images.of_images(root, name)}
    settings = [(config_images if name in pictures else config).setting(root, name, profile) for name in papers]
    from moebench.stages import alone  # brings pandas: not for a mistake in the arguments

    targets = [table_stage(name, profile, name in pictures) for name in papers]
    if methods:
        targets = alone.stages(root, profile, papers[0], methods)
    threads = max(setting.threads for setting in settings)
    slots = device_slots(max(setting.devices for setting in settings))
    jobs = jobs or len(slots) or max(len(os.sched_getaffinity(0)) // threads, 1)
    # files outside the project are not among the plan's dependencies, so it is made anew
    forced = {f"plan@{profile}"} if config.data(root, profile).source != "constructed" else set()
    console = Console(highlight=False, soft_wrap=True)

    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with contextlib.closing(Repo(str(root), _wait_for_lock=True)) as repo:
            with repo.lock:
                forget_the_dead(root / ".dvc" / "tmp" / "rwlock")
            works = pipeline(repo, root, profile, targets)
            training = {address: work for address, work in works.items() if methods and work.kind in ("pretrain", "finetune")}

            def inputs(addresses: Iterable[str]) -> dict[str, Any]:
                every = pipeline(repo, root, profile, list(addresses))
                return {address: every[address].stage.deps for address in addresses}

            # not with GPUs, whose state does not survive a fork, nor with several ranks, which Lightning starts by their command line
            forks = not slots and all(setting.devices * setting.nodes == 1 for setting in settings)
            with _ending_by_interrupt(), contextlib.ExitStack() as stack:
                environment = stack.enter_context(warm()) if forks else {}
                first = {address: work for address, work in works.items() if address not in training}
                pool = Pool(root, repo, first, jobs, slots, threads, forced, console, environment)
                pool.run()
                if training and not pool.failed:  # nothing trains that could not be compared
                    alone.check_comparable(root, profile, papers[0], methods, inputs)
                    pool.waiting = training
                    pool.run()
    except DvcException as error:
        raise MoebenchError(f"dvc: {error}") from error
    except KeyboardInterrupt:
        console.print("Interrupted. Finished stages and checkpoints are kept; the same command continues.")
        return 130
    for work in pool.failed:
        lines = work.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        console.print(f"\n{work.name} failed; the end of {work.log.relative_to(root)}:", style="bold red")
        console.print("\n".join(f"  {line}" for line in lines), markup=False)
    if pool.failed:
        left = len(works) - len(pool.done) - len(pool.failed)
        console.print(f"\n{left} stages were not started. What is finished is kept; the same command continues.")
        return 1
    console.print(f"{len(works)} stages: {pool.ran} run, {len(works) - pool.ran} were up to date.")
    if methods:
        changed = alone.add_to_tables(root, profile, papers[0], methods)
        console.print(f"Added to the tables: {', '.join(methods)}. Records of other methods stay as they were.")
        if changed:
            console.print(f"The code of these has changed since they ran (provenance.csv has the commits): {', '.join(changed)}.")
    for name in papers:
        console.print(f"Look at results/{profile}/{name}/{'table1_quality' if name in pictures else 'table1_xtreme'}.md")
    return 0


def table_stage(paper: str, profile: str, pictures: bool) -> str:
    """Address of the stage that makes a paper's tables; a paper on images has others and makes them in its own file."""
    return f"experiments/{paper}/dvc.yaml:tabulate@{profile}" if pictures else f"tabulate@{profile}-{paper}"


def forget_the_dead(locks: Path) -> None:
    """Drop DVC's locks on paths whose holders were killed.

    DVC does so itself, but takes a killed process for alive as long as nobody collects it, which in a container may be for ever.
    """
    import psutil

    def alive(holder: dict[str, Any]) -> bool:
        try:
            return bool(psutil.Process(holder["pid"]).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    if locks.is_file():
        held = read_json(locks)
        held["write"] = {path: holder for path, holder in held.get("write", {}).items() if alive(holder)}
        held["read"] = {path: [holder for holder in holders if alive(holder)] for path, holders in held.get("read", {}).items()}
        write_json(locks, held)


def device_slots(devices: int) -> list[str]:
    """Values of ``CUDA_VISIBLE_DEVICES`` for stages side by side, ``devices`` GPUs each; empty without a GPU."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        found = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    elif shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        found = done.stdout.split() if done.returncode == 0 else []
    else:
        found = []
    groups = [found[begin : begin + devices] for begin in range(0, len(found), devices)]
    return [",".join(group) for group in groups if len(group) == devices or len(groups) == 1]


def pipeline(repo: Any, root: Path, profile: str, targets: list[str]) -> dict[str, Work]:
    """Return address → work of the targets and of everything they need, the first seed's runs before the next one's.

    Raises:
        MoebenchError: the pipeline has no such target.
    """
    graph = repo.index.graph  # a stage points at those it needs
    works = {}
    for stage in graph:
        file = Path(stage.path).relative_to(root)
        address = str(stage.name) if file.parent == Path() else f"{file.as_posix()}:{stage.name}"
        works[stage] = Work(stage, address, root / "runs" / profile / "logs" / file.parent / f"{stage.name}.log")
    for stage, work in works.items():
        work.waits_for |= {works[other].address for other in graph.successors(stage)}
    every = {work.address: work for work in works.values()}
    for target in targets:
        if target not in every:
            raise MoebenchError(f"{root / 'dvc.yaml'}: has no stage {target!r}; every paper has to be in the matrix of 'tabulate'")
    needed = list(targets)
    for address in needed:  # grows while it is walked
        needed += sorted(every[address].waits_for - set(needed))
    return {address: every[address] for address in sorted(set(needed), key=lambda address: (every[address].seed, address))}


@dataclass
class Pool:
    """Runs stages as soon as what they need is done, at most ``jobs`` at a time; after a failure it starts no further ones."""

    root: Path
    repo: Any
    waiting: dict[str, Work]
    jobs: int
    slots: list[str]
    threads: int
    forced: set[str]
    console: Console
    environment: dict[str, str]
    running: list[Work] = field(default_factory=list)
    failed: list[Work] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    ran: int = 0
    clock: Clock = field(default_factory=Clock)

    def run(self) -> None:
        """Run until nothing is left, or nothing more can be started."""
        total = len(self.done) + len(self.waiting)
        with Display(self.console, total) as display:
            try:
                while self.running or (self.waiting and not self.failed):
                    if not self.failed:
                        self._start_the_ready()
                    display.show(self)
                    if self.running:
                        time.sleep(LOOK_EVERY)
                    for work in [work for work in self.running if work.process and work.process.poll() is not None]:
                        self._finish(work, display)
            finally:
                self._stop()

    @property
    def time_left(self) -> str:
        """The estimate in words; empty while too little is known, and when nothing is left."""
        left = self.clock.left(list(self.waiting.values()), self.running, self.jobs)
        return f"about {duration(left)} left" if left else ""

    def _start_the_ready(self) -> None:
        """Start ready stages while there is room; those that are up to date are done at once, which may make others ready."""
        looked = -1
        while looked != len(self.done):
            looked = len(self.done)
            for address, work in list(self.waiting.items()):
                if len(self.running) == self.jobs:
                    return
                if work.waits_for <= self.done:
                    del self.waiting[address]
                    if address in self.forced or self._changed(work):
                        self._start(work)
                    else:
                        self.done.add(address)

    def _changed(self, work: Work) -> bool:
        from dvc.lock import LockError

        try:
            with self.repo.lock:
                return bool(work.stage.changed())
        except LockError:  # another DVC is at it: let this stage's own DVC find out
            return True

    def _start(self, work: Work) -> None:
        work.slot = min(set(range(self.jobs)) - {other.slot for other in self.running})
        environment = (
            os.environ
            | self.environment
            | {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        )
        # `python` in a stage's command is this one
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        if self.slots:
            environment["CUDA_VISIBLE_DEVICES"] = self.slots[work.slot % len(self.slots)]
        command = [sys.executable, "-c", DVC, "--wait-for-lock", "repro", "--single-item", work.address]
        command += ["--force"] if work.address in self.forced else []
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with open(work.log, "wb") as log:
            work.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        work.began = time.monotonic()
        self.running.append(work)

    def _finish(self, work: Work, display: Display) -> None:
        assert work.process is not None
        self.running.remove(work)
        seconds = time.monotonic() - work.began
        if work.process.returncode:
            self.failed.append(work)
        else:
            self.done.add(work.address)
            self.ran += 1
            self.clock.took[work.kind].append(seconds)
        display.say(self, f"{work.name} {'failed' if work.process.returncode else 'done'} ({duration(seconds)})")

    def _stop(self) -> None:
        """End the stages that still run: ask them to, and after a while or at a second interrupt kill them."""
        running = [work.process for work in self.running if work.process]
        try:
            for process in running:
                _signal(process, signal.SIGINT)
            end = time.monotonic() + GRACE
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(end - time.monotonic(), 0))
        finally:
            for process in running:
                _signal(process, signal.SIGKILL)


class Display:
    """What is going on: bars on a terminal, a line for each stage elsewhere."""

    def __init__(self, console: Console, total: int):
        self.console, self.total = console, total
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task("", total=total, note="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, pool: Pool) -> None:
        """Draw the bars."""
        description = f"{len(pool.done)}/{self.total} stages"
        self.bars.update(self.overall, completed=len(pool.done), description=description, note=pool.time_left)
        for work in pool.running:
            if work.address not in self.tasks:
                self.tasks[work.address] = self.bars.add_task(work.name, total=None, note="")
            share = work.share_done
            note = duration(time.monotonic() - work.began)
            self.bars.update(self.tasks[work.address], total=None if share is None else 1.0, completed=share or 0.0, note=note)
        for address in self.tasks.keys() - {work.address for work in pool.running}:
            self.bars.remove_task(self.tasks.pop(address))

    def say(self, pool: Pool, what: str) -> None:
        """Report what happened to a stage."""
        if not self.console.is_terminal:
            said = ", ".join(filter(None, (what, pool.time_left)))
            self.console.print(f"[{len(pool.done)}/{self.total}] {said}", markup=False)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def _ending_by_interrupt() -> Iterator[None]:
    """Make a request to end, or a closed terminal, do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores the latter
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a stage's DVC and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
