"""Verb ``run``: brings experiments up to date, stages side by side.

One process asks DVC which stages have to run (`moebench.pipeline.ledger`), forks them from a process that has imported what they need
(`moebench.pipeline.warm`) and tells DVC what they made. A second run asks, and starts nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from moebench import config
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.experiment import experiments as all_experiments
from moebench.files import held
from moebench.pipeline import warm
from moebench.pipeline.evaluate import evaluate
from moebench.pipeline.kept import check_comparable, check_run
from moebench.pipeline.ledger import Ledger
from moebench.pipeline.select import select

LOOK_EVERY = 0.05
"""Seconds between two looks at the running stages."""
DRAW_EVERY = 0.5
"""Seconds between two looks at how far they are."""
GRACE = 10.0
"""Seconds that an interrupted stage has to end by itself."""
LOST = 255
"""What `multiprocessing` says of a process whose fork server was killed."""
MOST_STARTS = 3
"""So often a stage is started whose fork server was killed."""
TAIL = 20
"""Lines of a failed stage's log that are shown."""


@dataclass
class Work:
    """A stage of the pipeline on its way."""

    address: str
    command: str
    output: Path
    log: Path
    waits_for: set[str] = field(default_factory=set)
    process: ForkServerProcess | None = None
    slot: int = 0
    began: float = 0.0
    starts: int = 0

    @property
    def title(self) -> str:
        """What it is called here: paper, profile and stage, such as ``paper/cpu pretrain@dense-0``."""
        file, _, name = self.address.rpartition(":")
        return f"{'/'.join(Path(file).parts[1:-1])} {name}".strip()

    @property
    def kind(self) -> str:
        """Its verb."""
        return self.address.rpartition(":")[2].partition("@")[0]

    @property
    def seed(self) -> int:
        """The last part of a training stage's name; -1 of other stages."""
        last = self.address.rpartition("-")[2]
        return int(last) if last.isdecimal() else -1

    def progress(self) -> tuple[float | None, str]:
        """Share of a training run that is done, and its loss, if the run says so."""
        try:
            progress = json.loads((self.output / "progress.json").read_text(encoding="utf-8"))
            return float(progress["step"] / progress["steps"]), f"loss {progress['loss']:.3f}" if "loss" in progress else ""
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            return None, ""


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
            elif share := work.progress()[0] if work.process else None:
                seconds += passed / share - passed
            else:
                return None
        return seconds / min(jobs, max(len(waiting) + len(running), 1))


def run(
    experiments: Sequence[Experiment],
    main: warm.Main,
    jobs: int | None = None,
    methods: Collection[str] = (),
    logger: str | None = None,
) -> int:
    """Bring experiments of one profile up to date, or only some methods of one and their part of its tables.

    Args:
        experiments: which ones.
        main: runs the command line of a stage.
        jobs: stages side by side; none: one a GPU, or as many as the cores allow.
        methods: train and score these alone, beside the records that are there; none: all of them.
        logger: Lightning's logger for the training runs (`moebench.training.trainer.make_logger`); none: none.

    Returns:
        Exit status: 0, 1 if a stage failed, 130 if interrupted.

    Raises:
        MoebenchError: the configuration is wrong, DVC cannot read the pipeline, another run is at work, or the records of the other methods
            cannot stay.
    """
    root, profile = experiments[0].root, experiments[0].profile
    for experiment in experiments:
        select(experiment)
    settings = [experiment.setting for experiment in experiments]
    threads = max(setting.threads for setting in settings)
    slots = device_slots(max(setting.devices for setting in settings))
    jobs = jobs or len(slots) or max(len(os.sched_getaffinity(0)) // threads, 1)
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    variables |= {"MOEBENCH_LOGGER": logger} if logger else {}
    os.environ.update(variables)  # the warm process inherits them
    rooms = ("prepare", "baselines", "training", "scoring", "tables")
    used = dict.fromkeys(experiment.protocol for experiment in experiments)
    warm.preload(["moebench.cli", *STAGES, *(protocol.module(room) for protocol in used for room in rooms)])
    several = any(setting.devices * setting.nodes > 1 for setting in settings)
    # files outside the project are not among the plan's dependencies, so it is made anew
    forced = {experiment.address("plan") for experiment in experiments if experiment.data.outside}
    console = Console(highlight=False, soft_wrap=True)

    from dvc.exceptions import DvcException

    try:
        default = is_default(root, experiments)
        only_one = held(root / ".dvc" / "tmp" / "moebench.lock", f"{root}: another `moebench run`, process {{}}, works here")
        with only_one, contextlib.closing(Ledger(root, experiments, default)) as ledger, _ending_by_interrupt():
            warm.own_temporary_folder(root / ".dvc" / "tmp" / "moebench.temporary")
            for lock in ledger.mended:
                console.print(f"{lock.relative_to(root)} was damaged, as by a kill, and is put right; finished runs are not repeated.")
            targets = [experiment.address("tabulate") for experiment in experiments] + ledger.extra
            if methods:
                targets = stages_of(experiments[0], methods)
            works = pipeline(ledger, root, profile, targets)
            training = {address: work for address, work in works.items() if methods and work.kind in ("pretrain", "finetune")}
            first = {address: work for address, work in works.items() if address not in training}
            pool = Pool(root, ledger, first, jobs, slots, forced, console, None if several else main, len(works))
            pool.run()
            if training and not pool.failed:  # nothing trains that could not be compared
                check_comparable(experiments[0], methods, ledger.stages)
                pool.waiting = training
                pool.run()
    except DvcException as error:
        raise MoebenchError(f"dvc: {error}") from error
    except KeyboardInterrupt:
        console.print("Interrupted. Finished stages and checkpoints are kept; the same command continues.")
        return 130
    for work in pool.failed:
        lines = work.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        console.print(f"\n{work.title} failed; the end of {work.log.relative_to(root)}:", style="bold red")
        console.print("\n".join(f"  {line}" for line in lines), markup=False)
    if pool.failed:
        left = len(works) - len(pool.done) - len(pool.failed)
        console.print(f"\n{left} stages were not started. What is finished is kept; the same command continues.")
        return 1
    console.print(f"{len(works)} stages: {pool.ran} run, {len(works) - pool.ran} were up to date.")
    if methods:
        from moebench.pipeline.tabulate import tabulate  # brings pandas

        changed = evaluate(experiments[0], methods)
        tabulate(experiments[0])
        console.print(f"Added to the tables: {', '.join(methods)}. Records of other methods stay as they were.")
        if changed:
            console.print(f"The code of these has changed since they ran (provenance.csv has the commits): {', '.join(changed)}.")
    for experiment in experiments:
        console.print(f"Look at results/{profile}/{experiment.paper}/README.md")
    return 0


STAGES = tuple(f"moebench.pipeline.{verb}" for verb in ("plan", "prepare", "baselines", "train", "evaluate", "tabulate"))


def stages_of(experiment: Experiment, methods: Collection[str]) -> list[str]:
    """Addresses of the stages of some methods, of a deep ensemble those of its members, and of the shallow baselines.

    Raises:
        MoebenchError: the profile has no such method.
    """
    check_run(experiment, methods)
    own = {run.method for run in experiment.runs}
    wanted = {part for name in methods for part in ([name] if name in own else experiment.methods[name].made_from)}
    runs = [experiment.address(run.stage, run.name) for run in experiment.runs if run.method in wanted]
    return [experiment.address("baselines"), *runs]


def is_default(root: Path, experiments: Sequence[Experiment]) -> bool:
    """Whether these are all experiments of the default profile: then what plain ``dvc repro`` does is done, too."""
    profile = experiments[0].profile
    return profile == config.params(root).profile and len(experiments) == len(all_experiments(root, profile))


def device_slots(devices: int) -> list[str]:
    """Values of ``CUDA_VISIBLE_DEVICES`` for stages side by side, ``devices`` GPUs each; empty without a GPU."""
    found = config.gpus()
    groups = [found[begin : begin + devices] for begin in range(0, len(found), devices)]
    return [",".join(group) for group in groups if len(group) == devices or len(groups) == 1]


def pipeline(ledger: Ledger, root: Path, profile: str, targets: list[str]) -> dict[str, Work]:
    """Return address → work of the targets and of everything they need, the first seed's runs before the next one's.

    Raises:
        MoebenchError: the pipeline has no such target.
    """
    needed = list(targets)
    for address in needed:  # grows while it is walked
        if address not in ledger.stages:
            raise MoebenchError(f"{address.replace(':', ': has no stage ')}")
        needed += sorted(ledger.needs[address] - set(needed))
    works = []
    for address in dict.fromkeys(needed):
        stage = ledger.stages[address]
        output = Path(stage.outs[0].fs_path) if stage.outs else root
        paper = Path(address).parts[1] if len(Path(address).parts) > 1 else ""
        log = root / "runs" / profile / paper / "logs" / f"{stage.name}.log"
        works.append(Work(address, str(stage.cmd), output, log, set(ledger.needs[address])))
    return {work.address: work for work in sorted(works, key=lambda work: (work.seed, work.address))}


@dataclass
class Pool:
    """Runs stages as soon as what they need is done, at most ``jobs`` at a time; after a failure it starts no further ones."""

    root: Path
    ledger: Ledger
    waiting: dict[str, Work]
    jobs: int
    slots: list[str]
    forced: set[str]
    console: Console
    main: warm.Main | None
    total: int
    running: list[Work] = field(default_factory=list)
    failed: list[Work] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    ran: int = 0
    clock: Clock = field(default_factory=Clock)

    def run(self) -> None:
        """Run until nothing is left, or nothing more can be started."""
        drawn = 0.0
        with Display(self.console, self.total) as display:
            try:
                while self.running or (self.waiting and not self.failed):
                    if not self.failed:
                        self._start_the_ready(display)
                    if time.monotonic() - drawn > DRAW_EVERY:
                        display.show(self)
                        drawn = time.monotonic()
                    if self.running:
                        time.sleep(LOOK_EVERY)
                    for work in [work for work in self.running if work.process and work.process.exitcode is not None]:
                        self._finish(work, display)
            finally:
                self._stop()

    @property
    def time_left(self) -> str:
        """The estimate in words; empty while too little is known, and when nothing is left."""
        left = self.clock.left(list(self.waiting.values()), self.running, self.jobs)
        return f"about {duration(left)} left" if left else ""

    def _start_the_ready(self, display: Display) -> None:
        """Start ready stages while there is room; those that are up to date are done at once, which may make others ready."""
        looked = -1
        while looked != len(self.done):
            looked = len(self.done)
            for address, work in list(self.waiting.items()):
                if len(self.running) == self.jobs:
                    return
                if work.waits_for <= self.done:
                    del self.waiting[address]
                    if address not in self.forced and not self.ledger.changed(address):
                        self.done.add(address)
                    elif self.ledger.begin(address, address in self.forced):
                        self._start(work)
                    else:
                        self._count(work, display, "restored from the cache")

    def _start(self, work: Work) -> None:
        work.slot = min(set(range(self.jobs)) - {other.slot for other in self.running})
        devices = {"CUDA_VISIBLE_DEVICES": self.slots[work.slot % len(self.slots)]} if self.slots else {}
        work.began, work.starts = time.monotonic(), work.starts + 1
        work.process = warm.start(work.command, self.root, work.log, devices, self.main)
        self.running.append(work)

    def _finish(self, work: Work, display: Display) -> None:
        assert work.process is not None
        self.running.remove(work)
        if work.process.exitcode == LOST and work.starts < MOST_STARTS:
            _signal(work.process, signal.SIGKILL)
            self.ledger.release(work.address)
            work.process = None
            self.waiting[work.address] = work
            display.say(self, f"{work.title} was lost with the process that it was forked from, and starts again")
        elif work.process.exitcode:
            self.failed.append(work)
            self.ledger.release(work.address)
            display.say(self, f"{work.title} failed ({duration(time.monotonic() - work.began)})")
        else:
            self.ledger.finish(work.address)
            self.clock.took[work.kind].append(time.monotonic() - work.began)
            self._count(work, display, f"done ({duration(time.monotonic() - work.began)})")

    def _count(self, work: Work, display: Display, how: str) -> None:
        self.done.add(work.address)
        self.ran += 1
        display.say(self, f"{work.title} {how}")

    def _stop(self) -> None:
        """End the stages that still run: ask them to, and after a while or at a second interrupt kill them."""
        running = [work.process for work in self.running if work.process]
        try:
            for process in running:
                _signal(process, signal.SIGINT)
            end = time.monotonic() + GRACE
            for process in running:
                process.join(max(end - time.monotonic(), 0))
        finally:
            for process in running:
                _signal(process, signal.SIGKILL)
            for work in self.running:
                if work.process and work.process.exitcode == 0:  # it was about to end anyway
                    self.ledger.finish(work.address)


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
                self.tasks[work.address] = self.bars.add_task(work.title, total=None, note="")
            share, loss = work.progress()
            note = ", ".join(filter(None, (duration(time.monotonic() - work.began), loss)))
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


def _signal(process: ForkServerProcess, number: signal.Signals) -> None:
    """Send a signal to a stage and all that it started."""
    if process.pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
