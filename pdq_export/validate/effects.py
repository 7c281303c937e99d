"""What the error of one tensor alone does to the FP32 network's output."""

from collections.abc import Callable

import numpy as np
import onnx

from pdq_export.validate.layers import Array, LayerSessions, decibels, to_bytes
from pdq_export.validate.runtime import Batch, Session, with_outputs

_GIVEN = "given:"


def measure_effects(
    original: onnx.ModelProto,
    sessions: LayerSessions,
    batch: Batch,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float | None]:
    """By tensor of the FP32 file that its first output depends on: the signal-to-noise ratio there, in dB.

    The FP32 network is run once for each of them, on one batch, with the tensor as the quantized layer makes it of
    FP32 inputs; None where that changes nothing. ``progress`` is told how many tensors are done.
    """
    reference, _, single = sessions.run(batch)
    output = sessions.output
    inputs = sessions.original.inputs
    expected = Session(with_outputs(to_bytes(original), [output]))
    expected.rename(inputs, {output: output})
    (truth,) = expected.run(batch)
    found = {}
    for number, match in enumerate(sessions.matches, 1):
        name = match.name
        if single[name].shape == reference[name].shape:
            if name == output:
                found[name] = _ratio(truth, single[name])
            elif (model := _from(original, name, output)) is not None:
                found[name] = _ratio(truth, _run(model, name, output, inputs, batch, single[name]))
        if progress is not None:
            progress(number)
    return found


def _from(original: onnx.ModelProto, name: str, output: str) -> onnx.ModelProto | None:
    """The nodes that compute the output, given a tensor as a further input; None where it is not needed."""
    needed, nodes = {output}, []
    for node in reversed(original.graph.node):
        outputs = {one for one in node.output if one != name}
        if needed.intersection(outputs):
            nodes.append(node)
            needed.update(_reads(node))
    if name not in needed:
        return None
    made = onnx.ModelProto()
    made.CopyFrom(original)
    del made.graph.node[:], made.graph.output[:], made.graph.initializer[:]
    made.graph.node.extend(reversed(nodes))
    made.graph.initializer.extend(one for one in original.graph.initializer if one.name in needed)
    for node in made.graph.node:
        node.input[:] = [_GIVEN + name if read == name else read for read in node.input]
        node.output[:] = [f"{_GIVEN}{name}/unused" if one == name else one for one in node.output]
    made.graph.input.append(onnx.helper.make_tensor_value_info(_GIVEN + name, onnx.TensorProto.FLOAT, None))
    made.graph.output.append(onnx.ValueInfoProto(name=output))
    return made


def _reads(node: onnx.NodeProto) -> set[str]:
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            found.update(name for inner in graph.node for name in _reads(inner))
            found.update(value.name for value in graph.output)
    return found


def _run(model: onnx.ModelProto, name: str, output: str, inputs: tuple[str, ...], batch: Batch, given: Array) -> Array:
    session = Session(to_bytes(model))
    session.rename((*inputs, _GIVEN + name), {output: output})
    own = batch if isinstance(batch, tuple) else (batch,)
    return session.run((*own, given))[0]


def _ratio(reference: Array, other: Array) -> float | None:
    ref, error = (x.astype(np.float64).reshape(-1) for x in (reference, other - reference))
    return decibels(float(ref @ ref), float(error @ error))
