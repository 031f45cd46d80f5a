"""Routers are found by name and imported only then."""

import subprocess
import sys

import pytest

from moebench import config
from moebench.moe import Router, build_router, router_names
from moebench.moe.experts import FactorisedExperts, ResidualExperts, SwiGLUExperts
from moebench.moe.registry import build_layer


def test_importing_the_package_imports_no_router_file():
    code = "import sys, moebench.moe; print([name for name in sys.modules if name.startswith('moebench.moe.routers.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_names_are_the_files():
    assert {"dot", "xmoe"} <= set(router_names())
    assert router_names() == config.routers()


@pytest.mark.parametrize("name", router_names())
def test_builds_with_the_defaults_that_configuration_reads_from_the_source(name):
    required = {"low": 3} if name == "norm" else {}
    router = build_router(name, 8, 4, config.part("router", name).options(**required).model_dump(), vocabulary=50)
    assert isinstance(router, Router)
    assert (router.d_model, router.experts) == (8, 4)


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"unknown router 'dott'; routers are: .*dot.*xmoe"):
        build_router("dott", 8, 4, {})


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="jitter"):
        build_router("dot", 8, 4, {"jitter": 0.1})


@pytest.mark.parametrize("name", config.layers()[2:])
def test_layers_refuse_other_experts_than_they_work_with(name):
    part = config.part("layer", name)
    for kind, sizes in ((ResidualExperts, (4, 8, 6, 1)), (SwiGLUExperts, (4, 8, 6)), (FactorisedExperts, (4, 8, 2, 6))):
        count = 1 if name == "dense" else 4
        experts = kind(count, *sizes[1:])
        if part.works_with and kind.__name__ not in part.works_with:
            with pytest.raises(ValueError, match="experts should be"):
                build_layer(name, 8, experts, {})
        elif part.works_with != ("FactorisedExperts", "SwiGLUExperts") or kind is FactorisedExperts:
            assert build_layer(name, 8, experts, {}).experts is experts
