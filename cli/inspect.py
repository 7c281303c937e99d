"""``pdq-export inspect``: what would be quantized to what, before any calibration."""

import collections
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pdq_export.config.option import INSPECT
from pdq_export.config.record import bits_word
from pdq_export.config.sections import AUTO
from pdq_export.errors import first_few, printable
from pdq_export.process import find_modules_here

from .command import Frame, Outcome, command
from .options import config_options, given
from .paths import ModelPath
from .quantize import with_images
from .render import operations_line, search_lines

if TYPE_CHECKING:
    from pdq_export.commands.inspect import Inspection, TensorInfo
    from pdq_export.export.loading import Loading
    from pdq_export.plan.summary import LayerSummary


@command(
    summary="Show what quantize would do, without calibration.",
    example="pdq-export inspect model.onnx --bits 2/4 --exclude downsample",
    json_schema="pdq_export.commands.inspect",
)
@click.argument("model", type=ModelPath(), metavar="MODEL.onnx")
@config_options(INSPECT)
def inspect(frame: Frame, *, model: Path, config_file: Path | None, **arguments: Any) -> Outcome:
    """Show what quantize would do with a model: layers, blocks, bits, what stays in float and why, expected size.

    Calibrates nothing, and takes images for --bits auto alone, which finds the bits that quantize finds with the same
    options, those of the method among them. What --layer-bits and --exclude match are the node names shown here, and
    the paths of modules in parentheses; --exclude matches other nodes, too. Where quantize would refuse what is
    planned, the problems are listed, and it is done all the same.
    """
    from pdq_export.commands.settle import settle

    config = settle(config_file, given(arguments), command=INSPECT)
    measures = config.plan.bits == AUTO
    if measures:
        config = with_images(config)
        find_modules_here()
    with contextlib.ExitStack() as shown, frame.work():
        # Imported here, behind every check that needs no torch: it takes seconds.
        from pdq_export.commands.inspect import inspect_model

        progress = shown.enter_context(frame.progress()) if measures else None
        found = inspect_model(model, config=config, progress=progress)
    return Outcome(text=_lines(found), to_json=found.to_json)


def _lines(found: "Inspection") -> Iterable[RenderableType]:
    yield from _head(found)
    yield _layers(found)
    yield from _float(found)
    yield from _end(found)


def _head(found: "Inspection") -> Iterable[str]:
    yield f"{found.model.name}: opset {found.opset}, {len(found.layers)} layers in {len(found.plan.blocks)} blocks"
    for what, values in (("input", found.inputs), ("output", found.outputs)):
        yield from (f"  {what} {_tensor(value)}" for value in values)
    yield f"  BatchNormalization: {_batch_norm(found)}"
    numbers = ", ".join(f"{name} {number:g}" for name, number in found.to_dict()["hyper_parameters"].items())
    yield f"  family: {found.family} convolutions ({numbers})"


def _tensor(value: "TensorInfo") -> str:
    shape = "of unknown rank"
    if value.shape is not None:
        shape = " x ".join("?" if size is None else str(size) for size in value.shape) or "scalar"
    return f"{value.name}: {value.dtype or 'unknown type'} {shape}"


def _batch_norm(found: "Inspection") -> str:
    known = f"statistics known for {found.layers_with_statistics} of {len(found.layers)} layers"
    if found.batch_norm_nodes:
        return f"{found.batch_norm_nodes} nodes in the file; {known}"
    return "none in the file, folded or absent; statistics are estimated from the calibration images"


def _layers(found: "Inspection") -> Table:
    """One row a layer; blocks are told apart by their number, and kB are what the layer takes of the file."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("block", "layer", "operator", "weight", "W", "input", "A", "kB"):
        table.add_column(name, justify="left" if name in ("layer", "operator") else "right", overflow="fold")
    number = {layer.node: n for n, block in enumerate(found.plan.blocks, 1) for layer in block.layers}
    for layer in found.layers:
        shape = "x".join(map(str, layer.weight_shape))
        cells = [str(number.get(layer.node, "")), printable(_name(layer)), layer.op_type, shape, *_bits(layer)]
        size = found.layer_bytes.get(layer.node)
        cells.append("" if size is None else f"{size / 1000:,.1f}")
        table.add_row(*map(Text, cells))
    return table


def _name(layer: "LayerSummary") -> str:
    return f"{layer.node} ({layer.scope})" if layer.scope else layer.node


def _bits(layer: "LayerSummary") -> list[str]:
    own = "float" if layer.excluded else str(layer.weight_bits)
    others = [layer.input_bits, layer.activation_bits]
    return [own, *("float" if bits is None else str(bits) for bits in others)]


def _float(found: "Inspection") -> Iterable[str]:
    """Nodes in float by reason; few are named."""
    reasons = collections.Counter((node.op_type, node.reason) for node in found.floating)
    if reasons:
        yield "stays in float:"
    for (op_type, reason), count in reasons.items():
        names = [node.node for node in found.floating if (node.op_type, node.reason) == (op_type, reason)]
        yield f"  {count} {op_type}: {reason} ({first_few(names)})"


def _end(found: "Inspection") -> Iterable[str]:
    if found.kernels is not None:
        integer, floating = (sum(counts.values()) for counts in (found.kernels.integer, found.kernels.floating))
        yield f"weighted layers that run as integers in onnxruntime: {integer} of {integer + floating}"
    if found.saturating:
        count = len(found.saturating)
        names = first_few(found.saturating)
        yield f"of them saturate on x86 processors without VNNI, unless --reduce-range: {count} ({names})"
    if found.quantized_size is not None:
        from pdq_export.report.table import format_sizes

        before, after = format_sizes(found.model.size, found.quantized_size)
        ratio = found.quantized_size / max(found.model.size, 1)
        asked = f"target {found.settings['target']}, opset {found.settings['opset']}"
        yield f"expected size at {bits_word(found.settings)}: {after} of {before}, × {ratio:.3f} ({asked})"
    if found.bit_ops is not None:
        yield operations_line(found.bit_ops)
    if found.search is not None:
        yield from search_lines(found.search)
    if found.min_onnxruntime is not None:
        yield f"lowest version of onnxruntime: {found.min_onnxruntime}{_unpacking(found.loading)}"
    if found.loading is not None and found.loading.note:
        yield found.loading.note
    for what, messages in (("not supported", found.unsupported), ("problem", found.problems)):
        yield from (f"{what}: {' '.join(message.split())}" for message in messages)


def _unpacking(loading: "Loading | None") -> str:
    if loading is None or not loading.unpacking:
        return ""
    return f"; it unpacks the weights when it loads the file, with {loading.unpacking / 1e6:,.1f} MB at the peak"
