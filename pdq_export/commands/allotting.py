"""Bits of layers from a file, and for one: how a run that is given them, or has found them, goes on with its plan."""

import dataclasses
import logging
import typing
from pathlib import Path
from typing import Any, TypeVar

from pdq_export.commands.settle import choose, plan_options
from pdq_export.commands.written import bits_path
from pdq_export.config.config import Config, make_config, options_of, recorded
from pdq_export.config.sections import AUTO
from pdq_export.config.words import option_words
from pdq_export.fidelity import UserFile
from pdq_export.plan.freedom import rule_bits
from pdq_export.search.allotment import Allotment
from pdq_export.search.asked import BUDGETS
from pdq_export.search.bits_file import read_bits, write_bits
from pdq_export.work import PlannedModel

logger = logging.getLogger(__name__)

AnyConfig = TypeVar("AnyConfig", bound=Config)


def plan_widest(file: UserFile, config: Config) -> PlannedModel:
    """The model planned with 8 bits wherever no rule says otherwise, which names everything that bits can be given to.

    Raises as `PlannedModel.of`.
    """
    widest = make_config({"bits": AUTO}, base=config)
    return PlannedModel.of(file, plan_options(widest, choose(widest)), config.file, told=False)


def take_bits(config: AnyConfig, file: UserFile) -> tuple[AnyConfig, Allotment | None]:
    """The configuration with what --bits-from says by tensor, and the allotment where it is to be written.

    Raises OptionError for what the file says that the model does not have.
    """
    source, to = config.search.bits_from, config.search.bits_to
    if source is None and to is None:
        return config, None
    planned = plan_widest(file, config)
    if source is None:
        return config, _allotment(planned, config, file)
    read, where = read_bits(source), f"--bits-from {source}"
    if read.sha256 not in ("", file.sha256):
        logger.warning("%s: it was made for another model, %s; its names are taken as they are", where, read.model)
    changed = with_allotment(config, planned, read, where=where)
    return changed, _allotment(planned, changed, file) if to is not None else None


def with_allotment(config: AnyConfig, planned: PlannedModel, allotment: Allotment, *, where: str) -> AnyConfig:
    """The configuration that gives these bits: with them by tensor, where they are no rule's, and without a search.

    ``planned``: as `plan_widest` does. Bits that --tensor-bits gives stay. Equal allotments give equal configurations,
    whether they were found or read: so that their files are the same. ``where``: begins messages.
    """
    options = plan_options(config, choose(config))
    given = dict(options.tensor_bits)
    tensors = allotment.tensor_bits(planned.index, planned.plan, options, where=where) | given
    path = bits_path(config)
    gone = dict.fromkeys((*BUDGETS, "allowed_bits", "bits_from"))
    fields = {"bits": str(allotment.bits), "tensor_bits": tensors, "bits_to": path, **gone}
    changed: AnyConfig = typing.cast(Any, make_config(fields, base=config))
    return changed


def _allotment(planned: PlannedModel, config: Config, file: UserFile) -> Allotment:
    """The bits of all layers under a configuration that finds none."""
    options = plan_options(config, choose(config))
    bits = rule_bits(planned.index, planned.plan, options, options.bits) | dict(options.tensor_bits)
    found = Allotment.of(planned.index, planned.plan, bits, model=file.name, sha256=file.sha256)
    return dataclasses.replace(found, bits=options.bits)


def bits_content(path: Path, allotment: Allotment, config: Config) -> bytes:
    """The file of an allotment; as TOML it says under what options of the plan it was found."""
    return write_bits(allotment, as_json=path.suffix.lower() == ".json", beside=_chosen_with(config)).encode()


def _chosen_with(config: Config) -> str:
    """The options besides bits, budgets and data that the file depends on, as on the command line, in ASCII."""
    known = options_of(type(config))
    given = {
        name: value
        for name, value in recorded(config).items()
        if name not in ("bits", "tensor_bits") and known[name].path[0] not in ("search", "data")
    }
    return " ".join(option_words(given)).encode("ascii", "backslashreplace").decode()
