import numpy as np
import onnx
import pytest

from pdq_export.errors import ValidationError
from pdq_export.validate import Comparison, count_kernels, needed_config, validate
from pdq_export.validate.runtime import WITHOUT_FUSION, with_outputs

from ..export import toy_networks as nets
from ..export.test_layouts_agree import export

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((10, 6), dtype=np.float32)
LABELS = RNG.integers(0, 7, 10)
WEIGHT = RNG.standard_normal((6, 7), dtype=np.float32)


def model(weight: np.ndarray) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,7] scores, float[N,7] shares) {
            scores = MatMul(x, w) shares = Softmax(scores)
        }"""
    )
    parsed.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return parsed


def simulate(batch: np.ndarray) -> list[np.ndarray]:
    scores = batch @ np.round(WEIGHT, 1)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return [scores, shares / shares.sum(1, keepdims=True)]


def check(*, images=IMAGES, batch_size=16, progress=None, **changes):
    comparison = {
        "original": model(WEIGHT),
        "quantized": model(np.round(WEIGHT, 1)),
        "batches": lambda: (images[start : start + batch_size] for start in range(0, len(images), batch_size)),
        "labels": LABELS,
        "simulate": simulate,
        **changes,
    }
    for name in ("original", "quantized"):
        comparison[name] = comparison[name].SerializeToString()
    return validate(Comparison(**comparison), progress=progress)


def test_everything_is_measured():
    report = check()
    assert report.images == 10
    assert [output.name for output in report.outputs] == ["scores", "shares"]
    scores = report.outputs[0]
    assert scores.quantized_simulated is not None
    assert scores.quantized_simulated.relative_error < 1e-6
    assert scores.quantized_simulated.argmax_agreement == 1.0
    assert scores.simulated_float is not None
    assert scores.quantized_float.sqnr_db == pytest.approx(scores.simulated_float.sqnr_db, rel=1e-4)
    expected = (np.argmax(IMAGES @ WEIGHT, 1) == LABELS).mean()
    assert report.float_accuracy is not None
    assert report.float_accuracy.top1 == pytest.approx(expected)
    assert report.quantized_accuracy == report.simulated_accuracy
    assert report.kernels.floating == {"MatMul": 1}


def test_without_labels_and_simulation():
    report = check(labels=None, simulate=None)
    assert report.float_accuracy is report.quantized_accuracy is report.simulated_accuracy is None
    assert report.outputs[0].quantized_simulated is report.outputs[0].simulated_float is None


def test_an_inner_tensor_is_compared_in_place_of_the_outputs():
    models = [model(WEIGHT), model(np.round(WEIGHT, 1))]
    for changed in models:
        del changed.graph.output[0]
    report = check(
        original=models[0], quantized=models[1], compared=["scores"], simulate=lambda batch: simulate(batch)[:1]
    )
    everything = check()
    assert report.outputs == everything.outputs[:1]
    assert report.quantized_accuracy == everything.quantized_accuracy  # of the first output, the shares
    assert report.simulated_accuracy is None


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_the_batch_size_does_not_matter(size):
    whole = check()
    parts = check(batch_size=size)
    assert parts.images == 10
    assert parts.quantized_accuracy == whole.quantized_accuracy
    assert parts.outputs[0].quantized_float.sqnr_db == pytest.approx(whole.outputs[0].quantized_float.sqnr_db)


def test_progress_counts_images():
    seen: list[int] = []
    check(batch_size=4, progress=seen.append)
    assert seen == [4, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:0], "labels": None}, "there is no image"),
        ({"labels": LABELS[:7]}, "for 7|7 labels|for 0 labels"),
        ({"labels": np.concatenate([LABELS, LABELS])}, "20 labels for 10 images"),
        ({"labels": np.full(10, 9)}, "labels span"),
        ({"simulate": lambda batch: simulate(batch)[:1]}, "unequal outputs"),
        ({"simulate": lambda batch: [2 * np.full((10, 7), np.nan)] * 2}, "output 'scores'.*NaN"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValidationError, match=message):
        check(**changes)


def test_options_and_kernels_are_those_of_the_file_itself() -> None:
    """Without fusions onnxruntime loads this file, and with another output it does so by default."""
    quantized = export("chain", "4/4", "native").SerializeToString()
    assert needed_config(quantized) == WITHOUT_FUSION
    assert needed_config(with_outputs(quantized, ["p0"])) == {}
    comparison = Comparison(
        original=nets.chain().SerializeToString(),
        quantized=quantized,
        batches=lambda: [nets.images((2, 3, 12, 12))],
        compared=["p0"],
    )
    found = validate(comparison)
    assert found.session_config == WITHOUT_FUSION
    assert found.kernels == count_kernels(quantized, WITHOUT_FUSION)
