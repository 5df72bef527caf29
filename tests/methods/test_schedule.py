import pytest

from densesiam.methods.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("fixed", 4, warmup=2), [0.5, 1, 1, 1]),
        (Schedule("steps", 10, 2, [4, 6]), [0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (Schedule("cosine", 2), [1, 0.5, 0, 0]),
        (Schedule("cosine", 4, warmup=2, begin=2), [0.5, 1, 1, 0.5, 0]),
        (Schedule("cosine", 4, warmup=2), [0.5, 0.5 + 0.5**1.5, 0.5]),
        (Schedule("cosine", 2, warmup=2, begin=2), [0.5, 1, 1]),  # all warm-up
        (Schedule("fixed", float("inf")), [1, 1]),
    ],
    ids=str,
)
def test_shares_by_hand(schedule, expected):
    assert [schedule.share(step) for step in range(len(expected))] == pytest.approx(expected)
