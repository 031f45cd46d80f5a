"""Configuration and plan of the papers on images: what is refused, with which message, and which stages there are."""

import json

import pytest
import yaml

from moebench import experiment
from moebench.errors import MoebenchError
from moebench.pipeline.plan import planned
from moebench.pipeline.select import listed
from moebench.protocols.vision.config import members_of

LOSSES = {"importance": 0.1, "load": 0.1, "balance": 0}
SETTING = {
    "seeds": [3, 5, 8],
    "baseline": "vmoe",
    "vision": {"image": 28, "patch": 14, "channels": 1, "layers": 2, "width": 8, "heads": 2, "inner": 8},
    "experts": 4,
    "pretrain": {"steps": 2, "batch": 4, "rate": 0.001},
    "finetune": {"steps": 2, "batch": 4, "rate": 0.001},
}
METHODS = {
    "vit": {"label": "ViT", "variant": "dense"},
    "vmoe": {"label": "V-MoE", "variant": "vmoe", "losses": LOSSES},
    "e3": {"label": "E3", "variant": "e3", "members": 2, "losses": LOSSES, "pretrain_as": "vmoe"},
    "deep": {"label": "DE", "variant": "deep", "of": {"vit": [0, 1]}},
}


@pytest.fixture
def write(tmp_path, write_paper):
    def write(methods=METHODS, setting=SETTING):
        return write_paper(tmp_path, setting, methods, profile="smoke")

    return write


def test_stages_are_those_of_methods_with_runs_and_pretraining_is_shared(write):
    paper = write()
    paper.check()
    names = yaml.safe_load(listed(paper))
    assert set(names["pretrain"]) == {f"{name}-{seed}" for name in ("vit", "vmoe") for seed in (3, 5, 8)}
    assert set(names["finetune"]) == {f"{name}-downstream-{seed}" for name in ("vit", "vmoe", "e3") for seed in (3, 5, 8)}
    assert names["pretrain"]["vmoe-5"] == {"method": "vmoe", "seed": 5, "part": "images"}
    assert names["finetune"]["e3-downstream-5"] == {"method": "e3", "set": "downstream", "seed": 5, "start": "vmoe-5", "part": "images"}
    assert (names["paper"], names["profile"]) == ("e3", "smoke")
    assert [one.protocol.name for one in experiment.experiments(paper.root, "smoke")] == ["vision"]
    with pytest.raises(MoebenchError, match="unknown profile 'paper'; profiles are: smoke"):
        experiment.experiments(paper.root, "paper")


def test_members_of_a_deep_ensemble_come_from_the_seeds_round_the_end():
    assert [members_of((3, 5, 8), seed, (0, 1)) for seed in (3, 5, 8)] == [[3, 5], [5, 8], [8, 3]]


def test_a_plan_changes_only_where_its_method_does(write):
    before = planned(write())
    changed = METHODS | {"e3": METHODS["e3"] | {"members": 4}}
    after = planned(write(changed))
    assert {name for name in before if before[name] != after[name]} == {"finetune/e3-downstream", "evaluate", "tabulate"}
    renamed = METHODS | {"vit": METHODS["vit"] | {"label": "another label"}}
    after = planned(write(renamed))
    assert {name for name in before if before[name] != after[name]} == {"tabulate"}


def test_blocks_and_group_are_in_the_plan_only_where_they_are_given(write):
    plain = planned(write())
    assert not any(f'"{key}"' in json.dumps(plain) for key in ("blocks", "group"))
    given = planned(write(setting=SETTING | {"blocks": [0], "group": 2}))
    for name in ("pretrain/vmoe", "finetune/e3-downstream", "evaluate"):
        assert '"blocks": [0]' in json.dumps(given[name])
        assert '"group": 2' in json.dumps(given[name])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"blocks": [0], "last": 1}, r"last 1 and blocks \[0\] both say where"),
        ({"blocks": [1, 0]}, r"blocks \[1, 0\] should rise"),
        ({"blocks": []}, "key 'blocks'"),
        ({"blocks": [1, 2]}, r"smoke\.yaml: key 'blocks' has the value \[1, 2\]; should be from 0 to 1, as method '\w+' has 2 blocks"),
        ({"group": 0}, "key 'group'"),
        ({"finetune": SETTING["finetune"] | {"shift": 28}}, r"smoke\.yaml: key 'finetune\.shift' has the value 28; should be below 28"),
        ({"group": 0.5}, r"key 'group' has the value 0\.5: counts images: a routing group that cuts through an image is not supported"),
    ],
)
def test_blocks_groups_and_shifts_that_make_no_sense_are_refused(write, change, complaint):
    paper = write(setting=SETTING | change)
    with pytest.raises(MoebenchError, match=complaint):
        paper.check()


def test_options_of_the_setting_override_those_of_the_method(write):
    methods = METHODS | {"e3": METHODS["e3"] | {"options": {"k": 2}}}
    assert write(methods).method("e3").options["k"] == 2
    assert write(methods, SETTING | {"options": {"e3": {"k": 1}}}).method("e3").options["k"] == 1
    paper = write(methods, SETTING | {"options": {"e3": {"kk": 1}}})
    with pytest.raises(MoebenchError, match=r"smoke\.yaml: unknown key 'options\.e3\.kk'"):
        paper.check()


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("e3", {"members": 3}, r"e3\.yaml: members 3 do not divide the 4 experts"),
        ("e3", {"pretrain_as": "vit"}, r"e3\.yaml: key 'pretrain_as' names 'vit', which should be a V-MoE"),
        ("e3", {"losses": {"importance": 1.0}}, r"e3\.yaml: key 'losses\.load' is missing"),
        ("e3", {"losses": LOSSES | {"entropi": 1}}, r"e3\.yaml: unknown key 'losses\.entropi'"),
        ("e3", {"options": {"tiled": False}}, r"e3\.yaml: key 'options\.tiled' follows from other keys"),
        ("e3", {"options": {"kk": 1}}, r"e3\.yaml: unknown key 'options\.kk'"),
        ("vit", {"members": 2}, r"vit\.yaml.*members belongs to an ensemble within one model"),
        ("vit", {"losses": {"load": 1}}, r"vit\.yaml.*options and losses belong to layers of experts"),
        ("vit", {"shape": {"width": 9}}, r"width 9 is not a multiple of heads 2"),
        ("vit", {"variant": "dens"}, r"vit\.yaml: key 'variant' has the value 'dens'"),
        ("deep", {"of": {"vitt": [0, 1]}}, r"deep\.yaml: key 'of\.vitt'.*did you mean 'vit'"),
        ("deep", {"of": {}}, r"deep\.yaml.*of is required for variant 'deep'"),
    ],
)
def test_mistakes_are_named(write, name, change, complaint):
    paper = write(METHODS | {name: METHODS[name] | change})
    with pytest.raises(MoebenchError, match=complaint):
        paper.check()
