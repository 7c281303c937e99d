"""A torch module as an ONNX model, with its BatchNormalization kept, whose statistics calibration uses."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pdq_export.errors import ModelError
from pdq_export.leftovers import temporary_folder

_OPSET, _LOWEST = 17, 13
_BATCH = "N"


def export_module(module: nn.Module, example_input: Any, *, opset: int | None = None) -> onnx.ModelProto:
    """Export a module in evaluation mode, as it computes for ``example_input``, with a dynamic axis 0 of its inputs.

    ``example_input``: a tensor [N, ...] or a tuple of them, as ``forward`` takes them. ``opset``: the highest one. The
    module is as it was afterwards. Inputs have the names of the parameters of ``forward``. Raises ModelError where the
    example is missing or torch cannot export the module.
    """
    module = _unwrapped(module)
    arguments = _arguments(module, example_input)
    names = _input_names(module, len(arguments))
    with temporary_folder() as folder:
        file = folder / "model.onnx"
        _export(module, arguments, names, file, max(_LOWEST, min(_OPSET, opset or _OPSET)))
        return onnx.load(file)


def _export(module: nn.Module, arguments: tuple[Tensor, ...], names: list[str], file: Path, opset: int) -> None:
    try:
        with _evaluating(module), _taking_only_these(module):
            torch.onnx.export(
                module,
                arguments,
                file,
                dynamo=False,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                opset_version=opset,
                input_names=names,
                dynamic_axes={name: {0: _BATCH} for name in names},
            )
    except Exception as error:  # of torch's exporter, and whatever forward raises
        raise ModelError(
            f"{_name(module)}: torch cannot export it ({_essence(error)}); expected a module that computes on the "
            "example and that torch.onnx.export(..., dynamo=False) takes; replace what it names, or write a file with "
            "the newer exporter, torch.onnx.export(model, args, 'model.onnx', dynamo=True), which needs onnxscript, "
            "and give its path"
        ) from error


def _unwrapped(module: nn.Module) -> nn.Module:
    """Without what torch.compile and data parallelism put around it."""
    while True:
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def _arguments(module: nn.Module, example_input: Any) -> tuple[Tensor, ...]:
    given = example_input if isinstance(example_input, tuple | list) else (example_input,)
    for value in given:
        if not isinstance(value, Tensor) or not value.ndim:
            shown = "a scalar" if isinstance(value, Tensor) else "missing" if value is None else type(value).__name__
            raise ModelError(
                f"{_name(module)}: example_input is {shown}; expected a tensor [N, ...], or a tuple of them, as its "
                "forward takes, for example torch.zeros(2, 3, 224, 224)"
            )
    device = next((x.device for x in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    return tuple(value.detach().to(device) for value in given)


def _input_names(module: nn.Module, count: int) -> list[str]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    named = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD][:count]
    return named if len(named) == count else [f"input_{position}" for position in range(count)]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; each of its parts is in its own again afterwards."""
    modes: Mapping[nn.Module, bool] = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _taking_only_these(module: nn.Module) -> Iterator[None]:
    """The module without parameters that have defaults: the exporter would make inputs of them."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        yield
        return
    forward = module.forward
    module.forward = lambda *arguments: forward(*arguments)
    try:
        yield
    finally:
        del module.forward


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _essence(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
