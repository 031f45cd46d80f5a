"""Sparse mixture of experts: hands the names on. Router and layer files are imported by name only, see `build_router`."""

from moebench.moe.capacity import queue_position
from moebench.moe.contract import Router, RouterInputs, Routing
from moebench.moe.dispatch import dispatch
from moebench.moe.experts import FactorisedExperts, FeedForwardExperts, ResidualExperts, SwiGLUExperts
from moebench.moe.grouped import grouped_linear
from moebench.moe.layer import Aux, MoELayer, SparseLayer
from moebench.moe.losses import load_balance, router_z, squared_variation
from moebench.moe.registry import build_layer, build_router, layer_names, router_names

__all__ = [
    "Aux",
    "FactorisedExperts",
    "FeedForwardExperts",
    "MoELayer",
    "ResidualExperts",
    "Router",
    "RouterInputs",
    "Routing",
    "SparseLayer",
    "SwiGLUExperts",
    "build_layer",
    "build_router",
    "dispatch",
    "grouped_linear",
    "layer_names",
    "load_balance",
    "queue_position",
    "router_names",
    "router_z",
    "squared_variation",
]
