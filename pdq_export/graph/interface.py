"""What a model promises to its users: inputs, outputs, opsets and metadata, which a rewrite has to keep."""

import onnx


def interface_difference(before: onnx.ModelProto, after: onnx.ModelProto, *, opsets: bool = True) -> str | None:
    """The difference between inputs, outputs and opsets of two models in words; None if there is none."""
    for what, old, new in (
        ("inputs", before.graph.input, after.graph.input),
        ("outputs", before.graph.output, after.graph.output),
    ):
        if [value.name for value in old] != [value.name for value in new]:
            return f"the names of the {what}"
        for left, right in zip(old, new, strict=True):
            types = left.type.tensor_type, right.type.tensor_type
            if types[0].elem_type != types[1].elem_type or len({len(t.shape.dim) for t in types}) > 1:
                return f"the type or rank of {left.name!r}"
    imports = [{(entry.domain, entry.version) for entry in model.opset_import} for model in (before, after)]
    return "the opsets" if opsets and imports[0] != imports[1] else None


def restore_interface(original: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    """Give a model the original's input and output declarations, dynamic axes included, and its metadata."""
    for field, source in (
        (changed.graph.input, original.graph.input),
        (changed.graph.output, original.graph.output),
        (changed.metadata_props, original.metadata_props),
    ):
        values = list(source)
        del field[:]
        field.extend(values)
