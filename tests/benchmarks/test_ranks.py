"""What several ranks are said to gain: bytes and the slowest rank's part of each piece."""

import pytest

from benchmarks.ranks import Found, Link, path, project, sent_a_step


def test_the_path_is_the_slowest_rank_between_exchanges() -> None:
    first = Found(wall=9, cpu=7, between=[1, 3, 2], inside=0.5)
    second = Found(wall=9, cpu=6, between=[2, 1, 2], inside=0.25)
    assert path([first, second]) == 2 + 3 + 2 + 0.5


@pytest.mark.parametrize(
    ("elements", "ranks", "sent"), [(100, 2, 400), (2**20, 2, 2**22), (100, 8, 2_800), (2**20, 8, 2 * 2**22 * 7 / 8)]
)
def test_bytes_of_a_step(elements: int, ranks: int, sent: float) -> None:
    """All to all where there is little, otherwise a part to each and the sums back."""
    assert sent_a_step(elements, ranks) == sent


def test_a_step_on_paper() -> None:
    link = Link(name="", ranks=8, rate=28e6, latency=0.001)
    exchange, step, faster = project([100, 100], 0.8, 0.003, link)
    assert exchange == pytest.approx(0.001 + 2_800 / 28e6)
    assert (step, faster) == (pytest.approx(0.1 + exchange), pytest.approx(0.8 / step))
    assert project([100], 0.8, 0.5, link)[1] == pytest.approx(0.5 + exchange)  # what launching takes
