"""PD-Quant over a whole small network: what is learned, what the simulation computes, what each part changes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from pdq_export.calibrate import BlockProgress, Calibrated, initialize, teacher
from pdq_export.calibrate.correction import estimate_statistics
from pdq_export.calibrate.integer import IntegerLayer
from pdq_export.calibrate.quantizers import ActivationQuantizer, SoftRounding, WeightQuantizer, weight_qparams
from pdq_export.calibrate.reconstruct import BlockProblem, BlockRows, reconstruct
from pdq_export.calibrate.schedule import draw_batches
from pdq_export.calibrate.step import BlockModel
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.subgraph import extract
from pdq_export.config.method import CalibrationOptions
from pdq_export.errors import CalibrationError
from pdq_export.frontend import import_model
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.numerics.search import choose_activation_qparams
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import QuantizedTensor, QuantizedTensors, Role

from .networks import CLASSES, WIDTH, Example, calibrate_there, residual

# The last block has no activation to learn a scale of, so without rounding there is nothing to differentiate.
TINY = CalibrationOptions(iters=20, samples=64, correction_iters=3, batch_size=16)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("calibrates_on")


def run(
    example: Example,
    *,
    images: torch.Tensor | None = None,
    statistics: Mapping[str, Any] | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
    **changes: Any,
) -> Calibrated:
    return calibrate_there(
        example.network,
        example.plan,
        example.prepared.statistics if statistics is None else statistics,
        [example.images if images is None else images],
        dataclasses.replace(TINY, **changes),
        progress=progress,
    )


@pytest.fixture(scope="module", params=["4/4", "2/2"])
def calibrated(request: pytest.FixtureRequest, calibrates_on: torch.device) -> tuple[Example, Calibrated]:
    example = residual(request.param)
    return example, run(example)


def weights(example: Example, tensors: QuantizedTensors) -> dict[str, tuple[np.ndarray, QuantizedTensor]]:
    """The FP32 value and the quantization of every weight."""
    index = GraphIndex(example.prepared.model)
    return {name: (index.constant(name), q) for name, q in tensors.items() if q.point.role is Role.WEIGHT}


def along(values: np.ndarray, q: QuantizedTensor) -> np.ndarray:
    shape = [1] * q.integers.ndim
    shape[q.point.axis] = -1
    return values.reshape(shape)


def nearest(weight: np.ndarray, q: QuantizedTensor) -> np.ndarray:
    ratio = np.rint(weight / along(q.scale, q)) + along(q.zero_point, q)
    return np.clip(ratio, q.point.qmin, q.point.qmax)


def same(first: QuantizedTensors, second: QuantizedTensors) -> bool:
    assert first.keys() == second.keys()
    return all(
        np.array_equal(a.scale, b.scale)
        and np.array_equal(a.zero_point, b.zero_point)
        and (a.integers is None or np.array_equal(a.integers, b.integers))
        for a, b in ((first[name], second[name]) for name in first)
    )


def test_every_point_is_well_formed(calibrated: tuple[Example, Calibrated]) -> None:
    example, result = calibrated
    index = GraphIndex(example.prepared.model)
    assert list(result.tensors) == list(example.plan.points)
    for name, point in example.plan.points.items():
        q = result.tensors[name]
        assert q.point == point
        assert (q.scale.dtype, q.zero_point.dtype) == (np.float32, np.int32)
        assert np.isfinite(q.scale).all()
        assert (q.scale > 0).all()
        assert (point.qmin <= q.zero_point).all()
        assert (q.zero_point <= point.qmax).all()
        if point.role is not Role.WEIGHT:
            assert q.scale.shape == q.zero_point.shape == ()
            assert q.integers is None
            continue
        shape = index.constant(name).shape
        assert q.scale.shape == q.zero_point.shape == (shape[point.axis],)
        assert q.integers.shape == shape
        assert q.integers.dtype == np.int16
        assert q.integers.min() >= point.qmin
        assert q.integers.max() <= point.qmax
        if point.symmetric:
            assert not q.zero_point.any()


def test_rounding_is_learned_and_goes_up_or_down(calibrated: tuple[Example, Calibrated]) -> None:
    example, result = calibrated
    moved = 0
    for weight, q in weights(example, result.tensors).values():
        exact = weight / along(q.scale, q) + along(q.zero_point, q)
        inside = (exact >= q.point.qmin) & (exact <= q.point.qmax)
        assert np.abs(q.integers - exact)[inside].max() <= 1 + 1e-5
        assert (q.integers[exact < q.point.qmin] == q.point.qmin).all()
        assert (q.integers[exact > q.point.qmax] == q.point.qmax).all()
        moved += int((q.integers != nearest(weight, q)).sum())
    assert moved > 0


def by_hand(example: Example, tensors: QuantizedTensors, x: torch.Tensor) -> torch.Tensor:
    """The residual network, every formula written out."""
    index = GraphIndex(example.prepared.model)
    layers = {layer.weight: layer for layer in example.plan.layers}

    def fake(name: str, value: torch.Tensor) -> torch.Tensor:
        q = tensors[name]
        integers = torch.round(value / float(q.scale)) + int(q.zero_point)
        return (integers.clamp(q.point.qmin, q.point.qmax) - int(q.zero_point)) * float(q.scale)

    def parameters(name: str, source: str) -> tuple[torch.Tensor, torch.Tensor]:
        q = tensors[name]
        weight = (q.integers - along(q.zero_point, q)).astype(np.float32) * along(q.scale, q)
        unit = tensors[source].scale * q.scale
        bias = np.rint(index.constant(layers[name].bias) / unit).astype(np.float32) * unit
        return torch.from_numpy(weight), torch.from_numpy(bias)

    image = fake("image", x)
    a1 = fake("a1", F.conv2d(image, *parameters("w1", "image"), padding=1).relu())
    a2 = fake("a2", F.conv2d(a1, *parameters("w2", "a1"), padding=1).relu())
    n3 = fake("n3", F.conv2d(a2, *parameters("w3", "a2"), padding=1))
    a3 = fake("a3", (n3 + a1).relu())
    p = fake("p", a3.mean((2, 3)))
    return F.linear(p, *parameters("w4", "p"))


def test_the_simulation_is_fake_quantization_and_nothing_else(calibrated: tuple[Example, Calibrated]) -> None:
    example, result = calibrated
    with torch.no_grad():
        (simulated,) = result.simulation(example.images)
    # A float sum in another order may move a value over a rounding boundary, in a logit or two.
    differences = (simulated - by_hand(example, result.tensors, example.images)).abs().amax(1)
    assert simulated.shape == (len(example.images), CLASSES)
    assert (differences > 1e-4).sum() <= 2
    assert not any(parameter.requires_grad for parameter in result.simulation.parameters())


def test_the_seed_decides() -> None:
    example = residual("4/4")
    first, again, other = run(example), run(example), run(example, seed=1)
    assert same(first.tensors, again.tensors)
    assert not same(first.tensors, other.tensors)


def test_the_global_generator_is_left_alone() -> None:
    example = residual("4/4")
    state = torch.get_rng_state()
    first = run(example, iters=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    assert same(first.tensors, run(example, iters=4).tensors)


@pytest.mark.parametrize("bits", ["4/4", "2/2", "3/8", "8/2"])
def test_no_iterations_are_rounding_to_nearest(bits: str) -> None:
    example = residual(bits)
    calls: list[BlockProgress] = []
    result = run(example, iters=0, progress=steps_into(calls))
    for weight, q in weights(example, result.tensors).values():
        np.testing.assert_array_equal(q.integers, nearest(weight, q))
    assert calls == []
    assert same(result.tensors, run(example, iters=0, seed=7).tensors)


@pytest.fixture(scope="module")
def complete() -> tuple[Example, Calibrated]:
    """The whole method at 2/2, where every part has something to do."""
    example = residual("2/2")
    return example, run(example)


@pytest.mark.parametrize(
    "change",
    [
        {"learn_rounding": False},
        {"learn_scales": False},
        {"prediction_difference": False},
        {"keep_probability": 0.0},
        {"keep_probability": 1.0},
        {"mix_probability": 0.0},
        {"mix_probability": 1.0},
        {"correction_iters": 0},
    ],
    ids=lambda change: "{}={}".format(*next(iter(change.items()))),
)
def test_each_part_switches_off_by_itself(complete: tuple[Example, Calibrated], change: dict[str, Any]) -> None:
    example, whole = complete
    result = run(example, **change)
    assert not same(result.tensors, whole.tensors)
    with torch.no_grad():
        assert result.simulation(example.images)[0].isfinite().all()


def test_what_is_not_learned_stays_as_it_was_searched(complete: tuple[Example, Calibrated]) -> None:
    example, whole = complete
    searched = run(example, iters=0).tensors
    # The first block sees the same input whatever is learned, so its search gives the same scale.
    assert run(example, learn_scales=False).tensors["a1"].scale == searched["a1"].scale
    assert whole.tensors["a1"].scale != searched["a1"].scale
    assert whole.tensors["image"].scale == searched["image"].scale  # a carrier, never learned


def test_scales_are_learned_without_rounding() -> None:
    example = residual("2/2")
    searched = run(example, iters=0).tensors
    tensors = run(example, learn_rounding=False).tensors
    for weight, q in weights(example, tensors).values():
        np.testing.assert_array_equal(q.integers, nearest(weight, q))
    assert tensors["a1"].scale != searched["a1"].scale


def test_nothing_to_learn_is_no_loop() -> None:
    example = residual("2/2")
    calls: list[BlockProgress] = []
    result = run(example, learn_rounding=False, learn_scales=False, progress=steps_into(calls))
    assert calls == []
    assert same(result.tensors, run(example, iters=0).tensors)


def test_reconstruction_beats_rounding_to_nearest() -> None:
    example = residual("2/2")
    block = next(block for block in example.plan.blocks if len(block.layers) == 2)
    network, points = example.network, example.plan.points
    (x,) = extract(network, ["image"], block.inputs)(example.images)
    names = [*block.outputs, *(layer.input for layer in block.layers if layer.input not in block.inputs)]
    with torch.no_grad():
        values = dict(zip(names, extract(network, block.inputs, names)(x), strict=True))
    activations = {
        name: ActivationQuantizer(points[name], choose_activation_qparams(value, points[name].bits))
        for name, value in values.items()
    }
    soft, plain = {}, {}
    for layer in block.layers:
        weight = getattr(network, next(k for k, v in network.meta["tensors"].items() if v == layer.weight))
        qparams = weight_qparams(weight, points[layer.weight])
        soft[layer.weight] = SoftRounding(points[layer.weight], weight, qparams)
        plain[layer.weight] = WeightQuantizer.nearest(points[layer.weight], weight, qparams)

    def student(kind: Mapping[str, torch.nn.Module]) -> torch.fx.GraphModule:
        return extract(network, block.inputs, block.outputs, quantizers={**kind, **activations})

    @torch.no_grad()
    def error(kind: Mapping[str, torch.nn.Module]) -> float:
        return F.mse_loss(student(kind)(x)[0], values[block.outputs[0]]).item()

    before = error(plain)
    losses: list[float] = []
    model = BlockModel(
        student=student(soft),
        rest=None,
        class_axes=[],
        weights=list(soft.values()),
        masks=torch.Generator().manual_seed(1),
    )
    store = Store(CPU)
    inputs, wanted = [store.adopt(x)], [store.adopt(values[name]) for name in block.outputs]
    rows = BlockRows(quantized=inputs, corrected=inputs, wanted=wanted)
    problem = BlockProblem(name=block.name, model=model, rows=rows, scales=[])
    options = dataclasses.replace(TINY, iters=200, rounding_lr=1e-2, batch_size=32)
    batches = draw_batches(len(x), 32, 200, torch.Generator().manual_seed(0))
    errors = reconstruct(problem, options, batches, lambda _, loss: losses.append(loss))
    assert len(errors) == 200
    assert error({name: weight.harden() for name, weight in soft.items()}) < 0.8 * before
    assert all(math.isfinite(loss) for loss in losses)


def steps_into(calls: list[BlockProgress]) -> Callable[[BlockProgress], None]:
    """Keeps what is told of steps, not of what comes before and after them."""
    return lambda at: None if at.phase else calls.append(at)


def test_something_moves_before_the_first_step() -> None:
    calls: list[BlockProgress] = []
    run(residual(), iters=2, correction_iters=1, compensate_rounding=True, progress=calls.append)
    assert calls[0].phase.startswith("FP32 network, ")
    assert calls[0].phase.endswith(" images")
    told = {"".join(c for c in at.phase if not c.isdigit()) for at in calls if at.index == 0}
    assert len(told) == 9  # FP32 network, activation and weight scales, correction, targets, steps, rounding, passes
    assert [(at.index, at.step) for at in calls] == sorted((at.index, at.step) for at in calls)
    after = [at.phase for at in calls if at.index == 0 and at.step == at.steps and at.phase]
    assert [phase.partition(",")[0] for phase in after[-2:]] == ["FP32 pass", "quantized pass"]


def test_blocks_of_many_bits_take_a_share_of_the_steps() -> None:
    example = residual("2/2")
    calls: list[BlockProgress] = []
    run(example, iters=8, iters_share=0.25, correction_iters=0, progress=steps_into(calls))
    steps = {at.index: at.steps for at in calls}
    # The last layer has 8 bits and no activation behind it; the first one's activation has 2.
    assert list(steps.values()) == [8] * (len(example.plan.blocks) - 1) + [2]
    assert all(at.step <= at.steps for at in calls)
    assert calls[-1].step == 2


@pytest.mark.parametrize(("bits", "taken"), [("2/2", 6), ("4/4", 3)])
def test_so_does_distribution_correction(bits: str, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected: list[int] = []

    def correct(outputs: Any, statistics: Any, x: torch.Tensor, options: CalibrationOptions, **_: Any) -> torch.Tensor:
        corrected.append(options.correction_iters)
        return x

    monkeypatch.setattr(teacher, "correct_distribution", correct)
    run(residual(bits), iters=1, correction_iters=6, correction_share=0.5)
    assert set(corrected) == {taken}


@pytest.mark.parametrize(("bits", "share"), [("2/2", 0.01), ("4/4", 0.03 / 15)])
def test_the_end_of_a_range_has_one_rate(bits: str, share: float) -> None:
    example = residual(bits)
    tensor = example.plan.blocks[0].outputs[0]
    before, after = (
        run(example, iters=iters, range_lr=0.03, correction_iters=0).tensors[tensor].scale for iters in (0, 1)
    )
    assert abs(after / before - 1) == pytest.approx(share, rel=1e-3)  # a first step of Adam is as long as its rate


def test_progress() -> None:
    example = residual("4/4")
    calls: list[BlockProgress] = []
    run(example, iters=30, progress=steps_into(calls))
    blocks = example.plan.blocks
    assert len(blocks) >= 3
    assert [block.name for block in blocks] == list(dict.fromkeys(call.block for call in calls))
    for call in calls:
        assert (call.count, call.steps) == (len(blocks), 30)
        assert blocks[call.index].name == call.block
        assert math.isfinite(call.loss)
    for position in range(len(blocks)):
        assert [call.step for call in calls if call.index == position] == [1, 21, 30]
    assert [call.index for call in calls] == sorted(call.index for call in calls)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="learned"),
        pytest.param({"iters": 0}, id="nearest"),
        pytest.param({"search_samples": 16}, id="late"),
    ],
)
def test_values_that_are_not_finite(value: float, change: dict[str, int]) -> None:
    """Also where the scale search does not see the image."""
    example = residual("4/4")
    images = example.images.clone()
    images[40, 1, 2, 3] = value
    with pytest.raises(CalibrationError, match="finite"):
        run(example, images=images, **change)


def test_without_batch_normalization_statistics_are_estimated(complete: tuple[Example, Calibrated]) -> None:
    example, with_batch_normalization = complete
    names = ["n1", "n2", "n3"]
    layer_outputs = extract(example.network, ["image"], names)
    estimated = dict(zip(names, estimate_statistics(layer_outputs, [(example.images,)]), strict=True))
    result = run(example, statistics={})
    assert same(result.tensors, run(example, statistics=estimated).tensors)
    assert not same(result.tensors, with_batch_normalization.tensors)


def test_statistics_given_are_not_changed() -> None:
    example = residual("4/4")
    statistics: dict[str, Any] = {}
    run(example, statistics=statistics, iters=1)
    assert statistics == {}


SHARED = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,3,8,8] image) => (float[N,K] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (image, w1)
    a1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (a1, w2)
    a2 = Relu(c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (a2, w2)
    a3 = Relu(c3)
    p = GlobalAveragePool(a3)
    f = Flatten(p)
    y = Gemm <transB = 1> (f, w4)
}"""
SHARED_IN_A_BLOCK = SHARED.replace("a3 = Relu(c3)", "s = Add(c3, a1)\n    a3 = Relu(s)")


@pytest.mark.parametrize("text", [SHARED, SHARED_IN_A_BLOCK], ids=["two blocks", "one block"])
def test_a_shared_weight_is_learned_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (WIDTH, 3, 3, 3)), ("w2", (WIDTH, WIDTH, 3, 3)), ("w4", (CLASSES, WIDTH))):
        value = (generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    learned = []

    class Recorded(SoftRounding):
        def __init__(self, point: Any, *args: Any) -> None:
            learned.append(point.tensor)
            super().__init__(point, *args)

    monkeypatch.setattr(initialize, "SoftRounding", Recorded)
    prepared = prepare(model)
    plan = make_plan(prepared.model, PlanOptions.of("2/4"))
    images = torch.from_numpy(generator.normal(size=(32, 3, 8, 8)).astype(np.float32))
    result = calibrate_there(import_model(prepared.model), plan, prepared.statistics, [images], TINY)
    assert sorted(learned) == ["w1", "w2", "w4"]
    q = result.tensors["w2"]
    value = torch.from_numpy((q.integers - along(q.zero_point, q)).astype(np.float32))
    used = [module._weight for module in result.simulation.modules() if isinstance(module, IntegerLayer)]
    sharing = [weight for weight in used if weight.shape == value.shape]
    assert len(sharing) == 2
    assert all(torch.equal(weight, value) for weight in sharing)
    assert not any(isinstance(module, WeightQuantizer) for module in result.simulation.modules()), "held for nothing"


def small(body: str, output: str) -> onnx.ModelProto:
    """A 3x3 convolution with ``body`` behind its Relu ``r``; weights for ``body``: u [4, 4, 1, 1], v [5, 4]."""
    graph = f"m (float[N,3,8,8] x) => ({output}) {{ c = Conv (x, w) r = Relu(c) {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    generator = np.random.default_rng(0)
    for name, shape in {"w": (4, 3, 3, 3), "u": (4, 4, 1, 1), "v": (5, 4)}.items():
        if any(name in node.input for node in model.graph.node):
            value = generator.normal(size=shape).astype(np.float32) / 3
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def calibrate_small(model: onnx.ModelProto, **changes: Any) -> Calibrated:
    prepared = prepare(model)
    plan = make_plan(prepared.model, PlanOptions.of("4/4"))
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = dataclasses.replace(TINY, samples=16, **changes)
    return calibrate_there(import_model(prepared.model), plan, prepared.statistics, [images], options)


def test_a_prediction_that_merges_images_with_positions_is_refused() -> None:
    rows = "t = Transpose <perm = [0, 2, 3, 1]> (r) s = Constant <value_ints = [-1, 4]> () f = Reshape(t, s)"
    body = f"{rows} y = Gemm <transB = 1> (f, v)"
    with pytest.raises(CalibrationError, match="its first axis has 576 rows for 16 images; expected one an image"):
        calibrate_small(small(body, "float[M,5] y"))


def test_gates_of_squeeze_and_excitation_are_not_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def correct(outputs: Any, statistics: Any, x: torch.Tensor, options: CalibrationOptions, **_: int) -> torch.Tensor:
        seen.extend(z.shape[2] for z in outputs(x))
        return x

    monkeypatch.setattr(teacher, "correct_distribution", correct)
    body = "g = GlobalAveragePool(r) h = Conv(g, u) t = Sigmoid(h) m = Mul(r, t) y = Conv(m, u)"
    calibrate_small(small(body, "float[N,4,6,6] y"), iters=1, correction_iters=1)
    assert seen
    assert 1 not in seen
