"""Finds routers and layers by name. Nothing imports their files but this, by name: an edit to one concerns only its users."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from moebench.moe.contract import Router
from moebench.moe.layer import SparseLayer


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.py") if path.stem != "__init__")


def _find(folder: str, name: str, base: type) -> Any:
    if name not in _names(folder):
        raise ValueError(f"unknown {folder[:-1]} {name!r}; {folder} are: {', '.join(_names(folder))}")
    module = importlib.import_module(f"moebench.moe.{folder}.{name}")
    (found,) = (
        cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__ and issubclass(cls, base)
    )
    return found


def router_names() -> list[str]:
    """Names of the routers, sorted: the files of ``moebench/moe/routers``."""
    return _names("routers")


def layer_names() -> list[str]:
    """Names of the layers without a router, sorted: the files of ``moebench/moe/layers``."""
    return _names("layers")


def build_router(name: str, d_model: int, experts: int, options: Mapping[str, Any], vocabulary: int | None = None) -> Router:
    """Build a router.

    Args:
        name: one of `router_names`.
        d_model: width of the tokens.
        experts: number of experts.
        options: keyword options of its class.
        vocabulary: number of vocabulary pieces, for the routers that look at token ids.

    Raises:
        ValueError: no such router, options that do not go together, or no vocabulary for a router that needs one.
        TypeError: an unknown option.
    """
    router = _find("routers", name, Router)
    given = dict(options)
    if "vocabulary" in inspect.signature(router).parameters:
        if vocabulary is None:
            raise ValueError(f"router {name!r} looks at token ids: the number of vocabulary pieces must be given")
        given["vocabulary"] = vocabulary
    built: Router = router(d_model, experts, **given)
    return built


def build_layer(layer: str, d_model: int, experts: nn.Module, options: Mapping[str, Any], name: str = "moe") -> SparseLayer:
    """Build a layer that has no router.

    Args:
        layer: one of `layer_names`.
        d_model: width of the tokens.
        experts: its module of experts.
        options: keyword options of its class.
        name: what errors call it.

    Raises:
        ValueError: no such layer, or options that do not go together.
        TypeError: an unknown option.
    """
    built: SparseLayer = _find("layers", layer, SparseLayer)(d_model, experts, name, **options)
    return built
