"""Characters of the fonts Symbol and Wingdings: bullets, formulas, unknown characters."""

from __future__ import annotations

import pytest

from data_prep import symbol_fonts
from data_prep.stages import normalise, quality
from tests.data_prep.documents import make_config, make_document, run_shard_stage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Avtalen gjelder:\n\uf0b7 Drift\n\uf0b7\tVedlikehold",
            "Avtalen gjelder:\n• Drift\n• Vedlikehold",
        ),
        (
            "\uf0a7 ett\n\uf0d8 to\n\uf076 tre\n\uf06e fire\n\uf0e8 fem",
            "• ett\n• to\n• tre\n• fire\n• fem",
        ),
        (
            "Krav:\n\uf0b7\nPartene møtes\n\uf0b7\nEn av dem betaler",
            "Krav:\n• Partene møtes\n• En av dem betaler",
        ),
        (
            "\uf0fc Søknad\n\uf06f Attest\n\uf0fe Kvittering\n\uf0fb Kart",
            "✓ Søknad\n☐ Attest\n☑ Kvittering\n✗ Kart",
        ),
        (
            "Dosen er 5 \uf06dg, \uf0a3 10 \uf0b1 2 ved 20 \uf0b0C",
            "Dosen er 5 µg, ≤ 10 ± 2 ved 20 °C",
        ),
        (
            "vinkelen \uf061 mellom \uf044x og \uf062, \uf053x\uf0b22",
            "vinkelen α mellom Δx og β, Σx″2",
        ),
        ("Velg Fil \uf0e0 Lagre \uf04a", "Velg Fil → Lagre ☺"),
        ("\uf06c = 3 og \uf06d/2", "λ = 3 og µ/2"),
        ("Legg ved:\n\ue001 pass\n\ue001\tattest", "Legg ved:\n• pass\n• attest"),
        ("\ue001 ett ikon av en skrift for seg", "\ue001 ett ikon av en skrift for seg"),
        ("Les mer \uf061\nog \ue123 i kj\ue0f8p", "Les mer \uf061\nog \ue123 i kj\ue0f8p"),
    ],
)
def test_a_character_is_interpreted_by_its_context(text: str, expected: str) -> None:
    assert symbol_fonts.repair(text) == expected
    assert symbol_fonts.repair(expected) == expected
    assert normalise.normalise(text) == normalise.normalise(normalise.normalise(text))


def test_a_list_with_bullets_from_word_is_kept_and_counted() -> None:
    lines = [
        "Leverandøren skal rapportere hver måned",
        "Kommunen skal betale innen fristen",
        "Partene møtes to ganger i året",
    ]
    letter = make_document("Avtalen gjelder:\n" + "\n".join(f"\uf0b7 {line}" for line in lines))
    normalised, report = run_shard_stage(normalise.Normalise(), [letter], make_config())
    assert normalised[0].text.split("\n")[1:] == [f"• {line}" for line in lines]
    assert report.counts["symbol_font_characters"] == 3
    kept, _ = run_shard_stage(quality.Quality(), normalised, make_config())
    assert len(kept) == 1
