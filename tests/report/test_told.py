"""Figures and words that stand for one thing alone."""

import dataclasses
import logging

import onnx
import pytest

from pdq_export.cli.render import search_lines
from pdq_export.commands.next_steps import larger_budget
from pdq_export.commands.pairs import warn_of_pair
from pdq_export.config.record import bits_word
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.table import images_of
from pdq_export.search.asked import Budget
from pdq_export.spec.step import Step

STEP = Step(size=100, loss=2.0, avg_weight=4.0, drop=0.5, error=0.1, images=10, held=True)


def estimate(name: str, size: int, loss: float) -> Estimate:
    return Estimate(name=name, size=size, loss=loss, avg_weight=4.0, avg_activation=None)


def search(*uniforms: Estimate, equal: Estimate | None = None, steps: tuple[Step, ...] = ()) -> SearchReport:
    frontier = (estimate("frontier", 90, 3.0), estimate("frontier", 130, 1.5), estimate("frontier", 200, 0.4))
    return SearchReport(
        budget="--max-size 110",
        measure="kl",
        chosen=estimate("auto", 100, 2.0),
        uniform=equal,
        frontier=frontier,
        uniforms=uniforms,
        note="",
        steps=steps,
    )


def test_equal_bits_are_named_where_they_take_no_more() -> None:
    small, large = estimate("3/8", 95, 8.0), estimate("8/8", 300, 0.1)
    (line,) = search_lines(search(small, large, equal=small))
    assert line.endswith("× 0.25 of the estimated loss of 3/8, the best equal bits within the same budget (95 bytes)")
    same = estimate("3/8", 101, 2.0)  # an estimate; the file that was written is a byte smaller
    line, _ = search_lines(search(same, large, equal=same, steps=(STEP,)))
    assert line.endswith(", equal for all layers, 3/8: none that differ promise less")
    line, _ = search_lines(search(small, large, equal=large, steps=(STEP,)))
    assert line.endswith("of the estimated loss of 3/8, the best equal bits of as many bytes or fewer (95 bytes)")
    line, _ = search_lines(search(large, equal=large, steps=(STEP,)))
    assert line.endswith("4.00 on average")


def test_a_larger_budget_is_one_that_loses_much_less() -> None:
    (remedy,) = larger_budget(search(), 110, 100)
    assert (remedy.line, remedy.bytes) == ("--max-size 202", 102)
    assert larger_budget(search(), None, 100) == ()
    (remedy,) = larger_budget(search(steps=(STEP,)), None, 100)  # found by accuracy
    assert (remedy.line, remedy.bytes) == ("--max-size 202", 102)
    assert larger_budget(search(), 300, 100) == ()
    (remedy,) = larger_budget(search(), None, 100, raised=estimate("--max-bit-ops 0.25", 120, 1.0))
    assert (remedy.line, remedy.bytes) == ("--max-bit-ops 0.25", 20)
    assert remedy.why.endswith("are estimated to lose 50 % less")
    assert larger_budget(search(), None, 100, raised=estimate("--max-bit-ops 0.25", 120, 1.9)) == ()
    without_loss = dataclasses.replace(search(), chosen=estimate("auto", 100, 0.0))
    for most in (None, 110):
        assert larger_budget(without_loss, most, 100, raised=estimate("--max-bit-ops 0.25", 120, 0.0)) == ()


def test_what_is_raised_ends_at_8_bits() -> None:
    asked = Budget(avg_weight=4, avg_activation=7, bit_ops=0.3)
    assert asked.raised(1.25) == Budget(avg_weight=5, avg_activation=8, bit_ops=0.375)
    assert Budget(avg_weight=8, bit_ops=2).raised(1.25) is None
    assert Budget(size=100, avg_weight=4).raised(1.25) is None


@pytest.mark.parametrize(
    ("images", "evaluation", "told"),
    [
        (300, "data/test: 300 images 3 x 32 x 32 (uint8)", "300 images of data/test: 3 x 32 x 32 (uint8)"),
        (1, "a.npy", "1 image of a.npy"),
        (1500, "", "1,500 images"),
    ],
)
def test_images_are_counted_once(images: int, evaluation: str, told: str) -> None:
    assert images_of(images, evaluation) == told


def test_bits_of_single_tensors_are_mixed() -> None:
    assert bits_word({"bits": "4/4", "tensor_bits": ["w=7"]}) == "mixed"
    assert bits_word({"bits": "4/4", "tensor_bits": []}) == "4/4"


def graph(body: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x, float[4,4] w, float s) => (float[N,4] y)'
    return onnx.parser.parse_model(f"{head} {{ {body} }}")


def test_files_that_are_no_pair_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    plain = graph("m = MatMul(x, w) y = Relu(m)")
    pairs = graph("q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) m = MatMul(d, w) y = Relu(m)")
    other = graph("k = MatMul(x, w) l = MatMul(k, k) y = Relu(l)")
    other.graph.node[0].input[1] = other.graph.input[1].name = "v"
    expected = {
        "a.onnx is quantized and b.onnx is not: are the arguments swapped?": (pairs, plain),
        "b.onnx has no quantized layer": (plain, plain),
        "a.onnx is quantized itself": (pairs, pairs),
        "no layer of a.onnx is found in b.onnx": (plain, other),
    }
    for text, (first, second) in expected.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            warn_of_pair(first, second, ("a.onnx", "b.onnx"))
        assert text in caplog.text
    caplog.clear()
    warn_of_pair(plain, pairs, ("a.onnx", "b.onnx"))
    assert caplog.text == ""
