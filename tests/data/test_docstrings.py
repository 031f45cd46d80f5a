"""Built-in English: prose alone, the pinned packages alone, held-out text that no training text repeats."""

import re
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from moebench.data import docstrings
from moebench.data.docstrings import PACKAGES, PYTHONS, TEST, VALIDATION, prose, split_of
from moebench.errors import MoebenchError

ROOT = Path(__file__).parents[2]
SMALL = ("click", "imageio", "prompt-toolkit")
"""One package of each split, quickly read."""

NUMPYDOC = """Return the mean of the values, weighted by how often they occur.

    The mean is taken along the *first* axis, see :func:`~numpy.mean` and `the manual <https://example.org>`_ [1]_ .

    .. versionadded:: 1.2
        Earlier there was none at all here.

    .. note:: Values that are not numbers
        are left out of the mean.

    Parameters
    ----------
    values : array_like, shape (n, m)
        The values whose mean is wanted,
        on two lines.
    axis, other : {int, None}, optional
        Along which axis to go. See ``where`` below.

    Returns
    -------
    mean : ndarray

    ====  =====
    Name  Value
    ====  =====

    - The first point of a list that says something.
    - The second point, which says something else.

    Examples
    --------
    This is computed as follows::

        x = mean([1, 2, 3]) and this is not a sentence of any sort

    And afterwards the text goes on as before.

    >>> mean([1, 2, 3])
    2 is what comes out of this one here

    .. math:: a = b + c

    The formula $a = b$ belongs to no sentence of prose.
    """
GOOGLE = """Compute a thing from two others.

    Args:
        first (int, optional): The first of the two things that
            are needed here.
        second: The second of the two things that are needed.

    Returns:
        dict[str, int]: What has been computed from the two.

    ```python
    this is code and should not be kept at all
    ```

    :param third: The third thing, which is not needed at all.
    :type third: a type which is not to be kept at all
    """


def test_prose_is_kept_and_nothing_else():
    assert prose(NUMPYDOC) == [
        "Return the mean of the values, weighted by how often they occur.",
        "The mean is taken along the first axis, see numpy.mean and the manual .",
        "Values that are not numbers are left out of the mean.",
        "The values whose mean is wanted, on two lines.",
        "Along which axis to go. See where below.",
        "The first point of a list that says something.",
        "The second point, which says something else.",
        "And afterwards the text goes on as before.",
    ]
    assert prose(GOOGLE) == [
        "Compute a thing from two others.",
        "The first of the two things that are needed here.",
        "The second of the two things that are needed.",
        "What has been computed from the two.",
        "The third thing, which is not needed at all.",
    ]


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "\n",
        ">>> f()\n1",
        "int or None",
        "https://example.org/a/b is where all of it is found",
        "x = y + z if a < b else c",
        "A %(name)s of the sort",
    ],
)
def test_what_is_no_prose_gives_nothing(docstring):
    assert prose(docstring) == []


def test_the_pins_are_those_of_the_lock_file():
    lock = dict(re.findall(r"^([\w.\-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {name: version for name, (version, _) in PACKAGES.items()} == {name: lock[name] for name in PACKAGES}
    assert "torch" not in PACKAGES
    assert PACKAGES.keys() >= VALIDATION | TEST
    assert not VALIDATION & TEST
    assert all(
        re.fullmatch("[0-9a-f]{64}", digest)
        for digest in [docstrings.REVISION, *PYTHONS.values(), *(digest for _, digest in PACKAGES.values())]
    )


def test_files_of_others_of_tests_and_of_builds_are_not_read():
    names = [
        *("a/b.py", "a/contest.py", "a/latest/x.py"),  # read
        *("a/tests/b.py", "a/test_b.py", "a/_vendor/b.py", "a/_vendored/b.py", "a/externals/b.py", "a/version.py", "a/_version.py"),
        *(
            "a/__config__.py",
            "a/_sysconfigdata__linux_.py",
            "config-3.11-x/b.py",
            "test/b.py",
            "../../bin/b.py",
            "a/b.pyi",
            "a/conftest.py",
        ),
    ]
    assert [name for name, _ in docstrings._kept((name, Path(name)) for name in names)] == ["a/b.py", "a/contest.py", "a/latest/x.py"]
    for package in SMALL:
        assert all(path.is_file() for _, path in docstrings._package_files(package))


@pytest.fixture
def few(monkeypatch):
    """Only the small packages, and no standard library."""
    monkeypatch.setattr(docstrings, "PACKAGES", {name: PACKAGES[name] for name in SMALL})
    monkeypatch.setattr(docstrings, "_python_files", list)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    width = min(8, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def test_texts_are_pinned_documents_without_copies(few):
    found = list(docstrings.texts())
    assert [split_of(package) for package in dict.fromkeys(text.package for text in found)] == ["test", "validation", "train"]
    assert all(len(text.text.split()) >= 20 for text in found)
    seen: set[tuple[str, ...]] = set()
    for text in found:
        for paragraph in text.text.split("\n"):
            own = shingles(paragraph)
            assert len(own & seen) <= 0.5 * len(own)
            seen |= own


def test_a_changed_package_is_refused(few, monkeypatch):
    version, digest = PACKAGES["imageio"]
    monkeypatch.setitem(docstrings.PACKAGES, "imageio", (version, "0" * 64))
    with pytest.raises(
        MoebenchError, match=f"documentation strings of imageio {version} have SHA-256 {digest}, not 000.*imageio=={version}"
    ):
        next(docstrings.texts())
    monkeypatch.setitem(docstrings.PACKAGES, "imageio", ("0.1", digest))
    with pytest.raises(MoebenchError, match=r"need imageio==0\.1, installed is"):
        next(docstrings.texts())
    monkeypatch.setattr(docstrings, "PACKAGES", {"no-such-package": ("0.1", digest)})
    with pytest.raises(MoebenchError, match=r"need the package no-such-package==0\.1, which is not installed"):
        next(docstrings.texts())


def test_another_python_has_another_revision(monkeypatch):
    monkeypatch.setattr(docstrings, "PYTHONS", {"3.11.0": "f" * 64})
    other = docstrings.revision.__wrapped__()
    assert other == f"{docstrings.REVISION}-python-{docstrings.platform.python_version()}-{docstrings.python_digest()[:16]}"
    monkeypatch.setattr(docstrings, "PYTHONS", {docstrings.platform.python_version(): docstrings.python_digest()})
    assert docstrings.revision.__wrapped__() == docstrings.REVISION


@pytest.mark.slow
def test_all_packages_give_the_pinned_megabytes_and_hold_out_a_twentieth_each():
    found = list(docstrings.texts())
    if docstrings.revision() == docstrings.REVISION:  # the standard library is a pinned one
        assert docstrings.digest(found) == docstrings.REVISION
    sizes: Counter[str] = Counter()
    held: set[tuple[str, ...]] = set()
    for text in found:
        split = split_of(text.package)
        sizes[split] += len(text.text.encode())
        if split == "train":
            for paragraph in text.text.split("\n"):
                own = shingles(paragraph)
                assert len(own & held) <= 0.5 * len(own)
        else:
            held |= shingles(text.text)
    total = sum(sizes.values())
    assert 7e6 < total < 9e6
    assert 0.04 < sizes["validation"] / total < 0.07
    assert 0.04 < sizes["test"] / total < 0.07


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_package_has_its_pinned_text(package):
    assert metadata.version(package) == PACKAGES[package][0]
    assert docstrings.package_digest(package) == PACKAGES[package][1]
