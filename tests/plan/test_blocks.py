"""Which layers are reconstructed together, on small graphs written out as ONNX text."""

from collections.abc import Mapping

import pytest

from pdq_export.graph.prepare import prepare
from pdq_export.plan import PlanOptions, make_plan
from pdq_export.spec import BitWidths

from ..onnx_text import fill, name_nodes, parse

PAD = "<pads = [1, 1, 1, 1]>"
DEPTHWISE = "<pads = [1, 1, 1, 1], group = 8>"
# stem 3 -> 4; unit 4 -> 8 -> 4; head 4 -> 8; classifier
WEIGHTS = {
    "stem": (4, 3, 3, 3),
    "wide": (8, 3, 3, 3),
    "expand": (8, 4, 1, 1),
    "same": (8, 8, 1, 1),
    "deep": (8, 1, 3, 3),
    "project": (4, 8, 1, 1),
    "full": (4, 4, 3, 3),
    "full8": (4, 8, 3, 3),
    "squeeze": (2, 8, 1, 1),
    "excite": (8, 2, 1, 1),
    "classes": (5, 8),
}
STEM = f"s = Conv {PAD} (image, stem) r = Relu(s)"
HEAD = "h = Conv (z, expand) hr = Relu(h) p = GlobalAveragePool(hr) f = Flatten(p) y = Gemm <transB = 1> (f, classes)"


def blocks(body: str, names: Mapping[str, str] | None = None) -> list[list[str]]:
    """The output of every layer, block by block; ``names``: node names by output, the output's own without."""
    model = name_nodes(fill(parse(body), WEIGHTS), names)
    plan = make_plan(prepare(model).model, PlanOptions.of(BitWidths(4, 4)))
    assert [layer for block in plan.blocks for layer in block.layers] == list(plan.layers)
    return [[layer.output for layer in block.layers] for block in plan.blocks]


def test_a_plain_chain_is_cut_per_layer() -> None:
    body = f"{STEM} a = Conv {PAD} (r, full) ar = Relu(a) z = Conv {PAD} (ar, full) {HEAD}"
    assert blocks(body) == [["s"], ["a"], ["z"], ["h"], ["y"]]


def test_inverted_residuals_are_blocks_with_and_without_a_skip() -> None:
    body = f"""{STEM}
        a = Conv (r, expand) ar = Relu(a) b = Conv {DEPTHWISE} (ar, deep) br = Relu(b) c = Conv (br, project)
        d = Conv (c, expand) dr = Relu(d) e = Conv {DEPTHWISE} (dr, deep) er = Relu(e) g = Conv (er, project)
        t = Add(c, g)
        i = Conv (t, expand) ir = Relu(i) j = Conv {DEPTHWISE} (ir, deep) jr = Relu(j) z = Conv (jr, project) {HEAD}"""
    assert blocks(body) == [["s"], ["a", "b", "c"], ["d", "e", "g"], ["i", "j", "z"], ["h"], ["y"]]


def test_squeeze_and_excitation_is_part_of_the_unit() -> None:
    gate = """q = GlobalAveragePool(br) k = Conv (q, squeeze) kr = Relu(k) l = Conv (kr, excite) ls = Sigmoid(l)
        m = Mul(br, ls)"""
    body = f"""{STEM} a = Conv (r, expand) ar = Relu(a) b = Conv {DEPTHWISE} (ar, deep) br = Relu(b) {gate}
        z = Conv (m, project) {HEAD}"""
    assert blocks(body) == [["s"], ["a", "b", "k", "l", "z"], ["h"], ["y"]]


def test_swish_written_out_is_an_activation() -> None:
    body = f"""{STEM} a = Conv (r, expand) ag = Sigmoid(a) am = Mul(a, ag) b = Conv {DEPTHWISE} (am, deep)
        bg = Sigmoid(b) bm = Mul(b, bg) z = Conv (bm, project) {HEAD}"""
    assert blocks(body) == [["s"], ["a", "b", "z"], ["h"], ["y"]]


def test_separable_convolutions_with_activation_stay_one_block_a_layer() -> None:
    """MobileNetV1: no linear bottleneck ends a unit, and joining would go on to the end of the network."""
    body = f"""{STEM} a = Conv (r, expand) ar = Relu(a) b = Conv {DEPTHWISE} (ar, deep) br = Relu(b)
        c = Conv (br, same) cr = Relu(c) d = Conv {DEPTHWISE} (cr, deep) dr = Relu(d) e = Conv (dr, project)
        z = Relu(e) {HEAD}"""
    assert blocks(body) == [["s"], ["a"], ["b"], ["c"], ["d"], ["e"], ["h"], ["y"]]


def test_the_last_layer_is_a_block_of_its_own() -> None:
    body = (
        f"{STEM} a = Conv (r, expand) ar = Relu(a) b = Conv {DEPTHWISE} (ar, deep) br = Relu(b) y = Conv (br, project)"
    )
    assert blocks(body) == [["s"], ["a"], ["b"], ["y"]]


SEPARABLE = f"""s = Conv {PAD} (image, wide) r = Relu(s) b = Conv {DEPTHWISE} (r, deep) br = Relu(b)
    z = Conv (br, project) {HEAD}"""


@pytest.mark.parametrize(
    ("names", "one_block"),
    [
        ({}, True),  # no scopes: Paddle, PyTorch's newer exporter
        ({"s": "/features/features.0/features.0.0/Conv", "b": "/features/features.1/conv/conv.0/conv.0.0/Conv",
          "z": "/features/features.1/conv/conv.1/Conv"}, True),  # MobileNetV2
        ({"s": "/layers/layers.0/Conv", "b": "/layers/layers.3/Conv", "z": "/layers/layers.6/Conv"}, False),  # MNASNet
    ],
)  # fmt: skip
def test_without_expansion_the_names_of_modules_decide(names: dict[str, str], one_block: bool) -> None:
    assert blocks(SEPARABLE, names) == [["s"], *([["b", "z"]] if one_block else [["b"], ["z"]]), ["h"], ["y"]]


def test_beside_a_long_skip_residual_units_stay_whole_in_two_blocks() -> None:
    """One tensor passes by all the time: one cut, behind a unit, leaves no more layers than a block may have."""
    units = " ".join(
        f"a{k} = Conv {PAD} (r{k}, full) b{k} = Relu(a{k}) c{k} = Conv {PAD} (b{k}, full) d{k} = Add(c{k}, r{k}) "
        f"r{k + 1} = Relu(d{k})"
        for k in range(6)
    )
    body = f"""s = Conv {PAD} (image, stem) r0 = Relu(s) {units} e = Conv {PAD} (r6, full) g = Relu(e)
        j = Concat <axis = 1> (r0, g) k = Conv {PAD} (j, full8) z = Relu(k) {HEAD}"""
    others = [layer for k in range(1, 6) for layer in (f"a{k}", f"c{k}")]
    assert blocks(body) == [["s"], ["a0", "c0"], [*others, "e"], ["k"], ["h"], ["y"]]


def test_what_is_too_large_inside_several_long_skips_is_cut_once() -> None:
    """A pyramid of 16 layers between its outer skip's ends: one cut inside the chain of 13, where two skips pass by."""
    low = " ".join(f"l{k} = Conv {PAD} (m{k}, full) m{k + 1} = Relu(l{k})" for k in range(13))
    body = f"""s = Conv {PAD} (image, stem) r = Relu(s) a = Conv {PAD} (r, full) m0 = Relu(a) {low}
        n = Concat <axis = 1> (m0, m13) b = Conv {PAD} (n, full8) c = Relu(b) d = Conv {PAD} (c, full) e = Relu(d)
        j = Concat <axis = 1> (r, e) k = Conv {PAD} (j, full8) z = Relu(k) {HEAD}"""
    upper, lower = ([f"l{k}" for k in some] for some in (range(3), range(3, 13)))
    assert blocks(body) == [["s"], ["a", *upper], [*lower, "b", "d"], ["k"], ["h"], ["y"]]


def test_behind_a_resize_blocks_end_as_before_it() -> None:
    """Shape inference takes axis 0 behind a Resize by factors for another one than the batch."""
    twice = 'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
    body = f"""{STEM} a = Conv {PAD} (r, full) ar = Relu(a) scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
        up = {twice} (ar, , scales) b = Conv {PAD} (up, full) br = Relu(b) c = Conv {PAD} (br, full) z = Relu(c)
        {HEAD}"""
    assert blocks(body) == [["s"], ["a"], ["b"], ["c"], ["h"], ["y"]]
