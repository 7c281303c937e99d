"""``--bits auto``: bits keep the budget and rules, are better than equal ones, and the file is made again from them."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pdq_export
from pdq_export.commands import sensitivity as measuring
from pdq_export.commands.allotting import plan_widest
from pdq_export.commands.inspect import inspect_model
from pdq_export.commands.operations import bit_operations, count_multiplications
from pdq_export.commands.quantize import quantize
from pdq_export.commands.search import FileSize, Search, Sizing, placeholder_size
from pdq_export.commands.settle import choose, plan_options
from pdq_export.commands.space import LEAST_OUTERMOST, Space
from pdq_export.config.config import Config, make_config
from pdq_export.errors import DataError, OptionError
from pdq_export.plan.freedom import rule_bits
from pdq_export.search.asked import parse_budget
from pdq_export.search.bits_file import read_bits
from pdq_export.search.budget import Widths, solve
from pdq_export.search.groups import find_groups
from pdq_export.spec import BitWidths, Point, Role
from pdq_export.spec.sensitivity import Sensitivity
from pdq_export.work import PlannedModel, open_model

from ..onnx_text import fill, name_nodes, parse

pytestmark = pytest.mark.usefixtures("short_search")

P = "<pads = [1, 1, 1, 1]>"
BODY = f"""c1 = Conv {P} (image, w1) a1 = Relu(c1) c2 = Conv {P} (a1, w2) s = Add(c2, a1) z = Relu(s)
    c3 = Conv {P} (z, w3) v = Relu(c3) p = GlobalAveragePool(v) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
SHAPES = {"w1": (64, 3, 3, 3), "w2": (64, 64, 3, 3), "w3": (64, 64, 3, 3), "w4": (5, 64)}
IMAGES = np.random.default_rng(3).normal(size=(8, 3, 8, 8)).astype(np.float32)
WEIGHTS = {"w1": 1.0, "w2": 1.0, "w3": 100.0, "w4": 1.0}  # how much each loses


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), SHAPES))


def small() -> onnx.ModelProto:
    """The same with eight channels."""
    return name_nodes(fill(parse(BODY), {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (5, 8)}))


def search(
    factors: dict[str, float] = WEIGHTS, *, learns: bool = False, **fields: Any
) -> tuple[Search, PlannedModel, Config]:
    """With losses that are made up: of each tensor by its factor, a quarter for each bit more.

    Of blocks all tensors make the same errors.
    """
    config = make_config({"bits": "auto", **fields})
    file, _ = open_model(model())
    planned = plan_widest(file, config)
    groups = find_groups(planned.core, planned.plan)
    losses = {group.name: {w: factors.get(group.name, 1.0) * 4.0**-w for w in range(2, 9)} for group in groups}
    errors = {group.name: {w: 4.0**-w for w in range(2, 9)} for group in groups}
    sensitivity = Sensitivity(groups=groups, measure="kl", images=1, prediction=losses, block=errors)

    def operations() -> Any:
        return bit_operations(planned.plan, count_multiplications(planned.prepared, planned.plan.layers, (IMAGES[:1],)))

    asked = plan_options(config, choose(config))
    space = Space(
        *(planned, asked, parse_budget(config, fewest_bits=2), sensitivity),
        target=config.file.target,
        runtime=None,
        metadata={},
        learns=learns,
        operations=operations,
    )
    return Search(space), planned, config


def at(point: Point, bits: int) -> Point:
    """As plans have it: narrow weights are asymmetric."""
    return point.with_bits(bits, symmetric=False) if point.role is Role.WEIGHT else point.with_bits(bits)


def size_of(planned: PlannedModel, bits: Mapping[str, int]) -> int:
    points = {name: at(p, bits[name]) if name in bits else p for name, p in planned.plan.points.items()}
    changed = dataclasses.replace(planned, plan=dataclasses.replace(planned.plan, points=points))
    return placeholder_size(changed, "ort", {}).written


def sizing(written: Callable[[Mapping[str, int]], int], *, more: int = 0) -> Sizing:
    """``more``: what files may take once scales are learned."""

    def sized(bits: Widths) -> FileSize:
        size = written(bits)
        return FileSize(written=size, become=size + more)

    return sized


def sizing_of(planned: PlannedModel, *, more: int = 0) -> Sizing:
    return sizing(functools.partial(size_of, planned), more=more)


def find(factors: dict[str, float] = WEIGHTS, *, more: int = 0, **fields: Any) -> tuple[dict[str, int], Any]:
    searched, planned, _ = search(factors, **fields)
    found = searched.find(size=sizing_of(planned, more=more))
    return dict(found.bits), found


@pytest.mark.parametrize("width", [3, 4])
def test_at_the_bytes_of_equal_bits_it_loses_less_and_is_no_larger(width: int) -> None:
    _, planned, config = search(max_size="1MB")
    options = plan_options(config, choose(config))
    uniform = rule_bits(planned.index, planned.plan, options, BitWidths(width, 8))
    most = size_of(planned, uniform)
    bits, found = find(max_size=str(most))
    assert size_of(planned, bits) == found.report.chosen.size <= most
    assert found.report.uniform is not None
    assert found.report.chosen.loss < 0.95 * found.report.uniform.loss
    assert bits["w3"] > bits["w2"]
    assert bits["w1"] >= LEAST_OUTERMOST <= bits["w4"]
    assert {bits[name] for name in ("a1", "z", "v")} == {8}
    assert "activations get 8 bits" in found.report.note
    losses = [one.loss for one in found.report.frontier]
    assert losses == sorted(losses, reverse=True)


def test_bits_that_differ_spare_what_biases_may_take_once_scales_are_learned() -> None:
    _, planned, _ = search(max_size="1MB")
    most = size_of(planned, {}) - 1000
    searched, _, _ = search(max_size=str(most))
    plain, sparing = (searched.find(size=sizing_of(planned, more=more)) for more in (0, 5000))
    assert size_of(planned, plain.bits) + 5000 > most >= size_of(planned, sparing.bits) + 5000
    assert sparing.report.chosen.size == size_of(planned, sparing.bits)


def test_what_biases_may_take_once_scales_are_learned() -> None:
    """Of numbers that are twice as large some have integers that take more bytes; the largest stay what they are."""
    config = make_config({"bits": "4/4", "first_last": "4/4"})
    more = []
    for size in (*range(12), 188):
        biased = fill(parse("c = Conv (image, w, b) y = Relu(c)"), {"w": (64, 3, 1, 1)})
        bias = np.linspace(-1, 1, 64, dtype=np.float32) * np.float32(1.6**size)
        biased.graph.initializer.append(onnx.numpy_helper.from_array(bias, "b"))
        file, _ = open_model(name_nodes(biased))
        planned = PlannedModel.of(file, plan_options(config, choose(config)), config.file, told=False)
        with np.errstate(over="raise"):
            sized = placeholder_size(planned, "ort", {})
        more.append(sized.become - sized.written)
    assert min(more) >= 0
    assert max(more) >= 64


def test_equal_bits_stay_where_nothing_else_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small file what is spared for learned scales leaves no other; the solver can give up as well."""
    fields = {"max_size": "1MB", "first_last": "8/8"}
    _, planned, config = search(**fields)
    uniform = rule_bits(planned.index, planned.plan, plan_options(config, choose(config)), BitWidths(2, 8))
    most = size_of(planned, uniform)
    bits, found = find(**fields | {"max_size": str(most)})
    assert bits == uniform
    assert found.report.chosen.size == most
    with pytest.raises(OptionError, match="the smallest that can be kept is"):
        find(**fields | {"max_size": str(round(0.998 * most))})

    def solver(*arguments: Any) -> Any:
        raise OptionError("no bits were found")

    monkeypatch.setattr("pdq_export.commands.search.solve", lambda choices, cost, limits=(): solver())
    searched, _, _ = search(avg_bits=8)
    monkeypatch.setattr(Search, "_frontier", lambda self: ())
    found = searched.find(size=sizing(lambda bits: 1))
    assert found.report.uniform is not None
    assert found.report.chosen.loss == found.report.uniform.loss


def test_what_later_blocks_make_up_for_is_not_counted() -> None:
    factors = {"w2": 50.0, "w3": 2.0}
    bits, found = find(factors, avg_bits=4)
    learned, less = find(factors, learns=True, avg_bits=4)
    assert bits["w2"] > bits["w3"]
    assert learned["w2"] <= learned["w3"]
    assert less.report.chosen.loss < found.report.chosen.loss


def test_where_nothing_is_gained_equal_bits_stay() -> None:
    """The small first and last layers could give what no large one can use."""
    _, planned, config = search(avg_bits=4)
    uniform = rule_bits(planned.index, planned.plan, plan_options(config, choose(config)), BitWidths(4, 8))
    sizes = {name: np.prod(shape) for name, shape in SHAPES.items()}
    average = sum(size * uniform[name] for name, size in sizes.items()) / sum(sizes.values())
    bits, found = find(dict.fromkeys(WEIGHTS, 1.0), avg_bits=f"{average + 1e-4:.4f}")
    assert bits == uniform
    assert found.report.chosen.loss == found.report.uniform.loss


def test_rules_win() -> None:
    fields = {"layer_bits": "c3=2/5", "first_last": "6/8", "tensor_bits": {"w2": 7}}
    bits, _ = find(avg_bits=5, **fields)
    assert (bits["w1"], bits["w2"], bits["w3"], bits["w4"], bits["v"]) == (6, 7, 2, 6, 5)
    bits, _ = find(avg_bits=5.5, allowed_bits="2,8")
    assert {bits["w2"], bits["w3"]} == {2, 8}


def test_a_rule_for_one_of_two_layers_that_share_a_weight_is_the_least(folder: Path) -> None:
    """As without a search: of both the larger bits count."""
    body = f"""c1 = Conv {P} (image, w1) a1 = Relu(c1) c2 = Conv {P} (a1, w2) a2 = Relu(c2) c3 = Conv {P} (a2, w2)
        v = Relu(c3) p = GlobalAveragePool(v) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""
    onnx.save(name_nodes(fill(parse(body), {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w4": (5, 8)})), "shared.onnx")
    asked: dict[str, Any] = {"bits": "auto", "avg_bits": 5.5, "calib": IMAGES, "device": "cpu", "method": "nearest"}
    for rule, least in ((None, 2), ("^c3$=5/8", 5), ("^c3$=7/8", 7)):
        rules = {} if rule is None else {"layer_bits": rule}
        if least == 7:
            asked["avg_bits"] = 7.2
        layers = {one.node: one.weight_bits for one in inspect_model("shared.onnx", **asked, **rules).layers}
        assert layers["c2"] == layers["c3"] >= least
        Path("b.toml").write_text('bits = "4/8"\n[layers]\nc2 = { W = 2 }\n')
        layers = {one.node: one.weight_bits for one in inspect_model("shared.onnx", bits_from="b.toml", **rules).layers}
        assert layers["c2"] == layers["c3"] == least


def test_bits_of_activations_are_found_where_a_budget_counts_them() -> None:
    _, planned, _ = search(max_bit_ops=1)
    cost = bit_operations(planned.plan, count_multiplications(planned.prepared, planned.plan.layers, (IMAGES[:1],)))
    names = [name for name, point in planned.plan.points.items() if point.role is not Role.CARRIER]
    assert cost.of(dict.fromkeys(names, 8)) == pytest.approx(1)
    # Every weight at every one of 64 places; c1 reads the image, and y a carrier, which have 8 bits.
    per_layer = {"w1": 64 * 27 * 64, "w2": 4096 * 9 * 64, "w3": 4096 * 9 * 64, "w4": 320}
    total = sum(per_layer.values())
    by_hand = (per_layer["w1"] * 4 * 8 + (per_layer["w2"] + per_layer["w3"]) * 16 + 320 * 4 * 8) / 64 / total
    assert cost.of(dict.fromkeys(names, 4)) == pytest.approx(by_hand)
    assert inspect_model(model(), bits="4/4", first_last="4/4").to_dict()["bit_ops"] == pytest.approx(by_hand)
    bits, found = find(max_bit_ops=0.3)
    assert cost.of(bits) <= 0.3
    assert min(bits["a1"], bits["z"]) < 8
    assert found.report.note == ""
    assert found.report.chosen.bit_ops == pytest.approx(cost.of(bits))
    averages, _ = find(avg_bits="8/4")
    assert sum(averages[name] for name in ("a1", "z", "v")) <= 12


@pytest.mark.parametrize(
    ("fields", "option"),
    [({"max_size": "3kB"}, "max_size"), ({"max_bit_ops": 0.001}, "max_bit_ops"), ({"avg_bits": 2}, "avg_bits")],
)
def test_a_budget_that_nothing_keeps_is_told_the_smallest_that_can_be_kept(fields: dict[str, Any], option: str) -> None:
    with pytest.raises(
        OptionError, match=r"than any bits that are allowed take; the smallest that can be kept is"
    ) as told:
        find(**fields)
    smallest = str(told.value).partition("kept is ")[2].partition(" ")[0]
    find(**{option: float(smallest) if option == "max_bit_ops" else smallest})


def test_averages_of_weights_and_activations_are_told_apart() -> None:
    with pytest.raises(
        OptionError, match=r"--avg-bits, of weights: 2 is less.*; --avg-bits, of activations: 2"
    ) as told:
        find(avg_bits="2/2", first_last="8/8", tensor_bits={"a1": 4})
    smallest = [part.split(" ")[0] for part in str(told.value).replace(";", "").split("kept is ")[1:]]
    find(avg_bits="/".join(smallest), first_last="8/8", tensor_bits={"a1": 4})


@pytest.mark.parametrize("misses", [8, 1000])
def test_files_that_are_larger_than_estimated_at_every_try(
    misses: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The best that fits is taken, not the smallest; that is, with a word, where no other fits."""
    most = 75_000
    searched, planned, _ = search(max_size=str(most))
    monkeypatch.setattr(searched, "_best_uniform", lambda size: None)  # equal bits do not keep it
    tried = []

    def size(bits: Any) -> int:
        tried.append(dict(bits))  # first what loses least at eight sizes, then the smallest
        return size_of(planned, bits) if len(tried) == 9 or len(tried) > misses else most + 1

    found = searched.find(size=sizing(size))
    assert (found.bits == tried[8]) is (misses == 1000)
    assert ("the smallest is taken" in caplog.text) is (misses == 1000)
    assert found.report.chosen.size <= most


@pytest.mark.parametrize("reduce_range", [False, True])
def test_sizes_are_estimated_with_the_zero_points_that_narrow_weights_have(reduce_range: bool) -> None:
    """What is searched in has 8 bits everywhere, where weights have none."""
    searched, planned, config = search(max_size="1MB", reduce_range=reduce_range)
    for bits, others in (("2/8", {}), ("3/8", {}), ("3/8", {"w3": 7}), ("6/8", {"w3": 4})):
        changed = make_config({"bits": bits, "tensor_bits": others, "reduce_range": reduce_range})
        plan = PlannedModel.of(planned.original, plan_options(changed, choose(changed)), config.file, told=False)
        widths = {name: point.bits for name, point in plan.plan.points.items() if point.role is not Role.CARRIER}
        assert searched._size.of(widths) == pytest.approx(placeholder_size(plan, "ort", {}).written, rel=0.007)


def test_a_search_that_is_not_finished_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "pdq_export.commands.search.solve",
        lambda *arguments: dataclasses.replace(solve(*arguments), gap=0.03),  # type: ignore[type-var]
    )
    _, found = find(avg_bits=4.5)
    assert found.report.chosen.gap == 0.03
    assert {one.gap for one in found.report.frontier} == {0.03}
    assert "others could lose up to 3 % less by the sum of estimates" in caplog.text
    searched, planned, _ = search(max_size="1MB")
    assert searched.smallest(1.0, size=sizing_of(planned)).report.chosen.gap == 0.03
    assert "other files could be up to 3 % smaller" in caplog.text


@pytest.mark.parametrize("told", [0, 10_000])
def test_the_smallest_file_is_that_of_equal_bits_where_it_is_written_no_larger(told: int) -> None:
    """``told``: bytes that a file says of single bits in."""
    searched, planned, config = search(max_size="1MB")
    equal = rule_bits(planned.index, planned.plan, plan_options(config, choose(config)), BitWidths(3, 8))

    def size(bits: Any) -> int:
        return size_of(planned, bits) + (0 if bits == equal else told)

    found = searched.smallest(searched._loss.of(equal) * 1.001, size=sizing(size))
    assert (found.bits == equal) == bool(told)
    assert found.report.chosen.size == size(found.bits) <= size(equal)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "model.onnx")
    return tmp_path


def test_a_whole_run_and_the_same_file_from_its_bits(folder: Path) -> None:
    fields: dict[str, Any] = {"calib": IMAGES, "method": "nearest", "device": "cpu", "overwrite": True}
    budget = {"max_size": 0.16}
    found = quantize("model.onnx", bits="auto", output="auto.onnx", report="auto.json", **budget, **fields)
    assert [str(path) for path in found.files] == ["auto.onnx", "auto.json", "auto.bits.toml"]
    report = json.loads(Path("auto.json").read_text())
    assert report["search"]["budget"] == "--max-size 0.16"
    assert report["quantized"]["size"] <= report["model"]["size"] * 0.16
    assert len({point.bits for point in found.plan.points.values() if point.role is Role.WEIGHT}) > 1
    quantize("model.onnx", bits_from="auto.bits.toml", output="again.onnx", **fields)
    assert Path("again.onnx").read_bytes() == Path("auto.onnx").read_bytes()
    assert inspect_model("model.onnx", bits_from="auto.bits.toml").plan == found.plan
    quantize("model.onnx", bits="auto", output="auto.onnx", report="auto.json", **budget, **fields)
    edited = Path("auto.bits.toml").read_text().replace("# W:", "# mine: W:")
    Path("auto.bits.toml").write_text(edited)
    with pytest.raises(OptionError, match=r"edited since --bits auto wrote it.*--bits-from auto\.bits\.toml, name"):
        quantize("model.onnx", bits="auto", output="auto.onnx", **budget, **fields)
    assert Path("auto.bits.toml").read_text() == edited
    quantize("model.onnx", bits="auto", output="auto.onnx", bits_to="new.toml", **budget, **fields)
    quantize("model.onnx", bits_from="auto.bits.toml", output="auto.onnx", **fields)
    assert Path("again.onnx").read_bytes() == Path("auto.onnx").read_bytes()
    assert Path("auto.bits.toml").read_text() == edited
    # Errors count for less where blocks learn, as they do by default.
    learning: dict[str, Any] = {"output": "learned.onnx", "report": "learned.json", "iters": 1}
    found = quantize("model.onnx", bits="auto", **budget, **{**fields, "method": "qdrop"}, **learning)
    report = json.loads(Path("learned.json").read_text())
    before = inspect_model("model.onnx", bits="auto", calib=IMAGES, **budget)
    assert before.plan == found.plan
    told = before.to_dict()
    chosen, expected = (one["search"]["chosen"] for one in (told, report))
    assert chosen == {**expected, "size": chosen["size"]}  # of which the options of the run are part
    assert chosen["size"] == pytest.approx(expected["size"], rel=1e-3)
    assert told["size"]["quantized"] == pytest.approx(report["quantized"]["size"], rel=1e-3)
    with pytest.raises(DataError, match="give calib"):
        inspect_model("model.onnx", bits="auto", **budget)


def test_inspect_shows_the_plan_that_quantize_takes_with_the_same_options(folder: Path) -> None:
    """By the method, which makes up for errors or not, and by the images that it is asked to take."""
    onnx.save(small(), "8.onnx")
    images = IMAGES * np.array([1, 0.05, 1, 3, 3, 3, 3, 3], np.float32)[:, None, None, None]
    budget = {"bits": "auto", "max_bit_ops": 0.2, "calib": images, "device": "cpu", "work_dir": "runs"}
    shown = []
    for method in ({"method": "nearest"}, {"method": "qdrop", "iters": 1, "samples": 2}):
        before = inspect_model("8.onnx", **budget, **method)
        found = quantize("8.onnx", **budget, **method, output="8-auto.onnx", overwrite=True)
        assert before.plan == found.plan
        assert before.to_dict()["search"] == found.report.to_dict()["search"]
        shown.append({layer.node: layer.weight_bits for layer in before.layers})
        assert {name: bits.W for name, bits in read_bits("8-auto.bits.toml").layers.items()} == shown[-1]
    assert shown[0] != shown[1]


def test_a_file_that_calibration_makes_larger_than_the_budget_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal bits are taken where their file, as estimated, keeps it; what is kept is whole, and every remedy works."""
    onnx.save(small(), "8.onnx")
    fields: dict[str, Any] = {"calib": 0.03 * IMAGES, "method": "nearest", "device": "cpu", "work_dir": "runs"}
    fields |= {"first_last": "8/8", "output": "a.onnx"}
    budget = {"bits": "auto", "allowed_bits": "3"}
    size = quantize("8.onnx", max_size="7kB", **budget, **fields).report.quantized.size
    Path("a.onnx").unlink()
    Path("a.bits.toml").unlink()
    with pytest.raises(OptionError, match=rf"the file has {size} bytes, 1 too many") as told:
        quantize("8.onnx", max_size=f"{size - 1}", **budget, **fields, report="a.json")
    assert not Path("a.onnx").exists()
    kept, report, bits = map(Path, str(told.value).partition("what is finished is kept as ")[2].split(" and "))
    assert json.loads(report.read_text())["quantized"]["size"] == size
    remedies = str(told.value).partition("give ")[2].split("; or ")
    assert remedies[0].startswith("--bits-from with the a.bits.toml that is kept, instead of --bits auto")
    caplog.set_level("INFO")
    quantize("8.onnx", bits_from=bits, **fields, resume=True)
    assert re.search(r"(\d+) of \1 blocks are finished", caplog.text)
    assert Path("a.onnx").read_bytes() == kept.read_bytes()
    Path("a.onnx").unlink()
    assert remedies[1].startswith(f"--max-size {size}, and --resume")
    found = quantize("8.onnx", max_size=f"{size}", **budget, **fields, resume=True)
    assert found.report.quantized.size == size


@pytest.mark.parametrize("more", [0, 500])
def test_equal_bits_that_may_be_refused_in_the_end_are_told_before(more: int, caplog: pytest.LogCaptureFixture) -> None:
    """``more``: what the file may take once scales are learned."""
    fields = {"max_size": "1MB", "first_last": "8/8", "allowed_bits": "3"}
    _, planned, config = search(**fields)
    uniform = rule_bits(planned.index, planned.plan, plan_options(config, choose(config)), BitWidths(3, 8))
    size = size_of(planned, uniform)
    caplog.set_level("INFO")
    for most, level in ((size - 1, "WARNING"), (size, "INFO")):
        caplog.clear()
        bits, _ = find(more=more, **fields | {"max_size": str(most)})
        assert bits == uniform
        (record,) = (record for record in caplog.records if "is refused then" in record.message)
        assert record.levelname == level
        assert f"{size} bytes of the {most} that are allowed" in record.message
    caplog.clear()
    larger = record.message.rpartition("--max-size ")[2].split(" ")[0]
    assert int(larger) >= size + more
    find(more=more, **fields | {"max_size": larger})
    assert "is refused then" not in caplog.text


def test_budgets_and_the_command_sensitivity_share_one_measurement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    measure = measuring.measure_sensitivity

    def counted(*arguments: Any, **options: Any) -> Sensitivity:
        made.append(options)
        return measure(*arguments, **options)

    monkeypatch.setattr(measuring, "measure_sensitivity", counted)
    fields: dict[str, Any] = {"calib": IMAGES, "method": "nearest", "device": "cpu"}
    smaller, larger = (quantize("model.onnx", bits="auto", max_size=size, **fields) for size in (0.14, 0.2))
    assert len(made) == 1
    assert smaller.report.quantized.size < larger.report.quantized.size
    pdq_export.sensitivity("model.onnx", calib=IMAGES, device="cpu", bits="3/4")
    quantize("model.onnx", bits="auto", avg_bits=4, allowed_bits="2,4,8", **fields)
    assert len(made) == 1
