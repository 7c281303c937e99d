"""The page of a report: whole, small, of one file, and nothing in a model's names is more than text."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export import ImageSet, LayerReport, Report, Result, quantize, validate_models
from pdq_export.advice import Remedy
from pdq_export.cli import app
from pdq_export.gates import Gate
from pdq_export.report import read_report, to_html
from pdq_export.report.bits import Estimate, SearchReport
from pdq_export.report.html.plots import drawing
from pdq_export.report.html.sections import SECTIONS
from pdq_export.report.report import ModelInfo
from pdq_export.report.sensitivity import WrittenSensitivity
from pdq_export.report.tensor_losses import SensitivityRow, TensorLosses
from pdq_export.spec.step import Step
from pdq_export.validate import Top1Changes

from ...browser import browser
from ...cli.fakes import make_report
from ...onnx_text import classifier

EVIL = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>{{ 7 * 7 }}'
LINK = "javascript:alert(3)"
RNG = np.random.default_rng(0)
COLOURS, NOISE = RNG.integers(0, 226, (64, 3, 1, 1)), RNG.integers(0, 30, (64, 3, 12, 12))
IMAGES = (COLOURS + NOISE).astype(np.uint8)
LABELS = RNG.integers(0, 4, 64)


def model() -> onnx.ModelProto:
    """Its nodes, weights and tensors have names that are markup."""
    net = classifier(12, 4)
    rng = np.random.default_rng(1)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)), ("w3", (8, 4))):
        net.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    names = {"w2": IMAGE, "b": EVIL, "d": LINK, "scores": f"scores{EVIL}"}
    for node, name in zip(net.graph.node, (IMAGE, "r1", EVIL, "r2", "p", "f", LINK), strict=True):
        node.name = name
        node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [names.get(tensor, tensor) for tensor in node.output]
    for value in (*net.graph.initializer, *net.graph.output):
        value.name = names.get(value.name, value.name)
    return net


@dataclasses.dataclass(frozen=True)
class Case:
    result: Result
    page: Path
    json: Path

    @property
    def text(self) -> str:
        return self.page.read_text(encoding="utf-8")


def images() -> ImageSet:
    classes = ("cat", EVIL, "<b>dog</b>", IMAGE)
    mean = np.full(3, 0.5, np.float32)
    return ImageSet(pixels=IMAGES, labels=LABELS, mean=mean, std=mean / 2, source=f"set {EVIL}", classes=classes)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("page")
    page, written = folder / "r.html", folder / "r.json"
    result = quantize(
        model(),
        calib=images().head(32),
        eval=images(),
        bits="2/2",
        preset="fast",
        samples=32,
        iters=4,
        correction_iters=1,
        device="cpu",
        max_drop=100,
        max_size_ratio=0.01,
        work_dir=folder / "runs",
        output=folder / f"q {EVIL.replace('/', '')}.onnx",
        report=[written, page],
    )
    return Case(result, page, written)


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, texts, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_are_text(case: Case) -> None:
    parsed = Parsed(case.text)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"iframe", "object", "embed", "form", "base", "b1"})
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not [v for v in attributes.values() if v and v.strip().lower().startswith("javascript:")], tag
        if tag == "img":
            assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", attributes["src"] or "")
    shown = {text.strip() for text in parsed.texts}
    assert {EVIL, IMAGE, LINK} <= shown  # as names of layers, whole
    changed = case.result.report.changed
    assert changed is not None
    assert changed.samples
    for one in changed.samples:
        named = [f"{of} ({images().classes[of]})" for of in (one.float_class, one.quantized_class)]  # type: ignore[index]
        assert " → ".join(named) in shown


def test_it_asks_nobody_for_anything(case: Case) -> None:
    parsed = Parsed(case.text)
    addresses = [(n, v) for _, a in parsed.tags for n, v in a.items() if n in ("src", "href", "xlink:href", "action")]
    assert addresses
    assert all(value and value.startswith(("#", "data:")) for _, value in addresses)
    assert "url(" not in re.sub(r"url\(#p[0-9a-f]+\)", "", case.text)
    (policy,) = (a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    script = case.text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_it_has_every_section(case: Case) -> None:
    anchors = re.findall(r'<section id="([a-z]+)">', case.text)
    expected = (
        "asked gates accuracy size bits sensitivity layers errors losses histograms changed floating warnings versions"
        " command"
    )
    by_budget = {"bits": False, "sensitivity": False}  # which nobody asked for
    there = {"warnings": bool(case.result.report.warnings), **by_budget}
    assert anchors == [name for name in expected.split() if there.get(name, True)]
    assert len(SECTIONS) == len(expected.split())
    assert case.text.count("<svg") > 3 + 3 + 3  # figures, and cards of weights and blocks
    assert len(case.text) < 3_000_000


def test_equal_reports_have_equal_pages(case: Case) -> None:
    """And what is read from JSON is the report: it has the same page, but for pictures."""
    read = read_report(case.json.read_text(encoding="utf-8"))
    assert isinstance(read, Report)
    page = to_html(read)
    assert page == to_html(read)
    assert page == to_html(case.result.report)
    assert page != case.page.read_bytes()
    assert len(re.findall(rb"<img ", case.page.read_bytes())) == len(case.result.report.changed.samples)  # type: ignore[union-attr]


def test_figures_are_those_of_the_report(case: Case) -> None:
    report, text = case.result.report, case.text
    assert report.layer_errors is not None
    assert {row.tensor for row in report.layer_errors.tensors} >= {EVIL}
    assert [weight.layer for weight in report.weights] == [IMAGE, EVIL, LINK]
    for weight in report.weights:
        assert sum(weight.integers.counts) == weight.elements
        assert weight.floats is not None
        assert sum(weight.floats.counts) == weight.elements
    assert [len(block.losses) for block in report.blocks] == [4] * len(report.blocks)
    assert sum(layer["weight_bytes"] for layer in report.layers) < report.quantized.size
    changed = report.changed
    assert changed is not None
    agreement = report.outputs[0].against_float.argmax_agreement
    assert changed.changed == round((1 - agreement) * changed.images)  # type: ignore[operator]
    assert f"{changed.changed} of 64 images have another class" in text
    assert "failed" in text


def test_the_errors_of_layers_alone(case: Case) -> None:
    errors = case.result.report.layer_errors
    assert errors is not None
    read = read_report(errors.to_json())
    assert isinstance(read, LayerReport)
    text = to_html(read).decode()
    assert re.findall(r'<section id="([a-z]+)">', text) == ["errors", "histograms"]
    assert EVIL not in text


def test_the_command_says_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line reads it; what is no option of ours is not in it."""
    asked = {
        "bits": "2/4",
        "layer_bits": ["^a b$=8/8", "^it's$=4/4"],
        "reduce_range": True,
        "equalize_channels": False,
        "calib": "my images",
        "iters": 20,
        "temperature": 0.123456789012,
        "; rm -rf": "x",
    }
    line = commands(make_report(settings={"asked": asked, "bits": "2/4"}))
    program, name, *words = shlex.split(line)
    assert (program, name) == ("pdq-export", "quantize")
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"")
    found = app.commands["quantize"].make_context("quantize", words).params
    assert found["bits"] == "2/4"
    assert found["layer_bits"] == ("^a b$=8/8", "^it's$=4/4")
    assert found["reduce_range"] is True
    assert (found["calib"], found["iters"]) == ("my images", 20)
    assert set(found["assignments"]) == {"equalize_channels=false", "temperature=0.123456789012"}
    assert "rm" not in line


def test_a_long_command_is_whole_and_asks_for_data_that_no_path_names() -> None:
    rules = [f"^layer{number}/some/long/name$=4/4" for number in range(100)]
    words = shlex.split(commands(make_report(settings={"asked": {"layer_bits": [*rules, EVIL]}, "bits": "2/4"})))
    assert [word for word in words if word.startswith("^layer")] == rules
    assert EVIL in words
    assert words[-4:] == ["--calib", "PATH", "--output", "q.onnx"]


def test_the_command_that_judges_again() -> None:
    gates = case_gates()
    line = commands(make_report(settings={"command": "validate", "confidence": 95.0}, gates=gates))
    assert line == "pdq-export validate m.onnx q.onnx --data PATH --max-drop 1 --no-float-layers --confidence 95"


def case_gates() -> tuple[Gate, ...]:
    found = {"value": 0.0, "passed": True, "told": ""}
    return (
        Gate(option="--max-drop", limit=1.0, unit="points", **found),
        Gate(option="--no-float-layers", limit=0.0, unit="layers", **found),
    )


def commands(report: Report) -> str:
    page = Parsed(to_html(report).decode())
    (line,) = (text for text in page.texts if text.startswith("pdq-export "))
    return line


def test_several_inputs_that_are_no_images(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,6] left, float[N,6] right) => (float[N,3] y) {
        sum = Add(left, right)
        a = MatMul(sum, w)
        b = Relu(a)
        y = MatMul(b, v)
    }"""
    net = onnx.parser.parse_model(text)
    other = onnx.ModelProto()
    for name, shape in (("w", (6, 5)), ("v", (5, 3))):
        weight = RNG.standard_normal(shape, dtype=np.float32)
        net.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    other.CopyFrom(net)
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.round(onnx.numpy_helper.to_array(net.graph.initializer[0]), 1), "w")
    )
    data = {name: RNG.standard_normal((20, 6), dtype=np.float32) for name in ("left", "right")}
    report = validate_models(net, other, data=data, report=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert report.float_accuracy is None
    assert "No labels" in page
    assert "No gates were asked for" in page
    assert "<img" not in page


def test_a_fixed_batch_that_64_is_no_multiple_of(tmp_path: Path) -> None:
    """The layers are compared on whole batches, and nothing is warned of."""
    for batch, images in ((12, 60), (70, 70)):
        net = classifier(12, 4, batch)
        for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)), ("w3", (8, 4))):
            weight = RNG.standard_normal(shape, dtype=np.float32)
            net.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        data = RNG.standard_normal((140, 3, 12, 12), dtype=np.float32)[: 140 // batch * batch]
        report = validate_models(net, net, data=data, report=tmp_path / f"{batch}.html")
        assert report.layer_errors is not None
        assert report.layer_errors.images == images
        assert not any("the page does not" in text for text in report.warnings)


def test_in_a_browser(case: Case, tmp_path: Path) -> None:
    """It says and asks for nothing, fits a phone, sorts and filters; no name is run."""
    with browser(tmp_path / "profile") as found:
        for width in (1280, 390):
            for dark in (False, True):
                found.show(case.page, width=width, dark=dark)
                assert found.evaluate("document.documentElement.scrollWidth") <= width
        found.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert found.evaluate("document.querySelectorAll('img').length") > 0
        assert found.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        rows = "[...document.querySelectorAll('#layers tbody tr')]"
        before = found.evaluate(f"{rows}.map(row => row.cells[0].textContent)")
        found.evaluate("document.querySelector('#layers th:last-child button').click()")
        sizes = found.evaluate(f"{rows}.map(row => Number(row.cells[row.cells.length - 1].dataset.value))")
        assert sizes == sorted(sizes)
        found.evaluate(
            "{ const one = document.querySelector('#layers input.filter'); one.value = '<SCRIPT>'; "
            "one.dispatchEvent(new Event('input')); }"
        )
        assert found.evaluate(f"{rows}.filter(row => !row.hidden).map(row => row.cells[0].textContent)") == [EVIL]
        assert set(before) == {EVIL, IMAGE, LINK}
        assert {one for one in found.seen.requests if not one.startswith("data:")} == {case.page.resolve().as_uri()}
        assert found.seen.messages == []


def test_plots_templates_and_statistics_are_imported_for_what_has_them_alone() -> None:
    """matplotlib takes a second or two to import, scipy's statistics nearly one."""
    code = (
        "import sys, pdq_export.commands.validate, pdq_export.commands.compare, pdq_export.report\n"
        "print([name for name in ('jinja2', 'matplotlib', 'scipy.stats') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_report_without_anything(case: Case) -> None:
    """What is not there is left out, or said in a line: as JSON of before there were pages."""
    plain = json.loads(case.json.read_text(encoding="utf-8"))
    for name in ("warnings", "changed", "blocks", "weights", "layer_errors"):
        del plain[name]
    plain |= {"latency": None, "kernels": None, "gates": [], "layers": [], "floating": [], "top1_changes": None}
    plain["accuracy"] = dict.fromkeys(plain["accuracy"])
    read = read_report(json.dumps(plain))
    text = to_html(read).decode()
    assert "Layers were not compared in this run" in text
    assert "Latency was not measured" in text
    sections: Any = re.findall(r'<section id="([a-z]+)">', text)
    assert sections == ["asked", "gates", "accuracy", "size", "errors", "floating", "versions", "command"]


def test_what_to_try_next_is_what_the_report_says() -> None:
    """With its cost and reason, and with what only the run knows, as that kernels saturate."""
    ours = Remedy(line="--reduce-range", share=0.3, why="kernels saturate")
    others = (Remedy(line="--layer-bits '^a$=8/8'", bytes=9),)
    errors = LayerReport(images=1, evaluation="test", model="m", quantized="q", tensors=(), remedies=others)
    texts = Parsed(to_html(make_report(remedies=(ours,), layer_errors=errors)).decode()).texts
    assert "--reduce-range  # +0 bytes; about 30 % of the error; kernels saturate" in texts
    assert not any("^a$" in text for text in texts)
    without = Parsed(to_html(make_report(layer_errors=errors)).decode()).texts
    assert "--layer-bits '^a$=8/8'  # +9 bytes" in without


def test_numbers_in_plots_are_not_cut() -> None:
    with drawing() as plots:
        svg = plots.bars([("FP32", 0.0249, "0.0249 ms"), ("quantized", 0.0299, "0.0299 ms")], "ms")
    assert ">0.0249 ms<" in svg
    assert ">0.0299 ms<" in svg
    assert not re.search(r" d=\"[^\"]*\.\d{3}", svg)


@pytest.mark.parametrize(
    ("together", "told"),
    [([1], "1"), ([1, 3], "1, 3"), ([1, 3, 7], "1, 3, 7"), ([1, 3, 4, 7], "1 … 7 (4)")],
)
def test_names_of_points_that_lie_together_name_no_others(together: list[int], told: str) -> None:
    points = [(9_682, 1.4e-6 + 1e-8 * number, str(number)) for number in together]
    points.insert(1, (4_000, 1e-4, "2"))
    with drawing() as plots:
        svg = plots.trade_off([("#000000", "s", points), ("#000000", "D", [(9_813, 1.4e-6, "")])])
    names = re.findall(r">([^<>]*)</text>", svg)
    assert told in names
    assert "2" in names
    ((anchor, x),) = re.findall(rf'text-anchor: (start|end);[^>]* x="([0-9.]+)"[^>]*>{re.escape(told)}</text>', svg)
    assert float(x) + (6 * len(told) if anchor == "start" else 0) < 340  # px of the whole


def test_no_change_has_no_sign_of_a_loss() -> None:
    changes = Top1Changes(images=100, lost=0, gained=0)
    text = to_html(make_report(top1_changes=changes)).decode()
    assert "+0.00 ± 0.00 points" in text
    assert "-0.00" not in text


def test_bits_that_were_found_are_not_told_as_those_they_were_found_instead_of() -> None:
    settings = {"bits": "4/8", "tensor_bits": ["w=7"]}
    texts = Parsed(to_html(make_report(settings=settings)).decode()).texts
    assert "q.onnx, mixed" in [text.replace("quantized model", "q.onnx") for text in texts]
    assert "4/8" not in texts


def estimate(name: str, size: int, loss: float) -> Estimate:
    return Estimate(name=name, size=size, loss=loss, avg_weight=3.5, avg_activation=None)


def losses(**changed: Any) -> TensorLosses:
    rows = [
        SensitivityRow(
            tensors=(name,), role="weight", layers=("c",), block="c", planned_bits=4, prediction=loss, block_error=loss
        )
        for name, loss in ((EVIL, (1.0, 1e-3)), ("w2", (1e-6, 0.0)))
    ]
    return TensorLosses(measure="kl", estimate="fisher", images=8, widths=(2, 4), groups=tuple(rows), **changed)


@pytest.mark.parametrize("alone", [False, True], ids=["of a search", "alone"])
def test_a_heat_map_of_what_bits_of_single_tensors_do(alone: bool) -> None:
    kind: Any = WrittenSensitivity if alone else TensorLosses
    of = {"model": ModelInfo(name="m.onnx", sha256="", size=1), "calibration": "images"} if alone else {}
    found = kind(**vars(losses()), **of)
    one = estimate("auto", 1, 1.0)
    search = SearchReport(
        budget="", measure="kl", chosen=one, uniform=None, frontier=(), uniforms=(), note="", tensors=found
    )
    written = {"schema_version": 1, "pairs": [], **dataclasses.asdict(found)}
    read = read_report(json.dumps(written) if alone else make_report(search=search).to_json())
    assert not alone or read == found
    text = to_html(read).decode()
    assert EVIL in Parsed(text).texts
    section = text.partition('<section id="sensitivity">')[2].partition("</section>")[0]
    assert re.findall(r'heat heat(\d)">([^<]*)<', section) == [("9", "1"), ("4", "0.001"), ("0", "1e-06"), ("0", "0")]
    assert "estimated to second order on 8 images" in section
    assert not alone or "<h1>m.onnx: what bits of single tensors do</h1>" in text
    plain = json.loads(json.dumps(written))
    plain["groups"][0]["prediction"].pop()
    with pytest.raises(ValueError, match="one prediction and one block_error"):
        read_report(json.dumps({"model": {"name": "", "sha256": "", "size": 1}, "calibration": "", **plain}))


def test_bits_by_budget() -> None:
    uniform = estimate("3/8", 90_000, 0.5)
    found = SearchReport(
        budget="--max-size 0.09",
        measure="kl",
        chosen=estimate("auto", 89_000, 0.2),
        uniform=uniform,
        frontier=tuple(estimate("frontier", 50_000 + 30_000 * n, 0.8 / 4**n) for n in range(4)),
        uniforms=(uniform, estimate(f"{EVIL}/8", 120_000, 0.0)),
        note="activations get 8 bits",
        tensors=losses(),
    )
    report = make_report(search=found)
    read = read_report(report.to_json())
    assert isinstance(read, Report)
    assert read.search == found
    text = to_html(read).decode()
    parsed = Parsed(text)
    section = text.partition('<section id="bits">')[2].partition("</section>")[0]
    assert "89,000 bytes lose 0.2; equal bits within the same budget take 90,000 and lose 0.5" in section
    assert ">3/8<" in section.partition("<svg")[2].partition("</svg>")[0]
    assert f"{EVIL}/8 throughout" in parsed.texts
    assert "top-1 92.60 % of 200 images, FP32 93.10 %" in section
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert "solver" not in section
    cut = dataclasses.replace(found, frontier=(dataclasses.replace(found.frontier[0], gap=0.03),))
    assert "for 1 of these sizes: there others could lose up to 3.0 % less" in to_html(make_report(search=cut)).decode()
    steps = [
        Step(size=95_000, loss=0.1, avg_weight=4.5, drop=0.25, error=0.1, images=128, held=True),
        Step(size=89_000, loss=0.2, avg_weight=3.5, drop=1.5, error=0.5, images=128, held=False, bounds=True),
    ]
    stepped = Parsed(to_html(make_report(search=dataclasses.replace(found, steps=tuple(steps)))).decode()).texts
    assert {"95,000", "0.25", "within what may be lost", "at most 1.50", "not surely within it"} <= set(stepped)
    assert not {"0.25", "not surely within it"} & set(parsed.texts)
    nothing = dataclasses.replace(found, chosen=estimate("auto", 0, 0.0), frontier=(), uniforms=())
    section = to_html(make_report(search=nothing)).decode().partition('<section id="bits">')[2]
    assert "<svg" not in section.partition("</section>")[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"size": -1}, "search.chosen.size is -1"), ({"loss": "low"}, "search"), ({"loss": 1e31}, "loss")],
)
def test_estimates_of_bits_that_cannot_be(changed: dict[str, Any], told: str) -> None:
    one = estimate("auto", 1, 1.0)
    found = SearchReport(budget="", measure="kl", chosen=one, uniform=None, frontier=(), uniforms=(), note="")
    plain = json.loads(make_report(search=found).to_json())
    plain["search"]["chosen"] |= changed
    with pytest.raises(ValueError, match=told):
        read_report(json.dumps(plain))
