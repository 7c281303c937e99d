"""Whether kernels saturate on this processor in a file of which there is no simulation, as `validate` is given it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx

from pdq_export.errors import PdqError, first_few, percent
from pdq_export.export import read_blueprint
from pdq_export.export.blueprint import KEY
from pdq_export.graph.load import read_model
from pdq_export.plan.saturation import saturating_layers
from pdq_export.validate import Batch, KernelCount, Session, kernels_saturate
from pdq_export.validate.deviation import BY_DEFAULT, measure_ways
from pdq_export.validate.parity import NOTICED, Deviation

logger = logging.getLogger(__name__)


def find_saturated(
    content: bytes | Path, structure: onnx.ModelProto, kernels: KernelCount, session: Session, batch: Batch
) -> tuple[str, ...]:
    """The layers of a file of ours that saturate here, with a warning; none of another tool's, which tells no plan.

    Where some can, ``batch`` is run in float as the graph is written, which stands for the simulation, and by default
    and without saturation: kernels are to blame where the default is off and the other is much nearer. ``content``:
    the file, a path or its bytes, ``structure``: without external data, ``session``: that runs it.
    """
    if not kernels_saturate() or all(entry.key != KEY for entry in structure.metadata_props):
        return ()
    try:
        whole = read_model(content) if isinstance(content, Path) else onnx.load_model_from_string(content)
        plan = read_blueprint(whole).quantized.plan
        layers = kernels.as_integers(saturating_layers(plan, signed=True))
        found = _off(whole.SerializeToString(), session, batch) if layers else []
    except PdqError as error:
        logger.info("whether kernels saturate is not known: %s", error)
        return ()
    if not found:
        return ()
    worst = max(found, key=lambda one: one.as_run)
    reducible = bool(saturating_layers(plan))
    logger.warning(
        "output %r: onnxruntime is %s off the same file in float: on this processor its kernels saturate on weights of "
        "8 bits, or asymmetric ones of 7, with 8-bit inputs (%s); %s it is %s off, so the file is right for "
        "processors with VNNI%s",
        worst.output,
        percent(worst.as_run, 1),
        first_few([repr(layer) for layer in layers]),
        worst.way,
        percent(worst.best, 1),
        "; for those like this one quantize with --reduce-range" if reducible else "",
    )
    return layers


def _off(content: bytes, session: Session, batch: Batch) -> Sequence[Deviation]:
    """The outputs that are off by default, and much nearer with kernels that do not saturate."""
    written = Session(content, config=session.config, optimize=False)
    written.inputs = session.inputs
    names = written.outputs
    ways = measure_ways(content, [batch], written.run, names, session.config, inputs=session.inputs)
    here = ways.pop(BY_DEFAULT)
    cured = []
    for way, found in ways.items():
        for name in names:
            one = Deviation(output=name, as_run=here[name], here=here[name], best=found[name], way=way)
            if one.by_option and one.as_run > NOTICED and one.cured:
                cured.append(one)
    return cured
