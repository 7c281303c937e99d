"""``--bits auto --max-drop``: the smallest file that keeps it, on images held back, end to end on a toy network."""

import dataclasses
import gc
import json
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export.commands import calibrating, find_bits, finishing
from pdq_export.commands import quantize as stages
from pdq_export.commands.quantize import quantize
from pdq_export.config.record import EQUALIZED, MADE_BY
from pdq_export.errors import OptionError
from pdq_export.search.goal import Goal
from pdq_export.validate import Session
from pdq_export.work import PlannedModel, Work

from ..onnx_text import fill, name_nodes, parse

P = "<pads = [1, 1, 1, 1]>"
BODY = f"""c1 = Conv {P} (image, w1) a1 = Relu(c1) c2 = Conv {P} (a1, w2) s = Add(c2, a1) z = Relu(s)
    c3 = Conv {P} (z, w3) v = Relu(c3) p = GlobalAveragePool(v) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
SHAPES = {"w1": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (32, 32, 3, 3), "w4": (5, 32)}
IMAGES = np.random.default_rng(3).normal(size=(160, 3, 8, 8)).astype(np.float32)
OPTIONS: dict[str, Any] = {"method": "nearest", "device": "cpu", "samples": 24, "reduce_range": True}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files, labelled as the network has it but for a tenth."""
    monkeypatch.chdir(tmp_path)
    model = name_nodes(fill(parse(BODY), SHAPES))
    onnx.save(model, "model.onnx")
    labels = Session(model.SerializeToString()).run(IMAGES)[0].argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 5
    np.savez("calib.npz", images=IMAGES[:100], labels=labels[:100])
    np.savez("plain.npz", images=IMAGES[:100])
    np.savez("eval.npz", images=IMAGES[96:], labels=labels[96:])  # four of them are among those of calibration
    return {"calib": "calib.npz", "eval": "eval.npz", **OPTIONS}


def run(fields: dict[str, Any], **more: Any) -> Any:
    asked = {"bits": "auto", "max_drop": 20, "output": "a.onnx", "overwrite": True}
    return quantize("model.onnx", **{**asked, **fields, **more})


def test_finds_a_file_and_makes_it_again(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = run(data, report="a.json")
    report = json.loads(Path("a.json").read_text())
    steps = report["search"]["steps"]
    assert report["search"]["budget"] == "--max-drop 20"
    assert 1 <= len(steps) <= 3
    assert [step["images"] for step in steps] == [72] * len(steps)  # of 100, without 24 and those of --eval
    held = [step["size"] for step in steps if step["held"]]
    assert report["search"]["chosen"]["size"] == min(held)
    assert abs(report["quantized"]["size"] - min(held)) < 0.02 * min(held)
    assert [gate["option"] for gate in report["gates"]] == ["--max-drop"]
    assert report["settings"]["held_back"].startswith("calib.npz: 72 images")
    assert report["settings"]["calibration"].startswith("calib.npz: 24 images")
    assert report["settings"]["evaluation_images_seen_in_calibration"] == 0
    assert "at most 3 calibrations, each judged on 72 images held back" in caplog.text
    assert "of them, at most" in caplog.text  # seconds
    quantize("model.onnx", bits_from="a.bits.toml", output="again.onnx", **data)
    assert Path("again.onnx").read_bytes() == Path("a.onnx").read_bytes()
    assert [dataclasses.asdict(one) for one in found.report.search.steps] == steps


def test_what_channels_were_before_is_not_held_while_blocks_learn(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file's estimated size has counted the names of the tensors whose channels are in one range."""
    body = "c = Conv (image, w) r = Relu(c) d = Conv <group = 8> (r, v) p = GlobalAveragePool(d) y = Flatten(p)"
    onnx.save(name_nodes(fill(parse(body), {"w": (8, 3, 1, 1), "v": (8, 1, 3, 3)})), "model.onnx")
    networks: list[Any] = []
    sized: list[Any] = []
    begin, calibrate, size = stages.begin_work, calibrating.calibrate, find_bits.placeholder_size

    def begun(*arguments: Any) -> Work:
        work = begin(*arguments)
        networks.append(weakref.ref(work.network))
        return work

    def calibrated(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert networks.pop()() is None
        return calibrate(*arguments, **options)

    def size_of(planned: PlannedModel, target: str, metadata: Mapping[str, str]) -> Any:
        sized.append(json.loads(metadata[MADE_BY])[EQUALIZED])
        return size(planned, target, metadata)

    monkeypatch.setattr(stages, "begin_work", begun)
    monkeypatch.setattr(calibrating, "calibrate", calibrated)
    monkeypatch.setattr(find_bits, "placeholder_size", size_of)
    found = run({**data, "method": "adaround", "iters": 1, "batch_size": 4, "allowed_bits": "4,8"})
    assert found.report.settings["equalized_tensors"] == ["r"]
    assert sized
    assert all(names == ["r"] for names in sized)


def test_a_looser_limit_is_no_larger(data: dict[str, Any]) -> None:
    sizes = [run(data, max_drop=limit).report.quantized.size for limit in (10, 60)]
    assert sizes[1] < sizes[0]


def test_goes_on_where_it_was(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**data, "method": "adaround", "iters": 2, "batch_size": 4, "work_dir": tmp_path / "runs"}
    run(fields)
    expected = Path("a.onnx").read_bytes()

    def interrupts(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finishing, "_export", interrupts)  # all calibrations are finished
        with pytest.raises(KeyboardInterrupt):
            run(fields)
    blocks: list[str] = []

    def watch(at: Any) -> None:
        if at.block is not None and at.block.step:
            blocks.append(at.block.block)

    run(fields, resume=True, progress=watch)
    assert Path("a.onnx").read_bytes() == expected
    assert not blocks


def test_without_labels_agreement_is_the_bound(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    found = run({**data, "calib": "plain.npz"})
    assert "plain.npz has no labels: of --max-drop the images held back can tell no more than a bound" in caplog.text
    assert all(step.drop >= 0 and step.bounds for step in found.report.search.steps)


def test_what_cannot_be_kept_is_told(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    found = run(data, max_drop=2, allowed_bits="2", first_last="2/2")
    assert len(found.report.search.steps) == 1  # nothing else is to be had
    assert "--max-drop 2: none of 1 calibrations keeps it on the images held back" in caplog.text
    assert "give more images in --calib, or more steps (--iters), or a higher limit" in caplog.text
    assert [gate.option for gate in found.report.gates] == ["--max-drop"]


def test_what_is_within_the_limit_but_not_surely_is_told(
    data: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Goal, "aim", lambda self, error: -100.0)
    (step,) = run(data, max_drop=90, allowed_bits="4").report.search.steps
    assert f"the one that is written loses {step.drop:.2f} points" in caplog.text
    assert "within the limit, but expected -100.00 or less; give more images in --calib" in caplog.text


def test_fewer_images_are_part_of_what_the_file_says(data: dict[str, Any]) -> None:
    found = run({**data, "samples": 256})
    assert found.report.settings["samples"] == 75
    quantize("model.onnx", bits_from="a.bits.toml", output="again.onnx", **{**data, "samples": 75})
    assert Path("again.onnx").read_bytes() == Path("a.onnx").read_bytes()


def test_beside_a_budget_it_is_a_gate_alone(data: dict[str, Any]) -> None:
    found = run(data, max_size=0.2)
    assert found.report.search.steps == ()
    assert "held_back" not in found.report.settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval": None}, "--max-drop: there are no evaluation images"),
        ({"calib": "synthetic"}, "synthetic ones tell nothing of accuracy; give --calib images, or a budget"),
        ({"max_drop": None}, r"there is no budget; expected .*, or --max-drop 1 \(points of top-1"),
    ],
)
def test_what_is_refused(data: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run({**data, **fields})


def test_few_images_are_refused_before_calibration(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is proposed is taken."""
    message = "36 images of calib.npz are held back to judge files by, and one of them is 2.78 points; expected 100"
    with monkeypatch.context() as patched:
        patched.setattr(stages.Finder, "of", lambda *_: pytest.fail("it has measured"))
        with pytest.raises(OptionError, match=message) as told:
            run({**data, "samples": 60}, max_drop=1)
    allowed = float(str(told.value).partition("allow --max-drop ")[2].partition(",")[0])
    (step, *_) = run({**data, "samples": 60}, max_drop=allowed, allowed_bits="8").report.search.steps
    with pytest.raises(OptionError, match=r"calibrate on fewer \(--samples 46\)"):
        run({**data, "samples": 60}, max_drop=2)
    assert run({**data, "samples": 46}, max_drop=2, allowed_bits="8").report.search.steps[0].images == 50
    assert (step.images, step.drop) == (36, 0)
    assert step.error == pytest.approx(100 / 36)  # none has changed, which does not say that none can
    assert not step.bounds
