"""Texts of many scripts in every normal form, for property tests."""

import unicodedata

from hypothesis import strategies as st

SCRIPTS = (
    *("tiếng Đức phố", "é ǘ ṩ", "йод её", "ἄᾳ ὗ", "서울특별시 각", "ガギグパ", "ｶﾞｷﾞﾊﾟ ﾡￂ", "أحمد إلى آب ؤئ", "שׁלום בּ"),
    *("কো কৌ ড়", "ਸ਼ ਖ਼", "கொ கோ கௌ", "ಕೋ ಕೊ", "കൊ", "ක්ෂ කෝ", "ကို ဦ", "क़ ख़ ऩ", "ﬁ ﬃ ㎥ ﷺ ½ ① ¨", "İ ſ ß"),
)
"""Words that change when they are composed, decomposed or flattened."""
FORMS = (None, "NFC", "NFD", "NFKC", "NFKD")
SIGNS = " \u0301\u0323\u200b\u200c\u200d\u200e\ufeff\ufffd\ufe0f\u00ad\u20e3\x01👩🏽<>\u2581\ud800"
UNCLEAR = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
"""White space in Python, and to vocabularies nothing or a letter."""


def in_form(text: str, form: str | None) -> str:
    return unicodedata.normalize(form, text) if form else text


LETTERS = "".join(SCRIPTS) + in_form("".join(SCRIPTS), "NFD") + SIGNS
TEXTS = st.builds(
    in_form, st.text(st.one_of(st.sampled_from(LETTERS), st.characters(exclude_characters=UNCLEAR)), max_size=30), st.sampled_from(FORMS)
)
