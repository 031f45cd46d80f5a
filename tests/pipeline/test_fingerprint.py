"""What changes a fingerprint, and what does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moebench import protocol
from moebench.errors import MoebenchError
from moebench.pipeline.fingerprint import closure, fingerprint

TOY = {
    "__init__.py": "",
    "a.py": "from toy import b\nimport toy.folder.c as c\nimport json\n",
    "b.py": "def late():\n    from toy.folder.d import thing\n",
    "folder/__init__.py": "import toy.handed_on\n",
    "folder/c.py": "import os.path\n",
    "folder/d.py": "import toy.a\nthing = 1\n",
    "handed_on.py": "",
    "apart.py": "import toy.b\n",
}
CODE = 'def f(x):\n    """Say."""\n    return x + 1\n\n\nclass C:\n    y: int = 1\n    """What y is."""\n'


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    root = tmp_path / "toy"
    for name, text in TOY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_closure_is_what_python_imports(toy):
    found = closure(["toy.a"], toy)
    assert found == ["toy", "toy.a", "toy.b", "toy.folder", "toy.folder.c", "toy.folder.d", "toy.handed_on"]
    program = "import sys, toy.a, toy.b; toy.b.late(); print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'toy'))"
    imported = subprocess.run([sys.executable, "-c", program], cwd=toy.parent, capture_output=True, text=True, check=True).stdout.split()
    assert found == imported


def test_modules_left_out_are_not_followed(toy):
    assert closure(["toy.a"], toy, without=["toy.folder"]) == ["toy", "toy.a", "toy.b"]


def test_a_missing_or_broken_module_is_named(toy):
    with pytest.raises(MoebenchError, match=r"no module 'toy\.nothing'"):
        closure(["toy.nothing"], toy)
    (toy / "b.py").write_text("def (")
    with pytest.raises(MoebenchError, match=r"b\.py:1: not valid Python"):
        closure(["toy.a"], toy)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (CODE.replace('"""Say."""', '"""Say something\n\n    else.\n    """'), True),
        (CODE.replace('    """Say."""\n', ""), True),
        (CODE.replace("What y is", "What it is"), True),
        ("# a comment\n\n" + CODE.replace("x + 1", "(x  +  # why\n        1)"), True),
        (CODE.replace("x + 1", "x + 2"), False),
        (CODE.replace("x + 1", "x - 1"), False),
        (CODE.replace("f(x)", "f(x=None)"), False),
        (CODE.replace("y: int", "y: float"), False),
        (CODE.replace("return x + 1", "return 'x'"), False),
    ],
)
def test_only_what_the_code_does_counts(toy, text, same):
    (toy / "handed_on.py").write_text(CODE)
    before = fingerprint(["toy.a"], toy)
    (toy / "handed_on.py").write_text(text)
    assert (fingerprint(["toy.a"], toy) == before) == same


def test_code_out_of_reach_does_not_count(toy):
    before = fingerprint(["toy.a"], toy)
    (toy / "apart.py").write_text("x = 1\n")
    assert fingerprint(["toy.a"], toy) == before
    (toy / "apart.py").rename(toy / "folder" / "e.py")
    (toy / "folder" / "c.py").write_text("import os.path\nimport toy.folder.e\n")
    assert fingerprint(["toy.a"], toy) != before


def test_moved_code_counts_because_the_module_is_named(toy):
    one = fingerprint(["toy.handed_on"], toy)
    (toy / "other.py").write_text("")
    assert fingerprint(["toy.other"], toy) != one


@pytest.mark.parametrize("name", protocol.names())
def test_training_reaches_its_own_router_and_no_other_protocol(name):
    code = closure(["moebench.pipeline.train", f"moebench.protocols.{name}.pretraining", "moebench.moe.routers.xmoe"])
    assert [module for module in code if module.startswith("moebench.moe.routers.")] == ["moebench.moe.routers.xmoe"]
    assert {"moebench.moe.layer", "moebench.training.module"} <= set(code)
    others = tuple(f"moebench.protocols.{other}." for other in protocol.names() if other != name)
    configuration = ("moebench.config", "moebench.errors", f"moebench.protocols.{name}.config", f"moebench.protocols.{name}.runs")
    silent = ("moebench.pipeline.guard", "moebench.pipeline.plan", "moebench.cli", "moebench.results", "moebench.pipeline.evaluate")
    assert not any(module.startswith((*others, *silent)) or module in configuration for module in code)


@pytest.mark.parametrize("name", protocol.names())
def test_scoring_and_tables_reach_no_training(name):
    for room in ("scoring", "tables"):
        code = closure([f"moebench.protocols.{name}.{room}"])
        assert not any(module.startswith("moebench.training") for module in code)
