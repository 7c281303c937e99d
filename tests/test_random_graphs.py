"""Small random graphs at 8/8, rounded to nearest: as good as 8 bits are, or the run says why not.

`tests/random_graphs/judge.py` says what that means. A failure names its seed; ``python -m tests.random_graphs SEED
--shrink`` runs it again with as few steps as it needs, ``python -m tests.random_graphs 0 3000`` many.
"""

import numpy as np
import pytest

from .random_graphs.graphs import draw
from .random_graphs.judge import judge

GRAPHS, CHUNK = 100, 50
MOST_SAID = 0.05  # of graphs: what a run says excuses its file, but only so often


@pytest.mark.parametrize("first", range(0, GRAPHS, CHUNK))
def test_eight_bits_are_as_good_as_fp32_or_the_run_says_why_not(first: int) -> None:
    verdicts = {seed: judge(draw(seed)) for seed in range(first, first + CHUNK)}
    wrong = [f"seed {seed}: {text}" for seed, verdict in verdicts.items() for text in verdict.wrong]
    assert not wrong, "\n".join([f"{len(wrong)} outputs are wrong", *wrong])
    said = [f"seed {seed}: {verdict.said[0]}" for seed, verdict in verdicts.items() if verdict.said]
    assert len(said) <= MOST_SAID * CHUNK, "\n".join([f"{len(said)} graphs are excused", *said])
    # and the test judges something: most graphs have outputs that 8 bits can give
    assert np.mean([verdict.judged > 0 for verdict in verdicts.values()]) > 0.7


def test_a_seed_is_one_graph() -> None:
    first, again = draw(5), draw(5)
    assert first.model.SerializeToString(deterministic=True) == again.model.SerializeToString(deterministic=True)
    assert all(np.array_equal(first.judged[name], again.judged[name]) for name in first.judged)
