"""The ImageNet recipe on a few generated images, with random weights and a tiny budget."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.architectures import ARCHITECTURES, MobileNetV2, build, export
from pdq_export.config.method import choose_options
from pdq_export.data import load_images
from pdq_export.errors import DataError, ModelError
from pdq_export.validate import Session
from recipes.imagenet.images import draw, list_samples, load, load_as_in_training, preprocessing, random_crop
from recipes.imagenet.paper import PAPER
from recipes.imagenet.reproduce import evaluate, load_checkpoint, main, settings

SIZE = 32
CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of three images each, none of them of the model's size."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (60, 44 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{name}_{number}.JPEG")
    return tmp_path / "images"


def test_labels_are_the_ranks_of_the_folders(pictures: Path) -> None:
    samples = list_samples(pictures)
    assert [label for _, label in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(path.parent.name == CLASSES[label] for path, label in samples)
    with pytest.raises(DataError, match="no images"):
        list_samples(pictures / CLASSES[0])


def test_drawing_depends_on_the_seed_alone(pictures: Path) -> None:
    samples = list_samples(pictures)
    assert draw(samples, 4, 1) == draw(samples, 4, 1) != draw(samples, 4, 2)
    assert len(set(draw(samples, 4, 1))) == 4
    assert sorted(draw(samples, 100, 1)) == samples


def test_images_are_prepared_as_by_a_folder_with_settings(pictures: Path) -> None:
    folder = pictures / CLASSES[1]
    (folder / "preprocess.toml").write_text(
        f"mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\nresize = 36\ncrop = {SIZE}\n"
    )
    ours = load(list_samples(pictures)[3:6], preprocessing(SIZE))
    assert ours.labels is not None
    assert ours.labels.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(ours.images, load_images(folder).images)
    assert preprocessing(224).resize == 256


def test_images_for_calibration_are_cropped_and_flipped_at_random(pictures: Path) -> None:
    samples = list_samples(pictures)
    first, again, other = (load_as_in_training(samples, preprocessing(SIZE), seed).pixels for seed in (1, 1, 2))
    assert first.shape == (9, 3, SIZE, SIZE)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert not np.array_equal(first, load(samples, preprocessing(SIZE)).pixels)


def test_random_crops() -> None:
    rows, columns = np.mgrid[:300, :200]
    image = Image.fromarray(np.stack([rows // 2, columns, columns], -1).astype(np.uint8))
    parts = [np.asarray(random_crop(image, (40, 20), np.random.default_rng(n))).astype(int) for n in range(50)]
    assert all(part.shape == (40, 20, 3) for part in parts)
    heights, widths = (
        np.array([np.ptp(part[..., channel]) * scale for part in parts]) for channel, scale in ((0, 2), (1, 1))
    )
    shares = heights * widths / (300 * 200)
    assert shares.min() > 0.05
    assert shares.max() < 1.0
    assert shares.max() > 0.6
    assert (np.abs(np.log(widths / heights)) < 0.4).all()
    flipped = [part[0, 0, 1] > part[0, -1, 1] for part in parts]
    assert 15 < sum(flipped) < 35
    line = random_crop(Image.new("RGB", (1000, 4)), (8, 8), np.random.default_rng(0))  # nothing drawn fits
    assert line.size == (8, 8)


def test_accuracy_is_counted_over_chunks(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.imagenet.reproduce.CHUNK", 4)
    monkeypatch.setattr("recipes.imagenet.reproduce.BATCH", 3)
    path = tmp_path / "model.onnx"
    export(build("mobilenetv2", seed=0), path, keep_batch_norm=True, image_size=SIZE)
    samples = list_samples(pictures)
    (logits,) = Session(path).run(load(samples, preprocessing(SIZE)).images)
    labels = logits.argmax(1).tolist()
    labels[7] = (labels[7] + 1) % 1000
    relabelled = [(file, label) for (file, _), label in zip(samples, labels, strict=True)]
    assert evaluate({"model": path}, relabelled, preprocessing(SIZE)) == {"model": pytest.approx(100 * 8 / 9)}


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoint(key: str | None, prefix: str, tmp_path: Path) -> None:
    source, model = build("mobilenetv2", seed=1), build("mobilenetv2", seed=0)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({key: state, "epoch": 90} if key else state, tmp_path / "checkpoint.pth")
    load_checkpoint(model, tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    state = build("resnet18", seed=0).state_dict()
    state["head.weight"], state["fc.weight"] = state.pop("fc.weight"), torch.zeros(10, 512)
    del state["layer1.0.conv1.weight"], state["bn1.num_batches_tracked"]
    torch.save(state, tmp_path / "checkpoint.pth")
    message = r"1 missing \(layer1.0.conv1.weight\); 1 unexpected \(head.weight\); 1 of another shape \(fc.weight\)"
    with pytest.raises(ModelError, match=message):
        load_checkpoint(build("resnet18", seed=0), tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("content", [{"weights": object}, [1, 2]])
def test_checkpoint_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelError, match=r"checkpoint\.pth"):
        load_checkpoint(build("resnet18", seed=0), tmp_path / "checkpoint.pth")


def test_every_network_has_its_figures() -> None:
    assert set(PAPER) == set(ARCHITECTURES)


@pytest.mark.parametrize("correction_iters", [0, 500])
@pytest.mark.parametrize("name", PAPER)
def test_every_budget_can_be_run(name: str, correction_iters: int) -> None:
    overrides = settings(name, {"correction_iters": correction_iters})
    chosen = choose_options(method="pd-quant", preset="paper", overrides=overrides)
    assert (chosen.correction_iters, chosen.temperature) == (correction_iters, PAPER[name].temperature)


class ShortMobileNetV2(MobileNetV2):
    STAGES = MobileNetV2.STAGES[:3]


@pytest.mark.usefixtures("short_search")
def test_command(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first stages of a network: whole ones are quantized by tests/benchmarks/test_architectures.py."""
    monkeypatch.setitem(ARCHITECTURES, "mobilenetv2", ShortMobileNetV2)
    torch.save(build("mobilenetv2", seed=1).state_dict(), tmp_path / "checkpoint.pth")
    folders = f"--train-images {pictures} --val-images {pictures} --out {tmp_path / 'out'}"
    budget = f"--samples 4 --iters 1 --correction-iters 1 --batch-size 2 --image-size {SIZE} --device cpu"
    command = f"mobilenetv2 --checkpoint {tmp_path / 'checkpoint.pth'} {folders} {budget} --bits 4/4 --bits 2/2"
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("|")]
    assert [(row[0].strip(), row[2].strip()) for row in rows[2:]] == [
        ("32/32", "72.62"),
        ("4/4", "68.33"),
        ("2/2", "14.17"),
    ]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    models = {"mobilenetv2-w4a4.onnx", "mobilenetv2-w2a2.onnx"}
    assert written == {"mobilenetv2.onnx", *models, *(name.replace(".onnx", ".json") for name in models)}
    taken = json.loads((tmp_path / "out" / "mobilenetv2-w2a2.json").read_text())["settings"]
    published = {
        "method": "pd-quant",
        "compensate_rounding": False,
        "equalize_channels": False,
        "lambda_r": 0.1,
        "prediction_interval": 1,
    }
    assert {name: taken[name] for name in published} == published
