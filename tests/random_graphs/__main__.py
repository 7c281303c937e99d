"""Run graphs by their seeds: ``python -m tests.random_graphs FIRST [COUNT] [--shrink] [--save FOLDER]``."""

import argparse
import collections
import logging
import re
import sys
import time
from pathlib import Path

import onnx
import torch

from .graphs import draw
from .judge import Verdict, judge


def shrink(seed: int, kinds: set[str]) -> frozenset[int]:
    """Steps without which the graph of a seed is wrong still, and of the same kinds."""
    without: frozenset[int] = frozenset()
    for number in reversed(range(10)):
        fewer = without | {number}
        try:
            if kinds_of(judge(draw(seed, fewer))) >= kinds:
                without = fewer
        except Exception:  # a graph without a layer, say
            continue
    return without


def kinds_of(verdict: Verdict) -> set[str]:
    """What is wrong, without names and numbers."""
    return {re.sub(r"'[^']*'|[-\d.]+", "", text.partition(" (")[0].partition("\n")[0]) for text in verdict.wrong}


def tell(seed: int, verdict: Verdict, without: frozenset[int], folder: Path | None) -> None:
    case = draw(seed, without)
    print(f"seed {seed}: {', '.join(case.steps)}")
    for what, texts in (("WRONG", verdict.wrong), ("said", verdict.said)):
        for text in texts:
            print(f"  {what}: {text}")
    if verdict.wrong and folder is not None:
        onnx.save(case.model, folder / f"{seed}.onnx")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--shrink", action="store_true", help="leave out steps that a failure does not need")
    parser.add_argument("--save", type=Path, help="a folder for the models that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pdq_export").addHandler(logging.NullHandler())
    began, counts = time.perf_counter(), collections.Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.count):
        verdict, without = judge(draw(seed)), frozenset[int]()
        if verdict.wrong and arguments.shrink:
            without = shrink(seed, kinds_of(verdict))
            verdict = judge(draw(seed, without))
        counts.update(graphs=1, wrong=bool(verdict.wrong), said=bool(verdict.said))
        counts.update(outputs=verdict.judged + len(verdict.left_out), left_out=len(verdict.left_out))
        if verdict.wrong or verdict.said:
            tell(seed, verdict, without, arguments.save)
            sys.stdout.flush()
        if counts["graphs"] % 100 == 0:
            print(dict(counts), file=sys.stderr)
    print(f"{dict(counts)}, {time.perf_counter() - began:.0f} s")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
