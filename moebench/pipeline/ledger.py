"""What DVC knows of an experiment's stages, asked and told by one process: what has to run, and what was made.

DVC's own ``repro`` reads and writes the whole lock file for every stage, a second and more of a long one. Here a finished stage is one line
of a journal, ``runs/<profile>/<paper>/finished.jsonl``, at once; the lock file is written for many stages together, as a whole, beside and
renamed. If this process is killed, the next one takes the journal over.

DVC by itself truncates and refills the file. Where a kill has left it cut, the copy beside the journal takes its place; what that does not
know yet, the folders of the training runs know (`moebench.training.trainer.is_finished`). So what is finished is never forgotten.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from moebench.config import BaseLoader
from moebench.errors import MoebenchError
from moebench.experiment import Experiment
from moebench.files import write_json, write_text
from moebench.pipeline.guard import uninterrupted

SHARE = 0.05
"""At most this share of the time goes into writing lock files before the end."""


class Ledger:
    """DVC's record of the stages of some experiments, for as long as one process works at them.

    Attributes:
        repo: DVC's repository.
        stages: address → DVC's stage.
        needs: address → addresses of the stages whose outputs it reads.
        extra: addresses of the stages of the root's ``dvc.yaml``, if they take part.
        mended: lock files that were damaged.
    """

    def __init__(self, root: Path, experiments: Iterable[Experiment], default: bool = False):
        from dvc.repo import Repo
        from dvc.repo.graph import build_graph

        logging.getLogger("dvc").setLevel(logging.ERROR)
        self.root = root
        self.journals: dict[Path, Path] = {
            experiment.pipeline / "dvc.lock": experiment.runs_folder / "finished.jsonl" for experiment in experiments
        }
        if default:
            self.journals[root / "dvc.lock"] = root / "runs" / "finished.jsonl"
        self.waiting: dict[Path, dict[str, Any]] = defaultdict(dict)  # lock file → name of a stage → what it says
        self.held: dict[str, contextlib.ExitStack] = {}
        self.written, self.took = time.monotonic(), 0.0
        self.repo = Repo(str(root), _wait_for_lock=True)
        with self.repo.lock:
            _forget_the_dead(Path(self.repo.tmp_dir) / "rwlock")
        self.mended = [lock for lock, journal in self.journals.items() if _mend(lock, journal.with_name("dvc.lock"))]
        for lock, journal in self.journals.items():
            self.waiting[lock] |= _journal(journal)
        self.write()
        files = [lock.with_name("dvc.yaml") for lock in self.journals]
        loaded = [stage for file in files for stage in self.repo.stage.load_all(str(file))]
        self.stages: dict[str, Any] = {self._address(stage): stage for stage in loaded}
        self.extra = [address for address in self.stages if address.startswith("dvc.yaml:")]
        graph = build_graph(loaded)  # a stage points at those it needs
        self.needs = {address: {self._address(other) for other in graph.successors(stage)} for address, stage in self.stages.items()}

    def _address(self, stage: Any) -> str:
        return f"{Path(stage.path).relative_to(self.root).as_posix()}:{stage.name}"

    def close(self) -> None:
        """Write the lock files and let go."""
        try:
            for address in list(self.held):
                self.release(address)
            self.write()
        finally:
            self.repo.close()

    @uninterrupted()
    def changed(self, address: str) -> bool:
        """Whether a stage has to run."""
        with self.repo.lock:
            return bool(self.stages[address].changed())

    @uninterrupted()
    def begin(self, address: str, force: bool = False) -> bool:
        """Get a stage ready to run, as ``dvc repro`` does; False: it need not, what it makes was in DVC's cache (not with ``force``).

        Its paths are locked, so that no other DVC works at them, and what it made before is removed unless it persists.

        Raises:
            MoebenchError: another DVC works at these paths.
        """
        from dvc.lock import LockError
        from dvc.rwlock import rwlock
        from dvc.stage.cache import RunCacheNotFoundError

        stage, tmp = self.stages[address], self.repo.tmp_dir
        reads, writes = [dep.fs_path for dep in stage.deps if dep.fs_path], [out.fs_path for out in stage.outs]
        held = self.held[address] = contextlib.ExitStack()
        with self.repo.lock:
            try:
                held.enter_context(rwlock(tmp, self.repo.fs, " ".join(sys.argv), reads, writes, False))
            except LockError as error:
                del self.held[address]
                raise MoebenchError(f"{address}: {error}") from error
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                if force:
                    return True
                self.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return True
            self._record(address)
        self.release(address)
        return False

    @uninterrupted()
    def finish(self, address: str) -> None:
        """Record what a stage has made."""
        with self.repo.lock:
            self._record(address)
        self.release(address)

    @uninterrupted()
    def release(self, address: str) -> None:
        """Unlock the paths of a stage, be it finished or not."""
        if held := self.held.pop(address, None):
            held.close()

    def _record(self, address: str) -> None:
        from dvc.stage.serialize import to_single_stage_lockfile

        stage = self.stages[address]
        uncached = any(not out.use_cache for out in stage.outs)
        stage.save(run_cache=not uncached)
        stage.commit()
        lock = Path(stage.path).with_name("dvc.lock")
        entry = json.loads(json.dumps(to_single_stage_lockfile(stage)))
        self.waiting[lock][stage.name] = entry
        journal = self.journals[lock]
        journal.parent.mkdir(parents=True, exist_ok=True)
        with open(journal, "a", encoding="utf-8") as file:
            file.write(json.dumps({stage.name: entry}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if (time.monotonic() - self.written) * SHARE > self.took:
            self.write()

    def write(self) -> None:
        """Bring the lock files up to date; each is written beside and renamed, then its journal removed."""
        began = time.monotonic()
        for lock, entries in self.waiting.items():
            if entries:
                found = _whole(lock) or {}
                content = found | {"schema": "2.0", "stages": found.get("stages", {}) | entries}
                text = yaml.dump(content, Dumper=_DUMPER, sort_keys=False, default_flow_style=False, width=1000)
                write_text(lock, text)
                write_text(self.journals[lock].with_name("dvc.lock"), text)
                entries.clear()
            self.journals[lock].unlink(missing_ok=True)
        self.written = time.monotonic()
        self.took = self.written - began


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _whole(lock: Path) -> dict[str, Any] | None:
    """The content of a lock file; none where it is not there, or damaged."""
    try:
        found = yaml.load(lock.read_text(encoding="utf-8"), Loader=BaseLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    stages = found.get("stages") if isinstance(found, dict) and found.get("schema") == "2.0" else None
    whole = isinstance(stages, dict) and all(isinstance(one, dict) and isinstance(one.get("cmd"), str) for one in stages.values())
    return found if whole else None


def _mend(lock: Path, copy: Path) -> bool:
    """Put the kept copy, or nothing, in the place of a damaged lock file; returns whether it was damaged."""
    if not lock.is_file() or _whole(lock) is not None:
        return False
    if _whole(copy) is not None:
        write_text(lock, copy.read_text(encoding="utf-8"))
    else:
        lock.unlink()
    return True


def _journal(path: Path) -> dict[str, Any]:
    """What a killed process had finished and not yet written into the lock file; a line that it did not finish is left out."""
    entries: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entries |= json.loads(line)
    return entries


def _forget_the_dead(locks: Path) -> None:
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
        try:
            held = json.loads(locks.read_text(encoding="utf-8"))
        except ValueError:  # whoever was killed was writing it
            locks.unlink()
            return
        held["write"] = {path: holder for path, holder in held.get("write", {}).items() if alive(holder)}
        held["read"] = {path: [holder for holder in holders if alive(holder)] for path, holders in held.get("read", {}).items()}
        write_json(locks, held)
