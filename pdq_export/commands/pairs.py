"""A pair of files of whoever made them, as commands take it, and the samples that both are run on."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from pdq_export import operators
from pdq_export.commands.progress import Tell
from pdq_export.data import Data, DataSource, InputSpec, Preprocess, read_data, whole_batches
from pdq_export.errors import ModelError, OptionError
from pdq_export.graph.external import external_locations
from pdq_export.graph.load import in_memory, read_model, read_structure
from pdq_export.graph.lookup import quantized_nodes
from pdq_export.report import ModelInfo
from pdq_export.validate import BATCH_SIZE, Batch, Pair, is_qonnx, runnable

logger = logging.getLogger(__name__)

_APPENDED = re.compile(r"(_quant|_quantized|_scale|_dequantized|_(De)?[Qq]uantizeLinear.*)$")  # what tools add to names
Model = str | Path | onnx.ModelProto


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A model as it is given: ``content``, a path or bytes; ``structure``: without external data.

    ``runs``: the same for onnxruntime, which knows no Quant nodes of QONNX.
    """

    content: bytes | Path
    structure: onnx.ModelProto
    external: tuple[Path, ...]
    runs: bytes | Path

    @classmethod
    def of(cls, given: Model, which: str) -> "File":
        if isinstance(given, str | Path):
            path = Path(given)
            structure = read_structure(path)
            external = tuple(path.parent / location for location in external_locations(structure))
            return cls(content=path, structure=structure, external=external, runs=_runnable(path, structure, str(path)))
        model = in_memory(given)
        if not model.graph.node:
            raise ModelError(f"{which}: its graph has no nodes; expected a network")
        content = model.SerializeToString()
        return cls(content=content, structure=model, external=(), runs=_runnable(content, model, which))

    @property
    def is_qonnx(self) -> bool:
        """Whether it is run in float with Quant spelt out, which is no measure of time."""
        return self.runs is not self.content

    def info(self) -> ModelInfo:
        """What is said of it."""
        if isinstance(self.content, bytes):
            return ModelInfo.of("", self.content)
        try:
            return ModelInfo.of_files(self.content, *self.external)
        except OSError as error:
            raise ModelError(f"{self.content}: cannot be read: {error.strerror or error}") from error


def _runnable(content: bytes | Path, structure: onnx.ModelProto, where: str) -> bytes | Path:
    """``content``, with the Quant nodes of QONNX spelt out where there are some; ``where``: what messages call it."""
    if not is_qonnx(structure):
        return content
    whole = content if isinstance(content, bytes) else read_model(content).SerializeToString()
    try:
        made = runnable(whole)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    logger.info("%s: its Quant nodes of QONNX are run in float; its kernels and time are not those of hardware", where)
    return made


def choose_batch(pair: Pair, asked: int | None) -> int:
    """How many samples are in a batch. Raises OptionError for a wrong number, or another than the files fix."""
    if asked is not None and (type(asked) is not int or asked < 1):
        raise OptionError(f"--batch-size {asked!r}: expected a whole number, 1 or more")
    if pair.batch is not None and asked not in (None, pair.batch):
        raise OptionError(
            f"--batch-size {asked}: the files fix it to {pair.batch}; expected {pair.batch}; leave it out, or export "
            "them with a dynamic batch axis"
        )
    return pair.batch or asked or BATCH_SIZE


def read_samples(
    data: DataSource,
    labels: Any,
    pair: Pair,
    size: int,
    tell: Tell,
    *,
    most: int | None = None,
    preprocess: Preprocess | None = None,
) -> Data:
    """The samples, at most the first ``most``, in whole batches where the files fix their size."""
    specs = [InputSpec(name=value.name, shape=value.shape or ()) for value in pair.inputs]
    told = lambda done, total: tell.images("read", done, total)  # noqa: E731
    samples = read_data(data, specs, labels=labels, told=told, preprocess=preprocess)
    if most is not None and len(samples) > most:
        samples = samples.head(most)
    return samples if pair.batch is None else whole_batches(samples, size, whose="the files'")


def first_batch(samples: Data, size: int) -> Batch:
    """The first ``size`` samples."""
    batches: Iterator[Batch] = samples.batches(size)
    return next(batches)


def warn_of_pair(original: onnx.ModelProto, quantized: onnx.ModelProto, names: tuple[str, str]) -> None:
    """Warn of files that are not an FP32 one and what was quantized of it; ``names``: of both, for messages."""
    first, second = names
    expected = "expected the FP32 file, and then what was quantized of it"
    ours, theirs = (next(quantized_nodes(model), None) is not None for model in (original, quantized))
    if ours and not theirs:
        logger.warning(
            "%s is quantized and %s is not: are the arguments swapped? What is told of FP32 is of the first; %s",
            first,
            second,
            expected,
        )
    elif ours:
        logger.warning("%s is quantized itself, and what is told of FP32 is of it; %s", first, expected)
    elif not theirs:
        logger.warning("%s has no quantized layer, and is measured as it is; %s", second, expected)
    if not _shares_layers(original.graph, quantized.graph):
        logger.warning("no layer of %s is found in %s: is it another network? %s", first, second, expected)


def _shares_layers(first: onnx.GraphProto, second: onnx.GraphProto) -> bool:
    """Whether a layer of the first is in the second, by any name; also where so many are that all may be renamed."""
    ours, theirs = ([node for node in graph.node if _is_layer(node)] for graph in (first, second))
    known = {name for node in ours for name in (node.name, *node.output, *node.input[1:2])}
    known -= {"", *(value.name for value in first.output)}  # which any network may call so
    others = {name for node in second.node for name in (node.name, *node.output, *node.input)}
    shared = known & others or known & {_APPENDED.sub("", name) for name in others}
    return not ours or len(ours) == len(theirs) or bool(shared)


def _is_layer(node: onnx.NodeProto) -> bool:
    found = operators.get(node.op_type)
    return found.weighted or found.kernel is not None
