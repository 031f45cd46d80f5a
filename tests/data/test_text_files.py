"""Folders of plain text: documents by unit and language, splits that stay, no copies, errors that name the line."""

import os
from pathlib import Path

import pytest

from moebench.data.text_files import TextFiles
from moebench.errors import MoebenchError

SPLITS = ("train", "validation", "test")
REAL = os.environ.get("MOEBENCH_FOLDER")


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def everything(files: TextFiles) -> list[tuple[str, str]]:
    return [document for split in SPLITS for document in files.documents(split)]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one  two\nthree\n\n\nfour", "five"]),
        ("block", ["one  two\nthree", "four", "five"]),
        ("line", ["one  two", "three", "four", "five"]),
    ],
)
def test_a_document_is_a_file_a_block_or_a_line(tmp_path, unit, expected):
    write(tmp_path / "a.txt", "\n\n one  two\t\r\nthree\n\n \nfour\n\n")
    write(tmp_path / "deep/er/b.txt", "five")
    assert sorted(everything(TextFiles(tmp_path, unit))) == sorted(("en", text) for text in expected)


def test_the_folder_directly_below_gives_the_language(tmp_path):
    for name in ("de/x.txt", "swa/deep/x.txt", "x.txt", "corpus/fr/x.txt"):
        write(tmp_path / name, f"text of {name}")
    write(tmp_path / "de/.hidden.txt", "no")
    write(tmp_path / ".git/x.txt", "no")
    write(tmp_path / "de/readme.md", "no")
    files = TextFiles(tmp_path, language="xx")
    assert files.languages == ("de", "swa", "xx")
    found = {text.removeprefix("text of "): language for language, text in everything(files)}
    assert found == {"de/x.txt": "de", "swa/deep/x.txt": "swa", "x.txt": "xx", "corpus/fr/x.txt": "xx"}
    assert list(files.files()) == ["corpus/fr/x.txt", "de/x.txt", "swa/deep/x.txt", "x.txt"]


def test_a_documents_split_is_its_own_and_copies_are_left_out(tmp_path):
    lines = [f"Document number {i}." for i in range(2000)]
    write(tmp_path / "a.txt", "\n".join(lines))
    before = {split: [text for _, text in TextFiles(tmp_path, "line").documents(split)] for split in SPLITS}
    assert sorted(text for texts in before.values() for text in texts) == sorted(lines)
    assert 60 < len(before["validation"]) < 140
    assert 60 < len(before["test"]) < 140

    write(tmp_path / "0.txt", "\n".join(["Another document."] + [f"  document   NUMBER {i}.  " for i in range(0, 2000, 2)]))
    files = TextFiles(tmp_path, "line")
    for split in SPLITS:
        after = [" ".join(text.casefold().split()) for _, text in files.documents(split)]
        assert len(after) == len(set(after))
        assert set(after) - {"another document."} == {text.casefold() for text in before[split]}
    assert [report.split(":")[0] for report in files.reports()] == ["a.txt"] * 3
    assert sum(int(report.split()[1]) for report in files.reports()) == 1000


def test_the_revision_names_content_names_and_unit(tmp_path):
    write(tmp_path / "de/a.txt", "text")
    revisions = {TextFiles(tmp_path, "line").revision, TextFiles(tmp_path, "block").revision}
    write(tmp_path / "de/a.txt", "text 2")
    revisions.add(TextFiles(tmp_path, "line").revision)
    (tmp_path / "de/a.txt").rename(tmp_path / "de/b.txt")
    revisions.add(TextFiles(tmp_path, "line").revision)
    (tmp_path / "de").rename(tmp_path / "fr")
    revisions.add(TextFiles(tmp_path, "line").revision)
    assert len(revisions) == 5
    assert TextFiles(tmp_path, "line").revision in revisions


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"good\nba\xffd\n", r"a\.txt:2: .*UTF-8"), (b"good\n\nb\x00d\n", r"a\.txt:3: .*NUL"), (b"", r"a\.txt: is empty")],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path, content, message):
    write(tmp_path / "a.txt", content)
    with pytest.raises(MoebenchError, match=message):
        everything(TextFiles(tmp_path))


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MoebenchError, match="absent: no such folder or file"):
        TextFiles(tmp_path / "absent")
    with pytest.raises(MoebenchError, match=r"the folder holds no file \*\.txt"):
        TextFiles(tmp_path)
    with pytest.raises(MoebenchError, match=r"unit 'lines' is not known \(did you mean 'line'\?\)"):
        TextFiles(tmp_path, "lines")


@pytest.mark.skipif(not REAL or not (Path(REAL) / "ntrex").is_dir(), reason="no NTREX below MOEBENCH_FOLDER")
def test_a_real_file_with_a_document_a_line_is_read(tmp_path):
    path = next((Path(REAL or "") / "ntrex").glob("*src.eng.txt"))
    files = TextFiles(path, "line")
    found = [text for _, text in everything(files)]
    lines = {" ".join(line.casefold().split()) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()}
    assert len(found) == len(lines) > 1900
    assert list(files.files()) == [path.name]
