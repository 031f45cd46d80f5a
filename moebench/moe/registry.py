"""Finds routers by name. Nothing imports a router's file but this, by name: an edit to one router concerns only its users."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moebench.moe.contract import Router


def router_names() -> list[str]:
    """Names of the routers, sorted: the files of ``moebench/moe/routers``."""
    return sorted(path.stem for path in (Path(__file__).parent / "routers").glob("*.py") if path.stem != "__init__")


def build_router(name: str, d_model: int, experts: int, options: Mapping[str, Any]) -> Router:
    """Build a router.

    Args:
        name: one of `router_names`.
        d_model: width of the tokens.
        experts: number of experts.
        options: keyword options of its class.

    Raises:
        ValueError: no such router, or options that do not go together.
        TypeError: an unknown option.
    """
    if name not in router_names():
        raise ValueError(f"unknown router {name!r}; routers are: {', '.join(router_names())}")
    module = importlib.import_module(f"moebench.moe.routers.{name}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    (router,) = (value for value in classes if issubclass(value, Router))
    return router(d_model, experts, **options)
