"""Two files, whoever made them, opened side by side: their inputs and outputs matched, by name or by position."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdq_export.errors import ModelError
from pdq_export.validate.kernels import KernelCount
from pdq_export.validate.runtime import Session, Value, open_counted, open_session

File = bytes | Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An FP32 file and a quantized one in onnxruntime; the second takes and gives what the first does.

    ``inputs``: as the first names them, with what both say of their shapes. ``kernels``: of the second.
    ``renamed``: inputs and outputs that the second calls otherwise, by the first's names. ``uncompared``: outputs of
    the first that cannot be compared, with the reason.
    """

    original: Session
    quantized: Session
    kernels: KernelCount
    inputs: tuple[Value, ...]
    renamed: Mapping[str, str]
    uncompared: Mapping[str, str]

    @property
    def batch(self) -> int | None:
        """The batch size that one of the files fixes."""
        return next((value.shape[0] for value in self.inputs if value.shape and value.shape[0]), None)


def open_pair(original: File, quantized: File) -> Pair:
    """Load both files, bytes or paths, and match their inputs and outputs.

    Raises ValidationError where onnxruntime does not load one, ModelError where inputs do not fit each other or are no
    numbers, and where no output can be compared.
    """
    first = open_session(original)
    second, kernels = open_counted(quantized)
    inputs = _match_inputs(first.takes, second.takes)
    outputs, uncompared = _match_outputs(first.gives, second.gives)
    first.rename([a.name for a, _ in inputs], {a.name: a.name for a, _ in outputs})
    second.rename([b.name for _, b in inputs], {b.name: a.name for a, b in outputs})
    return Pair(
        original=first,
        quantized=second,
        kernels=kernels,
        inputs=tuple(_merged(a, b) for a, b in inputs),
        renamed={a.name: b.name for a, b in (*inputs, *outputs) if a.name != b.name},
        uncompared=uncompared,
    )


def match_inputs(first: Sequence[Value], second: Sequence[Value]) -> list[tuple[Value, Value]]:
    """The inputs of two files in the first's order, by name or else by position; what axis 0 says is not compared.

    Raises ModelError where they do not fit each other, or are no numbers.
    """
    pairs, left, others = _match(first, second)
    if left or others or any(not _fits(a, b) for a, b in pairs):
        raise ModelError(
            f"the inputs of the two files do not fit each other: {_told(first)} of the first, {_told(second)} of the "
            "second; expected the same names, or as many of the same shapes in the same order; give a file and what "
            "was quantized of it"
        )
    for value in (value for pair in pairs for value in pair):
        if value.dtype is None:
            raise ModelError(f"input {value}: expected a tensor of numbers; start the model behind it")
    return pairs


def _match_inputs(first: Sequence[Value], second: Sequence[Value]) -> list[tuple[Value, Value]]:
    pairs = match_inputs(first, second)
    for value in (value for pair in pairs for value in pair):
        if value.shape is None:
            raise ModelError(
                f"input {value}: its rank is unknown, or it is a scalar; expected N x ..., declared in the file's "
                "graph.input, a name or a number for each axis"
            )
    batches = {value.shape[0] for pair in pairs for value in pair if value.shape and value.shape[0] is not None}
    if len(batches) > 1:
        raise ModelError(
            f"axis 0 is fixed to {' and '.join(map(str, sorted(batches)))}: {_told(first)} of the first file, "
            f"{_told(second)} of the second; expected one batch size; export one of them with a dynamic batch axis"
        )
    return pairs


def _match_outputs(first: Sequence[Value], second: Sequence[Value]) -> tuple[list[tuple[Value, Value]], dict[str, str]]:
    pairs, left, _ = _match(first, second)
    uncompared = {value.name: "the second file has no such output" for value in left}
    compared = []
    for a, b in pairs:
        kinds = {None if value.dtype is None else value.dtype.kind == "f" for value in (a, b)}
        if len(kinds) == 1 and None not in kinds:
            compared.append((a, b))
        else:
            uncompared[a.name] = f"it is {a.kind}, and {b.kind} in the second file"
    if not compared:
        raise ModelError(
            f"no output of the first file, {_told(first)}, can be compared with one of the second, {_told(second)}; "
            "expected the same names, or as many of the same shapes in the same order"
        )
    return compared, uncompared


def _match(
    first: Sequence[Value], second: Sequence[Value]
) -> tuple[list[tuple[Value, Value]], list[Value], list[Value]]:
    """Pairs in the first's order, by name or else by position, and what is left of both."""
    by_name = {value.name: value for value in second}
    names = {value.name for value in first}
    left = [value for value in first if value.name not in by_name]
    others = [value for value in second if value.name not in names]
    if len(left) == len(others) and all(map(_fits, left, others)):
        by_name |= {a.name: b for a, b in zip(left, others, strict=True)}
        left, others = [], []
    pairs = [(value, by_name[value.name]) for value in first if value.name in by_name]
    return pairs, left, others


def _fits(a: Value, b: Value) -> bool:
    if a.shape is None or b.shape is None:
        return True
    sizes = zip(a.shape[1:], b.shape[1:], strict=False)  # what axis 0 says is told by itself
    return len(a.shape) == len(b.shape) and all(None in pair or pair[0] == pair[1] for pair in sizes)


def _merged(a: Value, b: Value) -> Value:
    assert a.shape is not None
    assert b.shape is not None
    sizes = zip(a.shape, b.shape, strict=True)
    return dataclasses.replace(a, shape=tuple(own if own is not None else other for own, other in sizes))


def _told(values: Sequence[Value]) -> str:
    return ", ".join(map(str, values)) or "none"
