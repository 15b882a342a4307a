"""Tables of scripts other than Latin: their letters, and the languages that are written in them."""

from __future__ import annotations

import re

SCRIPTS = {
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": r"\u0400-\u052f",
    "Armenian": r"\u0530-\u058f",
    "Hebrew": r"\u0590-\u05ff",
    "Arabic": r"\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Syriac": r"\u0700-\u074f",
    "Thaana": r"\u0780-\u07bf",
    "Devanagari": r"\u0900-\u097f",
    "Bengali": r"\u0980-\u09ff",
    "Gurmukhi": r"\u0a00-\u0a7f",
    "Gujarati": r"\u0a80-\u0aff",
    "Odia": r"\u0b00-\u0b7f",
    "Tamil": r"\u0b80-\u0bff",
    "Telugu": r"\u0c00-\u0c7f",
    "Kannada": r"\u0c80-\u0cff",
    "Malayalam": r"\u0d00-\u0d7f",
    "Sinhala": r"\u0d80-\u0dff",
    "Thai": r"\u0e00-\u0e7f",
    "Lao": r"\u0e80-\u0eff",
    "Tibetan": r"\u0f00-\u0fff",
    "Burmese": r"\u1000-\u109f",
    "Georgian": r"\u10a0-\u10ff\u1c90-\u1cbf",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Ethiopic": r"\u1200-\u139f\u2d80-\u2ddf",
    "Cherokee": r"\u13a0-\u13ff",
    "Khmer": r"\u1780-\u17ff",
    "Mongolian": r"\u1800-\u18af",
    "Kana": r"\u3040-\u30ff",
    "Han": r"\u3400-\u9fff\u8c48-\ufaff",
    "Tifinagh": r"\u2d30-\u2d7f",
}
LETTERS_BY_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
# py3langid's languages by their script.
LANGUAGES_BY_SCRIPT = {
    "Greek": "ell", "Cyrillic": "rus ukr bel bul srp mkd kaz kir mon tgk tat bak",
    "Armenian": "hye", "Hebrew": "heb yid", "Arabic": "ara fas urd pus uig ckb",
    "Devanagari": "hin mar nep san gom", "Bengali": "ben asm", "Gurmukhi": "pan",
    "Gujarati": "guj", "Odia": "ori", "Tamil": "tam", "Telugu": "tel", "Kannada": "kan",
    "Malayalam": "mal", "Sinhala": "sin", "Thai": "tha", "Lao": "lao", "Tibetan": "dzo",
    "Burmese": "mya", "Georgian": "kat", "Hangul": "kor", "Ethiopic": "amh tir", "Khmer": "khm",
    "Kana": "jpn", "Han": "zho",
}  # fmt: skip
# (script, letters, language): letters of languages that py3langid takes for other languages.
LETTERS_BY_LANGUAGE = (
    ("Ethiopic", re.compile("[ኣኦሕዕሓኽኹቕኾ]"), "tir"),
    ("Arabic", re.compile("[ێۆڕڵ]"), "ckb"),
    ("Hebrew", re.compile("[װױײ]|אַ|אָ"), "yid"),
)
