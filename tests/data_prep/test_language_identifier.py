"""py3langid's automaton, applied to many texts at once, gives the same scores as py3langid."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_prep import language_identifier
from data_prep.language_identifier import FEW, LanguageIdentifier

CODES = ("no", "nn", "da", "sv", "en", "se")
SENTENCES = [
    "Kommunen har behandlet søknaden om barnehageplass, og du får svar innen tre uker.",
    "Kommunen har handsama søknaden om barnehageplass, og du får svar innan tre veker.",
    "Kommunen har behandlet ansøgningen, og du får svar inden for tre uger.",
    "Kommunen har behandlat ansökan, och du får svar inom tre veckor.",
    "The municipality has considered your application for a place in kindergarten.",
    "Dát lea dehálaš áššái, ja don oaččut vástádusa golmma vahkus.",
]
ODD = [
    "",
    " ",
    "1 2 3 4",
    "ALT MED STORE BOKSTAVER",
    "\ud800x",
    "e\u0301n gang",
    "日本語のテキスト",
    "\x00\x00",
    "å",
    # contains py3langid's feature 0, which must not be mistaken for "no feature"
    'Statsråden sa:\n"Alt er bra."',
]


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier(CODES)


def make_texts() -> list[str]:
    """Return texts of all lengths, truncated at random, with odd texts between them."""
    rng = random.Random(0)
    mixed = []
    for _ in range(300):
        text = " ".join(rng.choices(SENTENCES, k=rng.randrange(1, 6)))
        mixed.append(text[: rng.randrange(1, 400)])
    return [text for pair in zip(mixed, ODD * 40, strict=False) for text in pair]


def test_scores_equal_those_of_py3langid(identifier: LanguageIdentifier) -> None:
    for text, scores in zip(make_texts(), identifier.compute_scores(make_texts()), strict=True):
        expected = dict(identifier.original.rank(text))
        assert identifier.codes == identifier.original.nb_classes
        np.testing.assert_allclose(
            scores,
            [expected[code] for code in identifier.codes],
            rtol=1e-5,
            atol=1e-3,
            err_msg=repr(text),
        )
        assert identifier.codes[scores.argmax()] == identifier.original.classify(text)[0]


def test_a_text_scores_the_same_alone_and_in_any_batch(
    identifier: LanguageIdentifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = make_texts()
    together = identifier.compute_scores(many)
    assert len(many) > FEW
    assert np.array_equal(together, np.concatenate([identifier.compute_scores([text]) for text in many]))
    assert np.array_equal(together[::-1], identifier.compute_scores(many[::-1]))
    monkeypatch.setattr(language_identifier, "BATCH_SIZE", 37)
    assert np.array_equal(together, identifier.compute_scores(many))
    assert identifier.compute_scores([]).shape == (0, len(CODES))
