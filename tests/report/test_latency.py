"""What latency is told to mean."""

import dataclasses
import shlex

import numpy as np
import pytest

import pdq_export
from pdq_export.report.latency import is_slower, latency_note
from pdq_export.validate import KernelCount, LatencyPair, Spread

from ..onnx_text import fill, name_nodes, parse

FAST = {"method": "nearest", "samples": 8, "correction_iters": 0}


def pair(ratio: float = 0.7, cost: float | None = None) -> LatencyPair:
    ratios = [None if x is None else Spread(median=x, low=x - 0.01, high=x + 0.01) for x in (ratio, cost)]
    return LatencyPair(
        batch=1, threads=1, float_ms=1.0, quantized_ms=ratio, ratio=ratios[0], clips=3, clip_ratio=ratios[1]
    )


@pytest.mark.parametrize(
    ("latency", "settings", "told"),
    [
        (pair(), {"bits": "4/4"}, None),
        (pair(cost=1.01), {"bits": "4/4"}, None),  # within what measurements scatter by
        (pair(cost=1.09), {"bits": "4/4"}, "cost 9 % more time (3 Clips)"),
        (pair(cost=1.09), {"bits": "2/3", "target": "qcdq"}, "take --bits 2/8"),
        (
            pair(1.3),
            {"bits": "4/8"},
            "onnxruntime takes × 1.30 of FP32's time (quartiles 1.29 to 1.31) for the file at batch 1",
        ),
        (pair(1.3, cost=1.09), {"bits": "4/4"}, "at batch 1; activations below 8 bits cost 9 % more time"),
        (pair(1.3), {"bits": "4/4", "target": "native"}, "for the file at batch 1; --target ort writes"),
    ],
)
def test_time_that_gains_nothing_is_told(latency: LatencyPair, settings: dict[str, str], told: str | None) -> None:
    note = latency_note(latency, settings)
    assert note is None if told is None else told in str(note)


@pytest.mark.parametrize(("load", "known"), [(3.5, False), (2.0, True), (None, True)])
def test_what_a_busy_machine_measures_is_no_finding(load: float | None, known: bool) -> None:
    latency = dataclasses.replace(pair(1.41, cost=1.4), load=load, cores=2)
    note = str(latency_note(latency, {"bits": "4/4"}))
    assert is_slower(latency) == ("onnxruntime takes × 1.41" in note) == ("Clips" in note) == known
    assert ("measured while the machine was busy (load 3.5 of 2 cores)" in note) != known
    faster = dataclasses.replace(pair(0.9), load=load, cores=2)
    assert latency_note(faster, {"bits": "4/4"}) is None


def test_nodes_in_float_are_told_of_a_slow_file_alone() -> None:
    kernels = KernelCount(integer={"QLinearConv": 3}, floating={}, floating_nodes=(), between_pairs={"Resize": 2})
    assert latency_note(pair(), {"bits": "4/8"}, kernels) is None
    assert "2 Resize run in float between integers" in str(latency_note(pair(1.3), {"bits": "4/8"}, kernels))


@pytest.mark.parametrize(
    ("ratio", "target", "first"),
    [(0.7, "ort", {}), (1.3, "qcdq", {}), (1.3, "ort", {"weight_bits": None}), (1.3, "ort", {"op_type": "Gemm"})],
)
def test_the_first_layer_is_named_of_slow_files_whose_first_convolution_is_quantized(
    ratio: float, target: str, first: dict[str, object]
) -> None:
    layer = {"node": "/0/Conv", "op_type": "Conv", "weight_bits": 8}
    told = "--exclude '^/0/Conv$'"
    assert str(latency_note(pair(1.3), {"target": "ort"}, layers=[layer])).endswith(told)
    assert told not in str(latency_note(pair(ratio), {"target": target}, layers=[{**layer, **first}]))


def test_a_slow_file_is_warned_of_and_a_fast_one_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = name_nodes(
        fill(
            parse("c = Conv(image, w) r = Relu(c) d = Conv(r, u) y = Relu(d)", outputs="float[N,4,H,W] y"),
            {"w": (4, 3, 3, 3), "u": (4, 4, 1, 1)},
        )
    )
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    for ratio in (0.8, 1.3):
        caplog.clear()
        monkeypatch.setattr("pdq_export.validate.latency.measure_latency", lambda *_, ratio=ratio, **__: pair(ratio))
        pdq_export.quantize(model, calib=images, **FAST)
        assert ("onnxruntime takes × 1.30 of FP32's time" in caplog.text) == (ratio > 1)
    _, pattern = shlex.split(caplog.records[-1].getMessage().rpartition(": ")[2])
    report = pdq_export.quantize(model, calib=images, exclude=[pattern], **FAST).report
    assert [layer["excluded"] for layer in report.layers] == [True, False]
    assert "--exclude" not in str(report.latency_note)


@pytest.mark.parametrize(
    "asked",
    [
        {"bits": "4/4"},
        {"bits": "2/8", "layer_bits": ["one$|a b=4/3", "t|x y=4/8"]},
        {"bits": "4/2", "first_last": "8/6", "layer_bits": ["one$=3/7"]},
    ],
)
def test_with_the_options_that_it_names_nothing_is_clipped(asked: dict[str, object]) -> None:
    model = name_nodes(
        fill(
            parse(
                "c = Conv(image, w) r = Relu(c) one = Conv(r, u) s = Relu(one) t = Conv(s, u) z = Relu(t) "
                "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB = 1>(f, v)"
            ),
            {"w": (4, 3, 3, 3), "v": (5, 4), "u": (4, 4, 1, 1)},
        )
    )
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    report = pdq_export.quantize(model, calib=images, **asked, **FAST).report
    assert report.latency is not None
    assert report.latency.clips > 0
    note = latency_note(pair(cost=1.5), report.settings)
    words = shlex.split(str(note).rpartition("take ")[2])
    wide: dict[str, object] = {**asked, "layer_bits": []}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        wide[name] = [*wide["layer_bits"], value] if name == "layer_bits" else value
    again = pdq_export.quantize(model, calib=images, **wide, **FAST).report
    assert again.latency is not None
    assert (again.latency.clips, again.latency.clip_ratio) == (0, None)
