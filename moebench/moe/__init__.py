"""Sparse mixture of experts: hands the names on. Router files are imported by name only, see `build_router`."""

from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.dispatch import dispatch
from moebench.moe.experts import ResidualExperts
from moebench.moe.layer import Aux, MoELayer
from moebench.moe.losses import load_balance
from moebench.moe.registry import build_router, router_names

__all__ = [
    "Aux",
    "MoELayer",
    "ResidualExperts",
    "Router",
    "RouterInputs",
    "Routing",
    "build_router",
    "dispatch",
    "load_balance",
    "router_names",
]
