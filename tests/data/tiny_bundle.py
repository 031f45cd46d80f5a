"""Writes a tiny file in the format of the bundled encoder: 2 layers, width 64, 200 pieces, random weights."""

import string
import struct
from pathlib import Path

import numpy as np

HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES = 64, 2, 4, 128, 210, 32, 2
MARK = "\u2581"
WORDS = ["the", "cat", "sat", "on", "mat", "hello", "world", "fin", "fi", "ne", "日本", "語", "é"]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", MARK, *string.ascii_letters, *string.digits, *".,!?'", *WORDS, *(MARK + word for word in WORDS)]
PIECES += [f"filler{i}" for i in range(199 - len(PIECES))] + ["<mask>"]
SCORES = [0.0] * 4 + [-3.0 if len(piece) > 1 else -9.0 - i / 100 for i, piece in enumerate(PIECES[4:-1])] + [0.0]
EVERY_TEXT = [(one + other).replace(MARK, " ") for one in PIECES[4:-1] for other in PIECES[4:-1]]
"""Uses every piece that a best segmentation can use."""
NORMALISATION = {1: "", 9: " ", 10: " ", 0xA0: " ", 0x2581: " ", 0x3000: " ", 0xFFFD: " ", 0xFB01: "fi", 0x33A5: "m3", 0xFDFA: "a b"}
NORMALISATION |= {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}


def shapes() -> dict[str, tuple[int, ...]]:
    square, vector = (HIDDEN, HIDDEN), (HIDDEN,)
    every: dict[str, tuple[int, ...]] = {"emb.word": (ROWS, HIDDEN), "emb.pos": (POSITIONS, HIDDEN), "emb.type": (TYPES, HIDDEN)}
    every |= {"emb.ln.w": vector, "emb.ln.b": vector}
    for layer in range(LAYERS):
        ours = {"q.w": square, "q.b": vector, "k.w": square, "k.b": vector, "v.w": square, "v.b": vector, "ao.w": square, "ao.b": vector}
        ours |= {"aln.w": vector, "aln.b": vector, "fi.w": (INNER, HIDDEN), "fi.b": (INNER,), "fo.w": (HIDDEN, INNER), "fo.b": vector}
        every |= {f"l{layer}.{name}": shape for name, shape in (ours | {"oln.w": vector, "oln.b": vector}).items()}
    return every


def write_bundle(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file; returns the tensors it holds, computed one element at a time."""
    random = np.random.default_rng(seed)
    directory, data, expected = [], [], {}
    for name, shape in shapes().items():
        size = int(np.prod(shape))
        quantised = name == "emb.word" or (name.endswith(".w") and "ln." not in name)
        if quantised:
            raw, values = b"", []
            for _ in range(size // 32):
                scale = np.float16(random.uniform(0.001, 0.02))
                halves = [int(half) for half in random.integers(0, 16, 32)]
                raw += scale.tobytes() + bytes(halves[j] | halves[j + 16] << 4 for j in range(16))
                values += [(half - 8) * float(scale) for half in halves]
            expected[name] = np.array(values, np.float32).reshape(shape)
        else:
            ones = name.endswith("ln.w")
            expected[name] = (ones + random.normal(0, 0.02, shape)).astype(np.float32)
            raw = expected[name].astype("<f4").tobytes()
        directory.append((name, int(quantised), size, len(raw)))
        data.append(raw)

    text = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, text)])
    head = struct.pack("<4sI7ifi", b"E5S1", 1, HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(ends[-1]))
    head += ends.astype("<u4").tobytes() + np.array(SCORES, "<f4").tobytes() + b"".join(text)
    entries = b"".join(struct.pack(f"<IB{len(to)}I", code, len(to), *map(ord, to)) for code, to in sorted(NORMALISATION.items()))
    head += struct.pack("<iI", len(NORMALISATION), len(entries)) + entries
    start = len(head) + 4 + sum(2 + len(name) + 21 for name, *_ in directory)
    offset = start + (padding := -start % 64)
    head += struct.pack("<i", len(directory))
    for name, kind, size, length in directory:
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, size, offset, length)
        offset += length
    path.write_bytes(head + b"\0" * padding + b"".join(data))
    return expected
