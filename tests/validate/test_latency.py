"""Latency: what is timed against what. How long anything takes is never asserted."""

import math

import numpy as np
import onnx
import pytest

from pdq_export.errors import ValidationError
from pdq_export.validate import Session, Timing, measure_latency, time_files
from pdq_export.validate.latency import _with_wide_activations, time_sessions

X = np.zeros((2, 3, 4, 4), np.float32)


def model(body: str = "", constants: str = "") -> bytes:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float[N,3,4,4] y)
        <float s = {{0.1}}, uint8 z = {{0}}, uint8 lo = {{0}}, uint8 hi = {{15}}, uint8 wide = {{200}} {constants}>
        {{ {body or "y = Relu(x)"} }}"""
    return onnx.parser.parse_model(text).SerializeToString()


CLIPPED = model("q = QuantizeLinear(x, s, z) c = Clip(q, lo, hi) y = DequantizeLinear(c, s, z)")


def test_a_ratio_is_taken_round_by_round():
    slow, fast = Timing(milliseconds=(2.0, 40.0, 6.0)), Timing(milliseconds=(1.0, 10.0, 2.0))
    assert (slow.median, fast.median) == (6.0, 2.0)
    ratio = slow.ratio(fast)
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.5, 3.5)


def test_a_pair_is_measured_on_the_batch():
    pair = measure_latency(model(), CLIPPED, X, seconds=0)
    assert (pair.batch, pair.threads, pair.clips) == (2, 1, 1)
    assert pair.clip_ratio is not None
    for number in (pair.float_ms, pair.quantized_ms, pair.ratio.median, pair.clip_ratio.median):
        assert math.isfinite(number)
        assert number > 0
    assert pair.ratio.low <= pair.ratio.median <= pair.ratio.high


def test_a_file_without_low_activations_has_nothing_to_be_compared_with(tmp_path):
    wide = model("q = QuantizeLinear(x, s, z) c = Clip(q, lo, wide) y = DequantizeLinear(c, s, z)")
    (tmp_path / "wide.onnx").write_bytes(wide)
    for quantized in (wide, tmp_path / "wide.onnx", model("y = Clip(x, s, s)")):
        pair = measure_latency(model(), quantized, X, threads=2, seconds=0)
        assert (pair.clips, pair.clip_ratio, pair.threads) == (0, None, 2)


def test_only_the_clips_of_low_activations_are_left_out():
    body = """q = QuantizeLinear(x, s, z) c = Clip(q, lo, hi) p = MaxPool <kernel_shape=[1,1]> (c)
        d = DequantizeLinear(p, s, z) e = Clip(d, s) r = QuantizeLinear(e, s, z) f = Clip(r, lo, wide)
        y = DequantizeLinear(f, s, z)"""
    content, clips = _with_wide_activations(model(body))
    assert clips == 1
    assert content is not None
    left = onnx.load_model_from_string(content).graph
    assert [node.op_type for node in left.node].count("Clip") == 2
    assert next(node for node in left.node if node.op_type == "MaxPool").input[0] == "q"
    x = np.full((1, 3, 4, 4), 9.96, np.float32)  # 100 in 8 bits, 15 in 4
    assert Session(content).run(x)[0].max() == pytest.approx(10.0)
    assert Session(model(body)).run(x)[0].max() == pytest.approx(1.5)


@pytest.mark.parametrize("rounds", [None, 1, 7])
def test_each_session_has_a_number_a_round(rounds):
    sessions = [Session(model(), threads=1), Session(CLIPPED, threads=1)]
    timings = time_sessions(sessions, X, threads=1, rounds=rounds, least=0, seconds=0)
    assert [len(timing.milliseconds) for timing in timings] == [rounds or 3] * 2
    assert all(np.mean(timing.calls) == pytest.approx(np.mean(timing.milliseconds)) for timing in timings)


def test_a_difference_is_shown_where_the_quartiles_are_on_one_side_of_1():
    one = Timing(milliseconds=(1.0, 1.0, 1.0))
    assert Timing(milliseconds=(0.9, 1.0, 1.3)).ratio(one).spans_one
    assert not Timing(milliseconds=(1.1, 1.2, 1.3)).ratio(one).spans_one


def test_files_are_timed_round_by_round(tmp_path):
    (tmp_path / "a.onnx").write_bytes(model())
    timings = time_files([tmp_path / "a.onnx", tmp_path / "a.onnx"], X, threads=1, rounds=2, least=0)
    assert [len(timing.milliseconds) for timing in timings] == [2, 2]


def test_a_batch_that_does_not_fit():
    with pytest.raises(ValidationError, match=r"batch of shape \[1, 7\]"):
        measure_latency(model(), CLIPPED, np.zeros((1, 7), np.float32), seconds=0)


def test_a_clip_that_is_an_output_stays():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float[N,3,4,4] y, uint8[N,3,4,4] c)
        <float s = {0.1}, uint8 z = {0}, uint8 lo = {0}, uint8 hi = {15}>
        { q = QuantizeLinear(x, s, z) c = Clip(q, lo, hi) y = DequantizeLinear(c, s, z) }"""
    pair = measure_latency(model(), onnx.parser.parse_model(text).SerializeToString(), X, seconds=0)
    assert (pair.clips, pair.clip_ratio) == (0, None)


def test_without_its_clips_a_file_may_not_run(monkeypatch, caplog):
    monkeypatch.setattr("pdq_export.validate.latency._with_wide_activations", lambda _: (model("y = Neg(nothing)"), 1))
    pair = measure_latency(model(), CLIPPED, X, seconds=0)
    assert (pair.clips, pair.clip_ratio) == (1, None)
    assert "what activations below 8 bits cost is not measured" in caplog.text
    with pytest.raises(ValidationError):
        measure_latency(model(), model("y = Neg(nothing)"), X, seconds=0)
