"""When the next try may be (DESIGN §3: back-off 0, 0.5, 1, 2 … 30 s ± 20 %; at most 20 births a second)."""

from __future__ import annotations

import pytest

from modelsupervisor.core import backoff

NEVER = float("-inf")


@pytest.mark.parametrize(
    ("failures", "plain"),
    [
        (2, 0.5),
        (3, 1.0),
        (4, 2.0),
        (5, 4.0),
        (6, 8.0),
        (7, 16.0),
        (8, 30.0),
        (9, 30.0),
        (4000, 30.0),
    ],
)
def test_delays_double_and_end_at_thirty_seconds(failures: int, plain: float) -> None:
    """Every drawn delay lies within 20 % of the plain one and under the cap, and the draws use the whole band."""
    delays, luck = [], 7
    for _ in range(500):
        delay, luck = backoff.failure_delay(failures, luck)
        delays.append(delay)
    upper = min(30.0, plain * 1.2)
    assert plain * 0.8 <= min(delays) < plain * 0.85
    assert upper - plain * 0.05 < max(delays) <= upper


@pytest.mark.parametrize("failures", [0, 1])
def test_first_failure_is_answered_at_once(failures: int) -> None:
    """The first try after a failure is immediate and costs no luck."""
    assert backoff.failure_delay(failures, 42) == (0.0, 42)


def test_luck_replays() -> None:
    """The same seed gives the same delay; the next seed another one."""
    delay, luck = backoff.failure_delay(5, 1)
    assert backoff.failure_delay(5, 1) == (delay, luck)
    assert backoff.failure_delay(5, luck)[0] != delay


def test_draws_are_spread() -> None:
    """10,000 draws fill [0, 1) evenly: each tenth gets its share within ± 10 %."""
    luck, tenths = 0, [0] * 10
    for _ in range(10_000):
        number, luck = backoff.draw(luck)
        assert 0.0 <= number < 1.0
        tenths[int(number * 10)] += 1
    assert all(900 <= count <= 1100 for count in tenths)


def test_twenty_births_a_second() -> None:
    """The 21st birth waits until the first is a second old; before that any time does."""
    births: tuple[float, ...] = ()
    for count in range(20):
        assert backoff.earliest_birth(births, charged=0) == NEVER
        births = backoff.remember(births, 5.0 + count / 100)
    assert backoff.earliest_birth(births, charged=0) == 6.0
    assert backoff.remember(births, 6.0) == (*births[1:], 6.0)


@pytest.mark.parametrize(("charged", "earliest"), [(4, NEVER), (5, 8.0), (500, 8.0)])
def test_charged_deaths_slow_births(charged: int, earliest: float) -> None:
    """After five deaths in a row by requests births are a second apart."""
    assert backoff.earliest_birth((2.0, 7.0), charged) == earliest


def test_charged_without_births() -> None:
    """A slot that was never born waits for nothing."""
    assert backoff.earliest_birth((), charged=9) == NEVER


def test_the_stricter_limit_holds() -> None:
    """A full window and a row of charged deaths: the later time."""
    births = tuple(10.0 + count / 100 for count in range(20))
    assert backoff.earliest_birth(births, charged=5) == births[-1] + 1.0
