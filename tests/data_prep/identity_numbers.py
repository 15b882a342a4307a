"""Identity numbers made by the rule for their check digits."""

from __future__ import annotations

import random

WEIGHTS_1 = (3, 7, 6, 1, 8, 9, 4, 5, 2)
WEIGHTS_2 = (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)


def with_check_digits(nine: str) -> str | None:
    """Return the eleven digits under the old rule, or None where there are none."""
    first = -sum(int(d) * w for d, w in zip(nine, WEIGHTS_1, strict=True)) % 11
    if first == 10:
        return None
    second = -sum(int(d) * w for d, w in zip(nine + str(first), WEIGHTS_2, strict=True)) % 11
    return None if second == 10 else f"{nine}{first}{second}"


def numbers(day: int, month: int, count: int = 200) -> list[str]:
    """Return numbers that are valid under the old rule, of people born 1950-1999: individual numbers
    000-499."""
    rng = random.Random(7)
    made = (
        with_check_digits(
            f"{rng.randint(1, 28) + day:02d}{rng.randint(1, 12) + month:02d}{rng.randint(54, 99)}{rng.randint(0, 499):03d}"
        )
        for _ in range(count)
    )
    return [number for number in made if number]
