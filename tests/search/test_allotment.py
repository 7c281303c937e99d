"""Bits of layers: written, read, and given to the tensors of a plan; what names nothing, or two things, is refused."""

import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.commands.allotting import bits_content
from pdq_export.config.config import make_config
from pdq_export.errors import OptionError
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.search.allotment import Allotment, LayerBits
from pdq_export.search.bits_file import is_edited, read_bits, write_bits
from pdq_export.spec import BitWidths, Plan, Role

from ..onnx_text import fill, name_nodes, parse

PAD = "<pads = [1, 1, 1, 1]>"
SHAPES = {
    "w1": (4, 3, 3, 3),
    "w2": (4, 4, 3, 3),
    "w3": (4, 4, 3, 3),
    "w4": (5, 4),
    "w5": (4, 4, 3, 3),
    "w6": (4, 4, 1, 1),
}
# Two layers share a weight, two lead to one Add, and no layer ends in what the second Add gives.
BODY = f"""c1 = Conv {PAD} (image, w1) a1 = Relu(c1) c2 = Conv {PAD} (a1, w2) a2 = Relu(c2) c3 = Conv {PAD} (a2, w2)
    s1 = Conv {PAD} (a1, w3) s = Add(c3, s1) z = Relu(s) t = Add(z, a1) u = Relu(t) c4 = Conv {PAD} (u, w5)
    c5 = Conv (z, w6) q = Add(c4, c5) v = Relu(q)
    p = GlobalAveragePool(v) f = Flatten(p) y = Gemm <transB = 1> (f, w4)"""


def model() -> onnx.ModelProto:
    return name_nodes(fill(parse(BODY), SHAPES))


def widest(**options: object) -> tuple[GraphIndex, Plan, PlanOptions]:
    asked = PlanOptions.of("8/8", **options)  # type: ignore[arg-type]
    index = GraphIndex(prepare(model()).model)
    return index, make_plan(index, asked), asked


def learned(plan: Plan) -> list[str]:
    return [name for name, point in plan.points.items() if point.role is not Role.CARRIER]


@given(st.data())
def test_bits_of_tensors_come_back_from_the_file(data: st.DataObject) -> None:
    index, plan, options = widest()
    bits = {name: data.draw(st.integers(2, 8), name) for name in learned(plan)}
    found = Allotment.of(index, plan, bits, model="m.onnx", sha256="12")
    for as_json in (False, True):
        assert read_again(write_bits(found, as_json=as_json), as_json) == found
    planned = PlanOptions.of(found.bits, tensor_bits=found.tensor_bits(index, plan, options, where="f"))
    made = make_plan(index, PlanOptions.of(found.bits))
    changed = {name: made.points[name].bits for name in bits} | dict(planned.tensor_bits)
    assert changed == bits


def read_again(text: str, as_json: bool) -> Allotment:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("bits.json" if as_json else "bits.toml")
        path.write_text(text, encoding="utf-8")
        return read_bits(path)


def test_a_file_that_was_edited_is_known(tmp_path: Path) -> None:
    index, plan, _ = widest()
    text = write_bits(Allotment.of(index, plan, dict.fromkeys(learned(plan), 4)))
    path = tmp_path / "bits.toml"
    for edited in (text + "\n", text.replace("W = 4", "W = 5", 1), text.replace("# W", "# V"), "", "\xff"):
        path.write_bytes(edited.encode("latin-1"))
        assert is_edited(path), edited
    for same in (text, text.replace("\n", "\r\n")):
        path.write_bytes(same.encode())
        assert not is_edited(path)


def test_a_file_says_what_it_was_found_with(tmp_path: Path) -> None:
    allotment = Allotment(bits=BitWidths(4, 8), layers={"a": LayerBits(W=2)}, tensors={})
    plan = {"reduce_range": True, "exclude": ["x y", "ü\nbits = 2"], "target": "native", "bits": "4/8", "seed": 3}
    path = tmp_path / "bits.toml"
    path.write_bytes(bits_content(path, allotment, make_config(plan)))
    found = "chosen with: --exclude 'x y' --exclude '\\xfc\\nbits = 2' --reduce-range --target native --seed 3\n"
    assert found in path.read_text()
    assert read_bits(path) == allotment
    assert not is_edited(path)
    assert "chosen with" not in bits_content(path, allotment, make_config({})).decode()


def test_layers_and_what_no_layer_ends_in() -> None:
    index, plan, _ = widest()
    bits = {name: 2 + number % 7 for number, name in enumerate(learned(plan))}
    found = Allotment.of(index, plan, bits)
    assert found.layers["c2"] == LayerBits(W=bits["w2"], A=bits["a2"])
    assert found.layers["c3"] == LayerBits(W=bits["w2"], A=bits["z"])
    assert found.layers["s1"] == LayerBits(W=bits["w3"], A=bits["z"])
    assert found.layers["y"] == LayerBits(W=bits["w4"])
    assert found.tensors == {"u": bits["u"]}


def test_rules_come_before_what_the_file_says() -> None:
    every = {name: LayerBits(W=3, A=3) for name in ("c1", "c2", "c3", "s1", "c4", "c5")} | {"y": LayerBits(W=3)}
    allotment = Allotment(bits=BitWidths(3, 3), layers=every)
    index, plan, options = widest()
    # The last layer's input is an average of v, which is its activation.
    assert allotment.tensor_bits(index, plan, options, where="f") == {"w1": 3, "w4": 3, "v": 3}
    index, plan, options = widest(first_last="8/8", layer_bits="c4=5/6", exclude="c5")
    assert allotment.tensor_bits(index, plan, options, where="f") == {}
    few = Allotment(bits=BitWidths(4, 8), layers={"c2": LayerBits(W=3), "c3": LayerBits(A=2)})
    assert few.tensor_bits(index, plan, options, where="f") == {"w2": 3, "z": 2}


@pytest.mark.parametrize(
    ("layers", "tensors", "message"),
    [
        ({"c22": LayerBits(W=3)}, {}, "f: the model has no quantized layer 'c22'; did you mean 'c2'"),
        ({"nothing": LayerBits(W=3)}, {}, "no quantized layer 'nothing'; expected names such as c1, c2, c3, ..."),
        ({}, {"uu": 3}, "f: the model has no quantized tensor 'uu'; did you mean 'u'"),
        ({}, {"c3": 3}, "no quantized tensor 'c3'"),
        ({"c2": LayerBits(W=3), "c3": LayerBits(W=4)}, {}, "layers 'c2' and 'c3' share 'w2', with 3 and 4 bits"),
        ({"c3": LayerBits(A=3), "s1": LayerBits(A=4)}, {}, "layers 'c3' and 's1' share 'z', with 3 and 4 bits"),
        ({"c3": LayerBits(A=3)}, {"z": 4}, "tensor 'z' has 4 bits, and 3 with layer 'c3'"),
        ({"y": LayerBits(A=3)}, {}, "layer 'y' has A = 3, and ends in no learned activation.*leave A out"),
    ],
)
def test_what_names_nothing_or_two_things(layers: dict[str, LayerBits], tensors: dict[str, int], message: str) -> None:
    index, plan, options = widest()
    with pytest.raises(OptionError, match=message):
        Allotment(bits=BitWidths(4, 4), layers=layers, tensors=tensors).tensor_bits(index, plan, options, where="f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits = ", "is not TOML"),
        ("", "bits is missing; expected W/A"),
        ("bits = 4", "bits is 4; expected W/A of all layers"),
        ('bits = "4"', "bits '4': expected W/A"),
        ('bits = "4/9"', "activation bits are 9"),
        ('bits = "4/4"\nlayer = 3', "'layer' is unknown; expected bits, .*did you mean layers"),
        ('bits = "4/4"\nsha256 = 3', "sha256 is 3; expected text"),
        ('bits = "4/4"\nlayers = 3', "layers is 3; expected names with their bits"),
        ('bits = "4/4"\n[layers]\nc1 = 3', "layer 'c1': is 3; expected bits of weight and activation"),
        ('bits = "4/4"\n[layers]\nc1 = {}', "layer 'c1': is {}"),
        ('bits = "4/4"\n[layers]\nc1 = {W = 3, B = 4}', "layer 'c1': is {'W': 3, 'B': 4}"),
        ('bits = "4/4"\n[layers]\nc1 = {W = 9}', "layer 'c1': bits are 9; expected 2 to 8"),
        ('bits = "4/4"\n[layers]\nc1 = {W = true}', "layer 'c1': bits are True"),
        ('bits = "4/4"\n[tensors]\nc1 = 1.5', "tensor 'c1': bits are 1.5"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bits.toml").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_bits(tmp_path / "bits.toml")


def test_json_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bits.json"
    for content, message in (("[]", "expected an object"), ("{", "is not JSON"), ('{"bits": NaN}', "NaN")):
        path.write_text(content)
        with pytest.raises(OptionError, match=message):
            read_bits(path)
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read_bits(tmp_path / "missing.toml")
    path.write_bytes(b"\xff")
    with pytest.raises(OptionError, match="is not JSON"):
        read_bits(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    for name in ("bits.toml", "bits.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)  # no memory holds it
        with pytest.raises(OptionError, match="it has 1,099,511,627,776 bytes; expected at most 4,000,000"):
            read_bits(tmp_path / name)


def test_names_of_any_characters(tmp_path: Path) -> None:
    names = ['a"b', "c\\d", "ü=ø", "new\nline", "\U0001f600"]
    allotment = Allotment(bits=BitWidths(2, 3), layers={name: LayerBits(W=2) for name in names}, tensors={"x.y": 4})
    text = write_bits(allotment)
    assert text.isascii()
    (tmp_path / "b.toml").write_text(text)
    assert read_bits(tmp_path / "b.toml") == allotment
    assert list(json.loads(write_bits(allotment, as_json=True))["layers"]) == names
