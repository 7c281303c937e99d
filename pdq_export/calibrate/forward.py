"""Forward passes over the calibration images, which need no gradient, batch by batch from cache to cache."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from pdq_export.calibrate.cache import Cache
from pdq_export.calibrate.quantizers import ActivationQuantizer
from pdq_export.calibrate.relief import with_relief
from pdq_export.calibrate.store import Store

FORWARD_BATCH = 64


def spread(count: int, most: int) -> Tensor:
    """Indices of at most so many of ``count`` images, over the whole set: it may be sorted by class."""
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def run_forward(
    module: fx.GraphModule,
    inputs: Sequence[Cache],
    names: Sequence[str],
    store: Store,
    *,
    quantizers: Mapping[str, ActivationQuantizer] | None = None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Cache]:
    """Outputs of ``module`` over the whole first axis of ``inputs``, under their ``names``.

    ``quantizers`` by name, where the output is what the quantizer has put out. ``told``: of how many images are done.
    """
    known = quantizers or {}
    outputs = _run(module, inputs, store, len(inputs[0]), [known.get(name) for name in names], told)
    return dict(zip(names, outputs, strict=True))


def run_probe(module: fx.GraphModule, inputs: Sequence[Cache], store: Store, stop: int) -> list[Cache]:
    """Elements of ``module``'s outputs over the first ``stop`` images, whatever the outputs' shape: caches [numel]."""
    return _run(module, inputs, store, min(len(inputs[0]), stop), None)


@torch.no_grad()
def _run(
    module: fx.GraphModule,
    inputs: Sequence[Cache],
    store: Store,
    count: int,
    quantizers: Sequence[ActivationQuantizer | None] | None,
    told: Callable[[int, int], None] = lambda *_: None,
) -> list[Cache]:
    results: list[Cache] = []
    for start in range(0, count, FORWARD_BATCH):
        stop = min(start + FORWARD_BATCH, count)
        outputs = with_relief(functools.partial(_compute, module, inputs, start, stop), [store.evict])
        if quantizers is None:
            outputs = tuple(y.flatten() for y in outputs)
        if not results:
            results = [
                store.new(_shape(y, stop - start, count), y.dtype, quantizer)
                for y, quantizer in zip(outputs, quantizers or [None] * len(outputs), strict=True)
            ]
        _append(results, outputs)
        told(stop, count)
        del outputs  # or they would live on beside the next batch's
    for cache in results:
        cache.verify()
    return results


def _compute(module: fx.GraphModule, inputs: Sequence[Cache], start: int, stop: int) -> tuple[Tensor, ...]:
    """Over these images, which are looked up here: held in between they would keep a cache's memory that makes way."""
    outputs: tuple[Tensor, ...] = module(*(x.slice(start, stop) for x in inputs))
    return outputs


def _append(caches: Sequence[Cache], values: Sequence[Tensor]) -> None:
    for cache, value in zip(caches, values, strict=True):
        cache.append(value)


def _shape(first: Tensor, batch: int, count: int) -> tuple[int, ...]:
    """Shape over ``count`` images of what ``first`` is over the first ``batch`` of them."""
    return math.ceil(len(first) * count / batch), *first.shape[1:]
