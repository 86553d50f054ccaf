"""RetryPolicy: the delays."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage import RetryPolicy

POLICIES = st.builds(
    RetryPolicy,
    base_seconds=st.floats(0, 100),
    factor=st.floats(1, 10),
    cap_seconds=st.floats(100, 10_000),
    jitter=st.floats(0, 1),
)


@given(policy=POLICIES, attempt=st.integers(1, 10**9))
def test_a_delay_is_within_the_range_of_the_jitter_and_the_cap(policy: RetryPolicy, attempt: int) -> None:
    longest = min(policy.cap_seconds, policy.base_seconds * policy.factor ** min(attempt - 1, 64))
    assert longest * (1 - policy.jitter) <= policy.delay(attempt) * (1 + 1e-12)
    assert policy.delay(attempt) <= longest


def test_without_jitter_delays_double_up_to_the_cap() -> None:
    policy = RetryPolicy(base_seconds=5, factor=2, cap_seconds=60, jitter=0)
    assert [policy.delay(attempt) for attempt in range(1, 7)] == [5, 10, 20, 40, 60, 60]


def test_jitter_spreads_the_delays() -> None:
    assert len({RetryPolicy().delay(3) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_seconds", -1),
        ("base_seconds", 301),
        ("base_seconds", float("nan")),
        ("cap_seconds", float("inf")),
        ("factor", 0.5),
        ("factor", float("inf")),
        ("jitter", -0.1),
        ("jitter", 1.1),
    ],
)
def test_an_invalid_policy_is_refused_with_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})
