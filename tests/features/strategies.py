"""Texts of any script for hypothesis, with what tokenizers stumble at."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

# A Hangul syllable, a ligature and an ellipsis become several characters; joiners,
# marks and variation selectors none; NUL, control characters and separators split.
ODD = (
    "한국각가\uac01ﬁ…½ßΣςİıǆᾳΐ㎏㍿①Ⅷ"
    "\u0301\u0323\u0345\u093e\u302e\u0e34\u064b\u05b0\ufe0f\u20e3"
    "\u200d\u200b\u200e\u202e\ufeff\u00ad\x00\x01\x1f\x7f\x85\u2028\u3000\xa0\t\n "
    "\ufffd\U0001f468\U0001f469\U0001f1e9\U0001f3fd\U00020000\U000e0041\ue000\uffff"
    "北京银行กาิมبنكאב𐍈Дос'\"-.,()[]{}#_`^~"
)
# What SentencePiece's normalization changes, and what it writes for white space.
NORMALIZED = "㌖ｶﾞﾊﾟﷺ´¨\u2581ー東京銀行เธนาคารู้"
# Single characters and whole strings of any script, odd ones often.
characters = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from("abcknsuq BAX1"),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.text(characters, min_size=1, max_size=16)
many = hypothesis.settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
