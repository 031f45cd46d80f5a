"""Parsers of the original benchmark formats: pair TSV, token columns, CoNLL-U and SQuAD JSON. Each error names file and line.

A parser returns the rows and its reports: what it found odd and kept, repaired or left out, one sentence each, without the file's name.
Nothing is skipped in silence: a line is an example, or part of one, or reported, or an error. Only tabs and U+0020 separate anything: the
other spaces of Unicode (U+00A0, U+3000, ...) occur inside tokens and texts and belong to them.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moebench.errors import MoebenchError, nearest, shown

Row = dict[str, Any]

REALIGN_WINDOW = 32
"""An answer is looked for at most this many characters to either side of where the file says that it starts."""
DUMMY_FROM = 10
"""From this many labels on, one and the same valid label throughout a file counts as a dummy."""

LANGUAGE_NAMES = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}
"""How TyDiQA-GoldP calls its languages, in file names and at the beginning of question ids."""
CONLLU_COLUMNS = 10
UNIVERSAL_NER_COLUMNS = 5

_CONTROL = re.compile(r"[\x01-\x08\x0b-\x1f\x7f-\x9f]")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_PREFIX = re.compile(r"[a-z]{2,}(?:-[a-z]+)*:")
_TEXTS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("premise", "hypo"))
_SYNONYMS = {"contradictory": "contradiction"}
_RANKS = {
    "": "VERB NOUN PROPN PRON ADJ NUM ADV INTJ AUX ADP DET PART CCONJ SCONJ X PUNCT",
    "es": "VERB AUX PRON ADP DET",
    "fr": "VERB AUX PRON NOUN ADJ ADV ADP DET PART SCONJ",
    "it": "VERB AUX ADV PRON ADP DET INTJ",
}
"""Language (empty: every other) → the order in which a multiword token takes its tag from words that are equally near the root."""


class LabelsStripped(MoebenchError):
    """A file that should carry labels carries none, as the test files that XTREME's script leaves behind."""

    def __init__(self, path: Path, found: str):
        super().__init__(f"{path}: labels stripped ({found}); put the labelled original in its place")


# ---------------------------------------------------------------------------------------------------------------- text


def decode(data: bytes, path: Path, line: int = 1, offset: int = 0) -> str:
    """Decode UTF-8 without control character NUL; a byte order mark at the file's start is dropped.

    Args:
        data: the bytes.
        path: their file, for messages.
        line: number of their first line (1-based).
        offset: their first byte's offset in the file.

    Raises:
        MoebenchError: not UTF-8 (with byte offset and line), or a NUL character.
    """
    if offset == 0:
        for mark, name in ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16")):
            if data.startswith(mark):
                raise MoebenchError(f"{path}:1: not UTF-8 but, by its byte order mark, {name}; convert it to UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = line + data.count(b"\n", 0, error.start)
        byte = f"0x{data[error.start]:02x}"
        raise MoebenchError(
            f"{path}:{where}: not UTF-8 at byte offset {offset + error.start} (byte {byte}); convert it to UTF-8"
        ) from error
    if "\0" in text:
        where = line + text.count("\n", 0, text.index("\0"))
        raise MoebenchError(f"{path}:{where}: holds a NUL character; the file is damaged or not a text file")
    return text.removeprefix("\ufeff") if offset == 0 else text


def read_text(path: Path) -> str:
    r"""Read a UTF-8 file; line ends become ``\n``.

    Raises:
        MoebenchError: it cannot be read, is empty, is not UTF-8 or holds NUL.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    text = decode(data, path).replace("\r\n", "\n")
    if not text.strip():
        raise MoebenchError(f"{path}: is empty; fetch it again")
    return text


def _lines(text: str) -> list[str]:
    # Not str.splitlines: U+2028, U+0085 and the like occur inside sentences.
    return text.removesuffix("\n").split("\n")


def _controls(text: str) -> list[str]:
    found = _CONTROL.findall(text)
    if not found:
        return []
    first = text.count("\n", 0, text.index(found[0])) + 1
    return [f"line {first}: {len(found)} control characters in the file, the first is U+{ord(found[0]):04X} here; kept"]


def documents(path: Path) -> Iterator[tuple[int, str]]:
    """Stream (line number from 1, text) of a plain-text file with a document a line; blank lines carry an empty text.

    Tabs and spaces at either end are taken off; an indent of U+3000 and the like stays.

    Raises:
        MoebenchError: it cannot be read, is empty, is not UTF-8 or holds NUL.
    """
    offset = 0
    try:
        with open(path, "rb") as handle:
            for number, data in enumerate(handle, start=1):
                text = decode(data, path, number, offset)
                yield number, text.strip(" \t\r\n") if text.strip() else ""
                offset += len(data)
    except OSError as error:
        raise MoebenchError(f"{path}: cannot be read: {error.strerror or error}") from error
    if offset == 0:
        raise MoebenchError(f"{path}: is empty; a document a line is expected")


# ---------------------------------------------------------------------------------------------------------------- labels


def _check_labels(path: Path, found: Sequence[str], lines: Sequence[int], allowed: Sequence[str], what: str) -> None:
    """Tell stripped labels (all missing, or one dummy) from missing ones and from wrong ones."""
    distinct = set(found)
    if distinct == {""}:
        raise LabelsStripped(path, f"every {what} is empty")
    only = next(iter(distinct))
    if len(distinct) == 1 and len(found) >= (DUMMY_FROM if only in allowed else 2):
        raise LabelsStripped(path, f"all {len(found)} {what}s are {only!r}")
    for label, line in zip(found, lines, strict=True):
        if not label:
            raise MoebenchError(f"{path}:{line}: the {what} is missing here while other lines have one")
        if label not in allowed:
            raise MoebenchError(f"{path}:{line}: unknown {what} {label!r}{nearest(label, allowed)}; allowed: {', '.join(allowed)}")


def _check_columns(path: Path, widths: Sequence[int], lines: Sequence[int], columns: Sequence[str], what: str) -> None:
    """Every line has the named columns; if all lack just the last one, the labels are stripped."""
    expected = len(columns)
    if all(width == expected - 1 for width in widths):
        raise LabelsStripped(path, f"every line has {expected - 1} of the {expected} columns, the {what} is missing")
    for width, line in zip(widths, lines, strict=True):
        if width != expected:
            missing = f"; the {what} is missing here while other lines have one" if width == expected - 1 else ""
            raise MoebenchError(f"{path}:{line}: expected {expected} tab-separated columns ({', '.join(columns)}), found {width}{missing}")


# ---------------------------------------------------------------------------------------------------------------- pairs


def _unquote(cells: Iterable[list[str]]) -> tuple[list[list[str]], int]:
    # XTREME's script writes XNLI and PAWS-X with Python's csv module: a field that holds a quotation mark is put in marks and its own are
    # doubled. The originals have no quoting. A file is taken for quoted only if every field with a mark is of that form.
    cells = list(cells)
    marked = [cell for row in cells for cell in row if '"' in cell]
    if not all(_QUOTED.fullmatch(cell) and '""' in cell[1:-1] for cell in marked):
        return cells, 0
    return [[cell[1:-1].replace('""', '"') if '"' in cell else cell for cell in row] for row in cells], len(marked)


def pairs(path: Path, labels: Sequence[str], language: str = "") -> tuple[list[Row], list[str]]:
    """Read ``text TAB text TAB label`` (XNLI, PAWS-X), or any columns under a header that names them, as the originals have.

    A header names the texts ``sentence1`` and ``sentence2``, ``premise`` and ``hypothesis`` or ``premise`` and ``hypo``, and the label
    ``gold_label`` or ``label``; other columns are not read. Of a file of several languages (column ``language``, as in XNLI 1.0) the rows
    of ``language`` alone are. XNLI's ``contradictory`` is read as ``contradiction``.

    ``id`` is ``<file stem>:<line>``. ``group`` counts the runs of equal first texts from 0, the index of the premise in XNLI; a first text
    that comes back later keeps its first number.

    Raises:
        LabelsStripped: no line has a label, or all have the same.
        MoebenchError: wrong columns, an empty text, a missing or unknown label, no row of the language.
    """
    text = read_text(path)
    reports = _controls(text)
    cells = [line.split("\t") for line in _lines(text)]
    columns, places = _columns_of(cells[0])
    lines: Sequence[int] = range(2 if columns else 1, len(cells) + 1)
    if columns:
        cells = cells[1:]
    else:
        columns = ["first text", "second text", "label"]
    if not cells:
        raise MoebenchError(f"{path}: holds a header and no examples; fetch it again")
    _check_columns(path, [len(cell) for cell in cells], lines, columns, "label")
    if language:
        if "language" not in columns:
            raise MoebenchError(f"{path}:1: no column 'language' among {', '.join(columns)}")
        place = columns.index("language")
        lines = [line for cell, line in zip(cells, lines, strict=True) if cell[place] == language]
        cells = [cell for cell in cells if cell[place] == language]
        if not cells:
            raise MoebenchError(f"{path}: holds no row of language {language!r}")
    cells = [[cell[place] for place in places] for cell in cells]
    renamed = 0
    for cell in cells:
        if _SYNONYMS.get(cell[-1]) in labels:
            cell[-1] = _SYNONYMS[cell[-1]]
            renamed += 1
    if renamed:
        reports.append(f"{renamed} labels are spelled {', '.join(_SYNONYMS)}; read as {', '.join(_SYNONYMS.values())}")
    _check_labels(path, [cell[-1] for cell in cells], lines, labels, "label")
    cells, unquoted = _unquote(cells)
    if unquoted:
        reports.append(f"{unquoted} texts stand in CSV quotation marks; taken off")
    rows: list[Row] = []
    groups = Groups()
    stem = path.stem
    for (first, second, label), line in zip(cells, lines, strict=True):
        for name, value in (("first", first), ("second", second)):
            if not value.strip():
                raise MoebenchError(f"{path}:{line}: the {name} text is empty; complete or remove the line")
        rows.append({"id": f"{stem}:{line}", "text_a": first, "text_b": second, "label": label, "group": groups.of(first)})
    return rows, reports


def _columns_of(cells: list[str]) -> tuple[list[str], list[int]]:
    """Column names of a file whose first line is a header, none otherwise; and the places of the two texts and the label."""
    texts = next((pair for pair in _TEXTS if set(pair) <= set(cells)), None)
    if not texts:
        return [], [0, 1, 2]
    label = next((name for name in ("gold_label", "label") if name in cells), "label")
    columns = cells if label in cells else [*cells, label]
    return columns, [columns.index(name) for name in (*texts, label)]


class Groups:
    """Numbers for first texts: the run of equal texts in which one first occurs, from 0."""

    def __init__(self) -> None:
        self._run = -1
        self._last = ""
        self._first: dict[str, int] = {}

    def of(self, text: str) -> str:
        """Return the number of the next row's first text."""
        self._run += self._run < 0 or text != self._last
        self._last = text
        return str(self._first.setdefault(text, self._run))


# ---------------------------------------------------------------------------------------------------------------- tags


def sentences(path: Path, labels: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Read ``token TAB tag``, a blank line between sentences (Universal Dependencies parts of speech, PAN-X).

    Language prefixes (``en:Token``, as in the original PAN-X) are taken off, each line's own, if most tokens of the file have one.
    ``id`` is ``<file stem>:<line of the first token>``.

    IOB2 tags: an ``I-X`` that follows ``O`` or opens a sentence is kept and reported. PAN-X's published Chinese and Japanese files have
    hundreds, each after a ``#`` tagged ``O``, and conlleval and seqeval read it as a beginning. An ``I-X`` after a tag of
    another type occurs in no published file that we know and is an error.

    Raises:
        LabelsStripped: no line has a tag, or all have the same.
        MoebenchError: wrong columns, an empty token, a missing or unknown tag, an ``I-`` tag inside an entity of another type.
    """
    text = read_text(path)
    numbered = [(number, line) for number, line in enumerate(_lines(text), start=1) if line.strip(" ")]
    lines, full = [number for number, _ in numbered], [line for _, line in numbered]
    _check_columns(path, [line.count("\t") + 1 for line in full], lines, ["token", "tag"], "tag")
    # One tuple a line, of which there are millions, not one list: the garbage collector walks lists again and again.
    return _tagged(path, lines, [line.partition("\t")[::2] for line in full], labels, _controls(text))


def columns(path: Path, labels: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Read CoNLL columns: the token first, the tag last, anything between; a blank line between sentences.

    Columns are separated by tabs where every line has one, otherwise by runs of spaces and tabs. Lines ``-DOCSTART-`` are no tokens.
    Prefixes, ids and IOB2 as in `sentences`.

    Universal NER's files (https://www.universalner.org) are known by their columns: number, token, tag and two more, with comments (``#``)
    before a sentence. Its tag ``OTH`` is no part of the official annotation (Mayhew et al., arXiv 2311.09122) and is read as ``O``.

    Raises:
        LabelsStripped: lines have one column, or all the same tag.
        MoebenchError: lines of unequal width, or as `sentences`.
    """
    text = read_text(path)
    numbered = [(number, line) for number, line in enumerate(_lines(text), start=1) if line.strip(" \t")]
    first = next((line.split("\t") for _, line in numbered if not line.startswith("#")), [])
    if len(first) == UNIVERSAL_NER_COLUMNS and first[0] == "1" and first[-1] not in labels:
        return _universal_ner(path, [each for each in numbered if not each[1].startswith("#")], labels, _controls(text))
    numbered = [(number, line) for number, line in numbered if not line.startswith("-DOCSTART-")]
    if not numbered:
        raise MoebenchError(f"{path}: holds no tokens; fetch it again")
    tabs = all("\t" in line for _, line in numbered)
    cells = [line.split("\t") if tabs else re.split("[ \t]+", line.strip(" \t")) for _, line in numbered]
    lines, width = [number for number, _ in numbered], len(cells[0])
    if all(len(cell) == 1 for cell in cells):
        raise LabelsStripped(path, "every line has 1 column, the tag is missing")
    for cell, line in zip(cells, lines, strict=True):
        if len(cell) != width or width == 1:
            raise MoebenchError(
                f"{path}:{line}: expected {max(width, 2)} columns (token, ..., tag) as on line {lines[0]}, found {len(cell)}"
            )
    return _tagged(path, lines, [(cell[0], cell[-1]) for cell in cells], labels, _controls(text))


def _universal_ner(
    path: Path, numbered: Sequence[tuple[int, str]], labels: Sequence[str], reports: list[str]
) -> tuple[list[Row], list[str]]:
    cells: list[tuple[str, str]] = []
    last = due = other = 0
    for number, line in numbered:
        due = due + 1 if number == last + 1 else 1
        last = number
        found = line.split("\t")
        if len(found) != UNIVERSAL_NER_COLUMNS:
            raise MoebenchError(
                f"{path}:{number}: expected {UNIVERSAL_NER_COLUMNS} tab-separated columns (number, token, tag and two more, Universal NER),"
                f" found {len(found)}"
            )
        if found[0] != str(due):
            raise MoebenchError(f"{path}:{number}: number {found[0]!r} is out of sequence, word {due} is due")
        other += found[2][2:] == "OTH"
        cells.append((found[1], "O" if found[2][2:] == "OTH" else found[2]))
    if other:
        reports.append(f"{other} tokens are tagged OTH, which is not of the official annotation; read as O")
    return _tagged(path, [number for number, _ in numbered], cells, labels, reports)


def _tagged(
    path: Path, lines: Sequence[int], cells: Sequence[tuple[str, ...]], labels: Sequence[str], reports: list[str]
) -> tuple[list[Row], list[str]]:
    """Rows of (token, tag) cells, which stand on these lines; lines in sequence are a sentence."""
    _check_labels(path, [tag for _, tag in cells], lines, labels, "tag")
    prefixes = [match.group() if (match := _PREFIX.match(token)) else "" for token, _ in cells]
    bare = prefixes.count("")
    prefixed = 2 * bare < len(cells)  # a few tokens of any text look prefixed (``http://``), never most
    if prefixed:
        reports.append(f"tokens carry the prefix {', '.join(map(repr, sorted({*prefixes} - {''})))}; taken off")
        if bare:
            reports.append(f"line {lines[prefixes.index('')]}: {bare} tokens of the file lack the prefix, the first here; kept")
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str] = []
    openings = []
    stem, last = path.stem, -1
    for line, prefix, (token, tag) in zip(lines, prefixes, cells, strict=True):
        if line != last + 1:
            words, tags = [], []
            rows.append({"id": f"{stem}:{line}", "words": words, "tags": tags})
        last = line
        if prefixed:
            token = token.removeprefix(prefix)
        if not token.strip():
            raise MoebenchError(f"{path}:{line}: the token is empty; complete or remove the line")
        before = tags[-1] if tags else "O"
        if tag.startswith("I-") and before[2:] != tag[2:]:
            if before != "O":
                raise MoebenchError(f"{path}:{line}: tag {tag!r} follows {before!r}; right is 'B-{tag[2:]}' or 'I-{before[2:]}' (IOB2)")
            openings.append(line)
        words.append(token)
        tags.append(sys.intern(tag))
    if openings:
        reports.append(f"line {openings[0]}: {len(openings)} entities of the file open with an I- tag, the first here; kept")
    return rows, reports


# -------------------------------------------------------------------------------------------------- Universal Dependencies


@dataclass
class Sentence:
    """A sentence of Universal Dependencies: its words, their tags and heads (numbers from 1, 0 is the root), and multiword tokens.

    Attributes:
        words: forms of the syntactic words.
        tags: their universal parts of speech.
        heads: numbers of each word's heads: the one of HEAD, and those of DEPS but empty nodes.
        spans: (first word, last word, form) of each multiword token, in order.
        line: line of the first word, for ids and messages.
        lines: line of each word.
    """

    words: list[str]
    tags: list[str]
    heads: list[tuple[int, ...]]
    spans: list[tuple[int, int, str]]
    line: int = 0
    lines: list[int] = field(default_factory=list)

    def withheld(self) -> bool:
        """Whether the text is left out, ``_`` standing for all words or all but one, as in treebanks whose text must be bought."""
        missing = self.words.count("_")
        return missing > 0 and missing >= len(self.words) - 1

    def surface(self, language: str) -> tuple[list[str], list[str]]:
        """Words as they are written and their tags, as XTREME's script makes them.

        A multiword token (French ``du`` for ``de le``) is one word with the tag of its head: of its words the one with the fewest ancestors
        in the graph of HEAD and DEPS, and of several the first by `_RANKS`. Spaces and zero-width non-joiners inside a word are taken out.
        """
        rank = _RANKS.get(language, _RANKS[""]).split()

        def order(word: int) -> tuple[int, int, int]:
            tag = self.tags[word - 1]
            return len(self._ancestors(word)), rank.index(tag) if tag in rank else len(rank), word

        words, tags, spans = list(self.words), list(self.tags), self.spans
        for first, last, form in reversed(spans):
            words[first - 1 : last] = [form]
            tags[first - 1 : last] = [self.tags[min(range(first, last + 1), key=order) - 1]]
        return [word.replace(" ", "").replace("\u200c", "") for word in words], tags

    def _ancestors(self, word: int) -> set[int]:
        found: set[int] = set()
        due = [word]
        while due:  # heads may go in circles, those of DEPS do
            at = due.pop()
            new = set(self.heads[at - 1]) - found if 0 < at <= len(self.heads) else set()
            found |= new
            due += new
        return found - {word}


def enhanced(deps: str) -> tuple[int, ...] | None:
    """Return the heads that DEPS names, but empty nodes (``8.1``): ``4:nsubj|8:nsubj``; none: it is written in another way."""
    edges = [re.match("([0-9]+)([.][0-9]+)?:", edge) for edge in ([] if deps == "_" else deps.split("|"))]
    return tuple(int(edge[1]) for edge in edges if edge and not edge[2]) if all(edges) else None


def conllu(path: Path, labels: Sequence[str], language: str = "") -> tuple[list[Row], list[str]]:
    """Read CoNLL-U (a treebank of Universal Dependencies): rows of words and their universal parts of speech.

    Comments and empty nodes (``8.1``) are no words; for multiword tokens (``1-2``) see `Sentence.surface`. Sentences whose text is
    withheld are left out and reported. ``id`` is ``<file stem>:<line of the first word>``.

    Args:
        path: the file.
        labels: the tags.
        language: the treebank's, which decides in which order tags count in multiword tokens.

    Raises:
        LabelsStripped: no word has a tag, or all have the same.
        MoebenchError: not ten columns, ids out of sequence, an empty word, a missing or unknown tag.
    """
    text = read_text(path)
    reports = _controls(text)
    found = list(_sentences_of(path, text))
    if not found:
        raise MoebenchError(f"{path}: holds no sentences; fetch it again")
    tags = [tag for sentence in found for tag in sentence.tags]
    _check_labels(path, tags, [line for sentence in found for line in sentence.lines], labels, "tag")
    rows: list[Row] = []
    fused = joined = 0
    for sentence in found:
        if sentence.withheld():
            continue
        words, tags = sentence.surface(language)
        if not all(words):
            raise MoebenchError(f"{path}:{sentence.line}: a word of this sentence is empty; complete or remove it")
        fused += len(sentence.spans)
        joined += sum(" " in word or "\u200c" in word for word in (*sentence.words, *(form for *_, form in sentence.spans)))
        rows.append({"id": f"{path.stem}:{sentence.line}", "words": words, "tags": [sys.intern(tag) for tag in tags]})
    if fused:
        reports.append(f"{fused} multiword tokens; each is one word with its head's tag")
    if joined:
        reports.append(f"{joined} words hold spaces or zero-width non-joiners; taken out")
    if len(rows) < len(found):
        reports.append(f"{len(found) - len(rows)} sentences have '_' for words, their text is withheld; left out")
    return rows, reports


def _sentences_of(path: Path, text: str) -> Iterator[Sentence]:
    sentence = Sentence([], [], [], [])

    def complete() -> Sentence:
        if sentence.spans and sentence.spans[-1][1] > len(sentence.words):
            raise MoebenchError(f"{path}:{sentence.lines[-1]}: the sentence ends inside a multiword token")
        return sentence

    for number, line in enumerate(_lines(text), start=1):
        if not line.strip(" "):
            if sentence.words:
                yield complete()
            sentence = Sentence([], [], [], [])
            continue
        if line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) != CONLLU_COLUMNS:
            raise MoebenchError(f"{path}:{number}: expected {CONLLU_COLUMNS} tab-separated columns (CoNLL-U), found {len(cells)}")
        identifier, form, tag, head, deps = cells[0], cells[1], cells[3], cells[6], cells[8]
        due = len(sentence.words) + 1
        if re.fullmatch("[0-9]+[.][0-9]+", identifier):
            continue
        if not form.strip():
            raise MoebenchError(f"{path}:{number}: the word is empty; complete or remove the line")
        if span := re.fullmatch("([0-9]+)-([0-9]+)", identifier):
            first, last = int(span[1]), int(span[2])
            if first != due or last <= first or (sentence.spans and sentence.spans[-1][1] >= first):
                raise MoebenchError(f"{path}:{number}: multiword token {identifier!r} is out of sequence, word {due} is due")
            sentence.spans.append((first, last, form))
        elif identifier == str(due):
            sentence.line = sentence.line or number
            sentence.lines.append(number)
            sentence.words.append(form)
            sentence.tags.append("" if tag == "_" else tag)
            sentence.heads.append((int(head) if head.isdecimal() else 0, *(enhanced(deps) or ())))
        else:
            raise MoebenchError(f"{path}:{number}: id {identifier!r} is out of sequence, word {due} is due")
    if sentence.words:
        yield complete()


# ---------------------------------------------------------------------------------------------------------------- SQuAD


def _line_of(text: str, identifier: str, count: int) -> int:
    """Line (from 1) of the ``count``-th (from 1) question of that id, or 1 where it cannot be told."""
    spelled = {json.dumps(identifier), json.dumps(identifier, ensure_ascii=False)}
    matches = re.finditer(rf'"id"\s*:\s*(?:{"|".join(re.escape(each) for each in sorted(spelled))})', text)
    match = next(itertools.islice(matches, count - 1, None), None)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = " and seems cut short" if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string") else ""
        raise MoebenchError(f"{path}:{error.lineno}: not valid JSON{cut} ({error.msg}, column {error.colno}); fetch it again") from error
    except (RecursionError, ValueError) as error:  # a number of thousands of digits is a ValueError
        raise MoebenchError(f"{path}:1: not SQuAD JSON: nested too deeply, or a number too long") from error


def _member(path: Path, value: Any, key: str, kind: type, where: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    # A boolean is an int to Python, not to SQuAD.
    if not isinstance(found, kind) or isinstance(found, bool):
        state = "is missing" if not isinstance(value, dict) or key not in value else f"is {type(found).__name__}, not {kind.__name__}"
        raise MoebenchError(
            f"{path}: not SQuAD JSON: {where}.{key} {state}; shape: data[].paragraphs[].(context, qas[].(id, question, answers))"
        )
    if isinstance(found, str) and re.search("[\ud800-\udfff]", found):
        raise MoebenchError(f"{path}: {where}.{key} holds half a character (a lone surrogate): {shown(found)}")
    return found


def realign(context: str, text: str, start: int, window: int = REALIGN_WINDOW) -> int | None:
    """Return where ``text`` occurs nearest to ``start`` within ``window``, the earlier of two places; none if nowhere."""
    places = []
    place = context.find(text, max(0, start - window))
    while 0 <= place <= start + window:
        places.append(place)
        place = context.find(text, place + 1)
    return min(places, key=lambda place: (abs(place - start), place), default=None)


def squad(path: Path, language: str = "") -> tuple[list[Row], list[str]]:
    """Read SQuAD v1.1 JSON (SQuAD, XQuAD, MLQA, TyDiQA-GoldP).

    Of a file of several languages (TyDiQA-GoldP's own) the questions of ``language`` alone are read; their ids begin with its English name.
    ``id`` is the question's; a second use of one gets ``#2`` and so on, reported. An answer that is not where its offset says is moved to
    the nearest exact occurrence within `REALIGN_WINDOW` characters, reported.

    Raises:
        LabelsStripped: no question has an answer text.
        MoebenchError: not JSON, not of SQuAD's shape, an empty text, a question without an answer, an answer that is not in its context,
            no question of the language.
    """
    text = read_text(path)
    reports: list[str] = []
    questions: list[tuple[str, str, Row]] = []
    articles = _member(path, _parse_json(path, text), "data", list, "top level")
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_member(path, article, "paragraphs", list, f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            context = _member(path, paragraph, "context", str, place)
            for q, question in enumerate(_member(path, paragraph, "qas", list, place)):
                questions.append((f"{place}.qas[{q}]", context, question))
    if not questions:
        raise MoebenchError(f"{path}: holds no questions; fetch it again")
    if language:
        questions = [each for each in questions if _language_of(_member(path, each[2], "id", str, each[0])) == language]
        if not questions:
            raise MoebenchError(f"{path}: holds no question of language {language!r}")

    rows: list[Row] = []
    taken: dict[str, int] = {}
    repeated = 0
    controls: list[str] = []
    unanswered: list[tuple[str, int]] = []
    for where, context, question in questions:
        name = _member(path, question, "id", str, where)
        asked = _member(path, question, "question", str, where)
        found = _member(path, question, "answers", list, where)
        count = taken[name] = taken.get(name, 0) + 1
        repeated += count > 1

        def at(name: str = name, count: int = count) -> str:
            return f"{path}:{_line_of(text, name, count)}: question {name!r}"

        for what, value in (("context", context), ("question", asked)):
            if not value.strip():
                raise MoebenchError(f"{at()}: the {what} is empty; complete or remove it")
            if "\0" in value:
                raise MoebenchError(f"{at()}: the {what} holds a NUL character; the file is damaged")
            controls += [f"U+{ord(here):04X} of question {name!r}" for here in _CONTROL.findall(value.replace("\r", ""))[:1]]
        answers = []
        for i, answer in enumerate(found):
            span = _member(path, answer, "text", str, f"{where}.answers[{i}]")
            start = _member(path, answer, "answer_start", int, f"{where}.answers[{i}]")
            if not span.strip():
                continue  # an answer without a text is none: settled below, for the question and for the file
            if start < 0 or context[start : start + len(span)] != span:
                moved = realign(context, span, start)
                if moved is None:
                    there = context[max(start, 0) : max(start, 0) + len(span)]
                    raise MoebenchError(
                        f"{at()}: the answer {span!r} is not at character {start} of its context, there stands {there!r}, "
                        f"and not within {REALIGN_WINDOW} characters of it; correct answer_start"
                    )
                line = _line_of(text, name, count)
                reports.append(f"line {line}: question {name!r}: answer {span!r} moved from character {start} to {moved}")
                start = moved
            answers.append({"text": span, "start": start})
        if len(answers) != len(found) or not answers:
            unanswered.append((name, count))
        rows.append({"id": name if count == 1 else f"{name}#{count}", "context": context, "question": asked, "answers": answers})
    if not any(row["answers"] for row in rows):
        raise LabelsStripped(path, "no question has an answer text")
    if unanswered:
        name, count = unanswered[0]
        line = _line_of(text, name, count)
        raise MoebenchError(f"{path}:{line}: question {name!r}: the answer is missing or empty while other questions have one")
    if repeated:
        reports.append(f"{repeated} questions use an id again; numbered with #2 and so on")
    if len({row["id"] for row in rows}) < len(rows):
        raise MoebenchError(f"{path}: question ids clash after numbering repeated ones; make them unique")
    if controls:
        reports.append(f"{len(controls)} texts hold control characters, the first is {controls[0]}; kept")
    return rows, reports


# ------------------------------------------------------------------------------------------------------- several languages


def _language_of(identifier: str) -> str:
    return LANGUAGE_NAMES.get(identifier.partition("-")[0], "")


def languages(path: Path) -> list[str]:
    """Return the languages of a file that holds several, sorted; empty for a file that does not name its rows' languages.

    JSON names them in question ids (TyDiQA-GoldP), TSV in a column ``language`` (XNLI 1.0).

    Raises:
        MoebenchError: the file cannot be read, is empty or is not UTF-8.
    """
    if path.suffix == ".json":
        return sorted({_language_of(name) for name in re.findall(r'"id"\s*:\s*"([a-z]+)-', read_text(path))} - {""})
    with open(path, "rb") as handle:
        columns = handle.readline().decode("utf-8", "replace").rstrip("\r\n").split("\t")
    if not _columns_of(columns)[0] or "language" not in columns:
        return []
    place = columns.index("language")
    cells = (line.split("\t") for line in _lines(read_text(path))[1:])
    return sorted({cell[place] for cell in cells if len(cell) > place})
