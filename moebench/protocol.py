"""A protocol: a kind of experiment. It is a folder of ``moebench/protocols``, found by its name and imported only when asked for.

Every protocol has the same rooms, each a file that answers one question of the pipeline (``docs/ADDING_A_PAPER.md`` walks through them):

=============  =====================================================  ==============================================================
room           what the pipeline asks                                 what it has to define
=============  =====================================================  ==============================================================
``config``     what may data, a setting and a method say?             ``Data``, ``Setting``, ``Method``, ``TASKS``, ``METRICS``
``prepare``    which data are needed, and how are they made?          ``plan``, ``prepare``, ``parts``
``baselines``  what do the data give away without understanding?      ``baselines``
``runs``       which runs are there, and what code can they reach?    ``PRETRAINED_ON``, ``runs``, ``plan``
``training``   how does a run learn and predict?                      ``job``
``scoring``    what are predictions worth?                            ``score``
``tables``     how is it shown?                                       ``FILES``, ``NOTES``, ``tables``
=============  =====================================================  ==============================================================

``config`` and ``runs`` import no torch. Protocols do not import each other.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError, nearest

FOLDER = Path(__file__).parent / "protocols"
ROOMS = ("config", "prepare", "baselines", "runs", "training", "scoring", "tables")


@dataclass(frozen=True)
class Protocol:
    """A kind of experiment; ``protocol.<room>`` is the room's module, imported when it is asked for."""

    name: str

    def module(self, room: str) -> str:
        """Full name of the module of a room."""
        return f"moebench.protocols.{self.name}.{room}"

    def __getattr__(self, room: str) -> Any:
        if room not in ROOMS:
            raise AttributeError(f"a protocol has no {room!r}")
        return importlib.import_module(self.module(room))


def names() -> list[str]:
    """Names of the protocols, sorted."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))


def find(name: str, where: Path) -> Protocol:
    """Return a protocol.

    Args:
        name: its name.
        where: the file that names it, for messages.

    Raises:
        MoebenchError: there is no such protocol, or its folder lacks a room.
    """
    if name not in names():
        raise MoebenchError(f"{where}: key 'protocol' has the value {name!r}{nearest(name, names())}; protocols are: {', '.join(names())}")
    if lacking := [room for room in ROOMS if not (FOLDER / name / f"{room}.py").is_file()]:
        raise MoebenchError(
            f"{FOLDER / name}: protocol {name!r} lacks {', '.join(f'{room}.py' for room in lacking)};"
            f" a protocol has the rooms {', '.join(ROOMS)}"
        )
    return Protocol(name)


@dataclass(frozen=True)
class Plan:
    """What a stage depends on, beside its data.

    Attributes:
        config: its resolved configuration.
        modules: the modules whose code it runs, with all that they import; what is imported by name at run time has to be named.
        without: modules, or folders of modules, that are imported and never used.
    """

    config: dict[str, Any]
    modules: list[str]
    without: list[str] = field(default_factory=list)
