"""Scripts: from the sounds of a word, one ASCII letter each, to its letters. One sound, one letter, so nothing is lost."""

from __future__ import annotations

PLAIN = "ptkbdgmnslrvfzhjSCaeiou"
"""Sounds that every script can write (S as in ship, C as in chip), hence what a cognate may hold."""

LETTERS = {
    "latin": dict(zip(PLAIN, "ptkbdgmnslrvfzhjščaeiou", strict=True)) | dict(zip("OUANYTEq", "öüāñyþēq", strict=True)),
    "cyrillic": dict(zip(PLAIN, "пткбдгмнслрвфзхйшчаеиоу", strict=True)) | {"Y": "ы"},
    "greek": dict(zip(PLAIN, "πτκβδγμνσλρϝφζχϊψξαειου", strict=True)) | {"T": "θ", "E": "η"},
    "devanagari": dict(zip(PLAIN, "पतकबदगमनसलरवफजहयशचअएइओउ", strict=True)),
    "georgian": dict(zip(PLAIN, "პტკბდგმნსლრვფზჰჲშჩაეიოუ", strict=True)) | {"q": "ყ"},
    "armenian": dict(zip(PLAIN, "պտկբդգմնսլրվֆզհյշչաեիու", strict=True)) | {"T": "թ"},
}
MARKS = {"full stop": {"devanagari": "।", "armenian": "։"}, "question": {"greek": ";", "armenian": "՞"}}
VOWEL_SIGNS = {"a": "", "e": "े", "i": "ि", "o": "ो", "u": "ु"}
VIRAMA = "्"


def spell(sounds: str, script: str) -> str:
    """Write a word. Devanagari writes a vowel after a consonant as a sign on it and its absence as a virama."""
    letters = LETTERS[script]
    if script != "devanagari":
        return "".join(letters[sound] for sound in sounds)
    written, open_consonant = "", False
    for sound in sounds:
        vowel = sound in VOWEL_SIGNS
        if open_consonant:
            written += VOWEL_SIGNS[sound] if vowel else VIRAMA
        if not (vowel and open_consonant):
            written += letters[sound]
        open_consonant = not vowel
    return written + VIRAMA * open_consonant


def mark(which: str, script: str) -> str:
    """Return the script's ``full stop`` or ``question`` mark."""
    return MARKS[which].get(script, "." if which == "full stop" else "?")
