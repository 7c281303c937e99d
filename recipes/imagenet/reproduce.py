"""Reproduce a row of PD-Quant's ImageNet table; README.md beside this file has the commands."""

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import pdq_export
from benchmarks.architectures import build, export
from pdq_export.data import ImageSet
from pdq_export.data.preprocess import Preprocess
from pdq_export.errors import ModelError, PdqError, first_few
from pdq_export.validate import AccuracyMeter, Session
from recipes.imagenet.images import Sample, draw, list_samples, load, load_as_in_training, preprocessing
from recipes.imagenet.paper import BITS, FULL_PRECISION, PAPER

logger = logging.getLogger("imagenet")

CHUNK, BATCH = 512, 64  # validation images decoded at once, and given to onnxruntime at once


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Read a checkpoint into ``model``: a state dict, alone or under "state_dict" or "model", every name in its place.

    Raises ModelError where the names or shapes are others, or where the file holds more than tensors.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path}: not a checkpoint of tensors alone; save model.state_dict() with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        contents = contents.get(key, contents) if isinstance(contents, dict) else contents
    if not isinstance(contents, dict):
        raise ModelError(f"{path}: it holds a {type(contents).__name__}; expected a state dict")
    state: dict[str, Tensor] = {str(name).removeprefix("module."): value for name, value in contents.items()}
    _check_names(path, state, model.state_dict())
    model.load_state_dict(state, strict=False)  # names were checked; counters of batches may be missing


def _check_names(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(set(wanted) - set(found) - counters),
        "unexpected": sorted(set(found) - set(wanted)),
        "of another shape": sorted(n for n in set(found) & set(wanted) if found[n].shape != wanted[n].shape),
    }
    text = "; ".join(f"{len(names)} {what} ({first_few(names)})" for what, names in problems.items() if names)
    if text:
        raise ModelError(f"{path}: {text}; expected the names in benchmarks/architectures.py; rename the tensors")


def settings(name: str, budget: Mapping[str, int]) -> dict[str, Any]:
    """The paper's hyper-parameters for the network ``name``, as far as ``budget`` has a use for them, and that."""
    published = PAPER[name]
    return {
        "temperature": published.temperature,
        **({"lambda_c": published.lambda_c} if budget["correction_iters"] else {}),
        "lambda_r": published.lambda_r,
        "rounding_weight": published.rounding_weight,
        **budget,
    }


def quantize(
    name: str, model: Path, bits: str, calibration: ImageSet, output: Path, budget: Mapping[str, int], device: str
) -> None:
    """Quantize with the paper's hyper-parameters for the network ``name``, and write the report beside the model.

    ``budget``: samples, iters, correction_iters, batch_size and seed.
    """
    pdq_export.quantize(
        model,
        bits=bits,
        calib=calibration,
        output=output,
        report=output.with_suffix(".json"),
        overwrite=True,
        preset="paper",
        method="pd-quant",
        options=settings(name, budget),
        device=device,
    )


def evaluate(models: Mapping[str, Path], samples: Sequence[Sample], preprocess: Preprocess) -> dict[str, float]:
    """Top-1 in percent of every model in onnxruntime; the images are decoded once, a chunk at a time."""
    sessions = {name: Session(path) for name, path in models.items()}
    meters = {name: AccuracyMeter() for name in models}
    for start in range(0, len(samples), CHUNK):
        images = load(samples[start : start + CHUNK], preprocess)
        assert images.labels is not None
        for position, batch in enumerate(images.batches(BATCH)):
            labels = images.labels[position * BATCH : (position + 1) * BATCH]
            for name, session in sessions.items():
                meters[name].update(session.run(batch)[0], labels)
        logger.info("validation: %d of %d images", start + len(images), len(samples))
    return {name: 100 * meter.result().top1 for name, meter in meters.items()}


def table(name: str, measured: Mapping[str, float], count: int) -> str:
    """Measured and published top-1 side by side, in Markdown."""
    lines = [f"| {name}, W/A | top-1, {count:,} images | published |", "|---|---|---|"]
    lines += [f"| {bits} | {top1:.2f} | {PAPER[name].top1[bits]:.2f} |" for bits, top1 in measured.items()]
    return "\n".join(lines)


folder = click.Path(exists=True, file_okay=False, path_type=Path)
positive = click.IntRange(min=1)


@click.command(context_settings={"show_default": True})
@click.argument("name", type=click.Choice(list(PAPER)))
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--train-images", type=folder, required=True, help="Training images, one folder a class.")
@click.option("--val-images", type=folder, required=True, help="Validation images, one folder a class.")
@click.option("--bits", type=click.Choice(BITS), multiple=True, default=["4/4"], help="W/A; repeat it for more rows.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("imagenet-models"), help="For the models."
)
@click.option("--samples", type=positive, default=1024, help="Calibration images.")
@click.option("--iters", type=positive, default=20_000, help="Optimizer steps a block.")
@click.option("--correction-iters", type=click.IntRange(min=0), default=500, help="Steps of distribution correction.")
@click.option("--batch-size", type=positive, default=32)
@click.option("--image-size", type=click.IntRange(min=32), default=224, help="Side of the central crop.")
@click.option("--seed", type=click.IntRange(min=0), default=1005, help="The published code's default.")
@click.option("--device", default="auto")
def main(
    name: str,
    checkpoint: Path,
    train_images: Path,
    val_images: Path,
    bits: tuple[str, ...],
    out: Path,
    image_size: int,
    device: str,
    **budget: int,
) -> None:
    """Quantize one of the paper's networks and print its ImageNet top-1 next to the published one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    preprocess = preprocessing(image_size)
    try:
        model = build(name, seed=0)
        load_checkpoint(model, checkpoint)
        validation = list_samples(val_images)
        drawn = draw(list_samples(train_images), budget["samples"], budget["seed"])
        calibration = load_as_in_training(drawn, preprocess, budget["seed"])
        out.mkdir(parents=True, exist_ok=True)
        models = {FULL_PRECISION: out / f"{name}.onnx"}
        export(model, models[FULL_PRECISION], keep_batch_norm=True, image_size=image_size)
        for pair in bits:
            models[pair] = out / f"{name}-w{pair.replace('/', 'a')}.onnx"
            quantize(name, models[FULL_PRECISION], pair, calibration, models[pair], budget, device)
        measured = evaluate(models, validation, preprocess)
    except (PdqError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(name, measured, len(validation)))


if __name__ == "__main__":
    main()
