"""Where a device's memory runs out: what is tried in which order, and that the result is whole or there is none."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pdq_export.calibrate.correction import correct_distribution
from pdq_export.calibrate.forward import run_forward
from pdq_export.calibrate.relief import with_relief
from pdq_export.calibrate.step import Step
from pdq_export.calibrate.store import Store
from pdq_export.calibrate.tiers import Memory
from pdq_export.errors import ResourceError
from tests.calibrate.networks import calibrate_example, residual
from tests.calibrate.test_second_device import OPTIONS, same, there
from tests.second_device import DEVICE, DeviceTensor, second_device

TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.00 GiB"
FEW = dataclasses.replace(OPTIONS, compensate_rounding=False)
pytestmark = pytest.mark.usefixtures("short_search")


@contextlib.contextmanager
def memory_that_runs_out(fits: Callable[[Step, Store], bool]) -> Iterator[list[tuple[int, set[str]]]]:
    """Steps fail for as long as they do not fit; by attempt, the pieces of the rest and where caches lie."""
    attempts: list[tuple[int, set[str]]] = []
    stores: list[Store] = []
    objective, made = Step._objective, Store.__init__

    def watched(self: Store, *arguments: Any, **keywords: Any) -> None:
        made(self, *arguments, **keywords)
        stores.append(self)

    def limited(self: Step, *arguments: Any) -> Any:
        result = objective(self, *arguments)  # after the masks have been drawn
        attempts.append((self._pieces, {tier for tier, used in stores[-1].used.items() if used}))
        if not fits(self, stores[-1]):
            raise torch.OutOfMemoryError(TOLD)
        return result

    with mock.patch.object(Step, "_objective", limited), mock.patch.object(Store, "__init__", watched):
        yield attempts


def test_smaller_pieces_of_the_rest_come_first() -> None:
    expected = calibrate_example(residual(images=32), FEW)
    with second_device(), memory_that_runs_out(lambda step, _: step._model.rest is None or step._pieces >= 4) as tried:
        found = there(residual(images=32), FEW)
    assert [pieces for pieces, _ in tried[:3]] == [1, 2, 4]
    assert all("device" in tiers for _, tiers in tried)
    assert same(found, expected)


def test_then_caches_move_to_the_host() -> None:
    expected = calibrate_example(residual(images=32), FEW)
    with second_device(), memory_that_runs_out(lambda _, store: not store.used["device"]) as tried:
        found = there(residual(images=32), FEW)
    pieces = [pieces for pieces, _ in tried[:6]]
    assert pieces == [1, 2, 4, 8, 16, 16]
    assert [tiers for _, tiers in tried[4:6]] == [{"device"}, {"host"}]
    assert all(tiers == {"host"} for _, tiers in tried[5:])
    assert same(found, expected)


def test_then_the_run_ends_with_what_would_help() -> None:
    with (
        second_device(),
        memory_that_runs_out(lambda *_: False) as tried,
        pytest.raises(ResourceError, match=r"a step on 16 images.*2\.00 GiB.*--set batch_size=8\)"),
    ):
        there(residual(images=32), FEW)
    assert len(tried) == 6


def test_a_cpu_tries_nothing() -> None:
    """What a run gives must not depend on what else takes memory."""
    with memory_that_runs_out(lambda *_: False) as tried, pytest.raises(torch.OutOfMemoryError):
        calibrate_example(residual(images=32), FEW)
    assert len(tried) == 1


def test_pieces_give_the_gradients_of_the_whole() -> None:
    seen: dict[int, Any] = {}
    gradients = Step._gradients

    def compared(self: Step, *arguments: Any) -> Any:
        state = self._model.masks.get_state()
        for pieces in (1, 3):
            self._model.masks.set_state(state)
            self._pieces = pieces
            seen[pieces] = gradients(self, *arguments)
        self._pieces = 1
        for one, other in zip(seen[1][2], seen[3][2], strict=True):
            torch.testing.assert_close(one, other)
        return seen[1]

    with mock.patch.object(Step, "_gradients", compared):
        calibrate_example(residual(images=32), FEW)
    assert seen


class Full:
    """A device on which nothing fits for as long as the memory of a cache there is held, by whomever."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: StorageWeakRef | None = None
        self.attempts = 0

    def check(self, x: torch.Tensor) -> None:
        """Fail while the memory of ``x`` is held, of the first time when it is a cache's."""
        self.attempts += 1
        storage = x.data_here.untyped_storage() if isinstance(x, DeviceTensor) else x.untyped_storage()
        if self._held is None:
            assert storage.data_ptr() in [_address(cache.data) for cache in self._store._caches]
            self._held = StorageWeakRef(storage)
        if not self._held.expired():
            raise torch.OutOfMemoryError(TOLD)


def _address(data: object) -> int | None:
    if isinstance(data, Memory) and isinstance(data.data, DeviceTensor):
        return data.data.data_here.untyped_storage().data_ptr()
    return None


def test_a_pass_is_tried_again_with_caches_on_the_host() -> None:
    example = residual(images=16)
    x = example.images
    with second_device():
        store = Store(DEVICE, device_bytes=2**30, host_bytes=None)
        cache = store.new(x.shape, x.dtype)
        cache.append(x.to(DEVICE))
        network, full = example.network.to(DEVICE), Full(store)

        def limited(images: torch.Tensor) -> Any:
            full.check(images)
            return network(images)

        outputs = run_forward(limited, [cache], ["y"], store)  # type: ignore[arg-type]
        assert full.attempts == 2
        assert (cache.tier, outputs["y"].tier) == ("host", "host")
        found = outputs["y"].slice(0, 16).cpu()
    assert torch.equal(found, residual(images=16).network(x)[0])


def test_so_is_a_correction() -> None:
    """With ever fewer batches together before caches go to the host."""
    expected, full, asked = calibrate_example(residual(images=32), FEW), list[Full](), list[int]()

    def limited(layer_outputs: Any, statistics: Any, x: torch.Tensor, options: Any, *, at_once: int) -> torch.Tensor:
        asked.append(at_once)
        full[-1].check(x)
        return correct_distribution(layer_outputs, statistics, x, options, at_once=at_once)

    def watched(self: Store, *arguments: Any, **keywords: Any) -> None:
        made(self, *arguments, **keywords)
        full.append(Full(self))

    made = Store.__init__
    with (
        second_device(),
        mock.patch.object(Store, "__init__", watched),
        mock.patch("pdq_export.calibrate.teacher.correct_distribution", limited),
    ):
        found = there(residual(images=32), FEW)
    assert asked[:5] == [8, 4, 2, 1, 1]
    assert same(found, expected)


def test_other_errors_are_not_tried_again() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        with_relief(fails, [lambda: pytest.fail("tried")])
