"""When the next try may be: pure functions of counts, times and a seed.

Two limits hold at once. The *back-off* answers failures: 0, 0.5, 1, 2 … 30 s with ± 20 % jitter, so that slots which failed
together do not try together. The *birth window* answers everything else, poison requests included: no slot is born more than
BIRTHS_KEPT times in BIRTH_WINDOW, whatever the cause, so that a fault which the failure count rightly does not see (a worker
that dies with every request it is given) still cannot eat the machine.
"""

from __future__ import annotations

BIRTHS_KEPT = 20
BIRTH_WINDOW = 1.0  # seconds
CHARGED_LIMIT = 5  # deaths in a row with a request in hand before births slow down
CHARGED_PAUSE = 1.0  # seconds from birth to birth then
LONGEST_DELAY = 30.0
JITTER = 0.2

_MASK = (1 << 64) - 1


def draw(luck: int) -> tuple[float, int]:
    """A number in [0, 1) and the next seed: splitmix64 (Steele, Lea, Flood 2014), so that histories can be replayed."""
    luck = (luck + 0x9E3779B97F4A7C15) & _MASK
    mixed = luck
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53), luck


def failure_delay(failures: int, luck: int) -> tuple[float, int]:
    """Seconds until the try after the given number of failures in a row (≥ 1), and the next seed."""
    if failures <= 1:
        return 0.0, luck
    # 2.0 ** 6 is past the cap; a larger exponent would only risk an overflow after thousands of failures.
    plain = min(LONGEST_DELAY, 0.5 * 2.0 ** min(failures - 2, 16))
    number, luck = draw(luck)
    return min(LONGEST_DELAY, plain * (1.0 - JITTER + 2.0 * JITTER * number)), luck


def remember(births: tuple[float, ...], now: float) -> tuple[float, ...]:
    """The birth times with this one added, the newest BIRTHS_KEPT of them."""
    return (*births, now)[-BIRTHS_KEPT:]


def earliest_birth(births: tuple[float, ...], charged: int) -> float:
    """The earliest time at which another birth keeps both limits; -inf where any time does."""
    earliest = float("-inf")
    if len(births) == BIRTHS_KEPT:
        earliest = births[0] + BIRTH_WINDOW
    if births and charged >= CHARGED_LIMIT:
        earliest = max(earliest, births[-1] + CHARGED_PAUSE)
    return earliest
