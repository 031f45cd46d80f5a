"""Nothing is ever half-written, and every failure names its file."""

import json
import subprocess
import sys

import pytest

from moebench.errors import MoebenchError
from moebench.files import atomic_write, read_json, read_jsonl, read_object, sha256, write_json, write_jsonl

FULL = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from moebench.errors import MoebenchError
from moebench.files import write_text
try:
    write_text(Path(sys.argv[1]), "new " * 1000)
except MoebenchError as error:
    sys.exit(str(error))
"""


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"b": [1, "é"], "a": None})
    assert read_json(tmp_path / "deep" / "a.json") == {"a": None, "b": [1, "é"]}
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8").index('"a"') < 10  # keys are sorted
    assert write_jsonl(tmp_path / "a.jsonl", [{"x": 1}, {"y": "\u2028"}]) == 2
    assert read_jsonl(tmp_path / "a.jsonl") == [{"x": 1}, {"y": "\u2028"}]


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_write(path) as handle:
            handle.write("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_no_room_left_is_reported_with_the_file_and_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{path}: cannot be written: File too large; nothing was changed there"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("read", [read_json, read_jsonl, sha256])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(MoebenchError, match=r"gone\.json: cannot be read"):
        read(tmp_path / "gone.json")


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(MoebenchError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": 1}) + '\n{"a"')
    with pytest.raises(MoebenchError, match=r"a\.jsonl:2: not valid JSON"):
        read_jsonl(tmp_path / "a.jsonl")


def test_what_went_wrong_is_said_where_nothing_can_be_deleted_either(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MoebenchError, match=r"file/a\.json: cannot be written: "):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_of_another_shape_is_named(tmp_path):
    for text, message in (
        ("[]", "should be a JSON object, 'a' in it of type int"),
        ('{"a": "x"}', "'a' in it of type int"),
        ("[" * 10**5, "JSON"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(MoebenchError, match=rf"a\.json: .*{message}"):
            read_object(tmp_path / "a.json", a=int)
