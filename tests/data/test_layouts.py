"""Folders as people have them: a subfolder for each class, channel orders and layouts, crops, and too many images."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pdq_export.data import (
    ImageSet,
    InputSpec,
    Preprocess,
    count_shared,
    image_digests,
    load_images,
    read_data,
    read_samples,
)
from pdq_export.errors import DataError
from pdq_export.signature import check_labels

NCHW = InputSpec(name="x", shape=(None, 3, 8, 8))
NHWC = InputSpec(name="x", shape=(None, 8, 8, 3))
PLAIN = 'pixel_range = "0..1"\n'


def write(folder: Path, names: str, settings: str = PLAIN, size: tuple[int, int] = (8, 8)) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    (folder / "preprocess.toml").write_text(settings)
    generator, made = np.random.default_rng(0), {}
    for name in names.split():
        made[name] = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made[name]).save(folder / name)
    return made


def test_subfolders_are_classes_that_take_turns(tmp_path: Path) -> None:
    made = write(tmp_path, "b/2.png b/1.png a/deep/x.png c/3.png c/1.png c/2.png d.d/1.PNG")
    (tmp_path / "bb").mkdir()  # a class without images keeps its rank
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("")
    order = ["a/deep/x.png", "b/1.png", "c/1.png", "d.d/1.PNG", "b/2.png", "c/2.png", "c/3.png"]
    images = load_images(tmp_path, expected=NCHW)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 3, 4, 1, 3, 3]
    assert images.classes == ("a", "b", "bb", "c", "d.d")
    assert np.array_equal(images.pixels[:], np.stack([made[name] for name in order]).transpose(0, 3, 1, 2))
    assert load_images(tmp_path, expected=NCHW, limit=4).labels.tolist() == [0, 1, 3, 4]  # type: ignore[union-attr]


def test_classes_are_as_many_as_the_models(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png b/1.png")
    images = load_images(tmp_path, expected=NCHW)
    check_labels("y", np.zeros((2, 2), np.float32), images)
    with pytest.raises(DataError, match=r"2 folders of classes, but output 'y' has 3 classes; .* add empty folders"):
        check_labels("y", np.zeros((2, 3), np.float32), images)
    (tmp_path / "c").mkdir()  # the remedies
    three = load_images(tmp_path, expected=NCHW)
    check_labels("y", np.zeros((2, 3), np.float32), three)
    with pytest.raises(DataError, match=r"3 folders of classes, but output 'y' has 2 classes; .* take out those that"):
        check_labels("y", np.zeros((2, 2), np.float32), three)
    (tmp_path / "labels.csv").write_text("file,label\na/1.png,2\nb/1.png,4\n")
    images = load_images(tmp_path, expected=NCHW)
    assert images.labels is not None
    assert images.labels.tolist() == [2, 4]
    check_labels("y", np.zeros((2, 5), np.float32), images)


def test_images_beside_folders_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "1.png thumbs/1.png")
    assert len(load_images(tmp_path, expected=NCHW)) == 1
    assert "has images itself, so those in its 1 subfolders are not read (thumbs)" in caplog.text


def test_no_images_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no images, but 0 other files and 1 folder without any; expected \.bmp"):
        load_images(tmp_path, expected=NCHW)


@pytest.mark.parametrize("spec", [NCHW, NHWC])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("as_option", [False, True])
def test_layout_and_channel_order(tmp_path: Path, spec: InputSpec, order: str, as_option: bool) -> None:
    text = "mean = [0.1, 0.2, 0.3]\nstd = [0.5, 0.6, 0.7]\n" + ("" if as_option else f'channel_order = "{order}"\n')
    (pixels,) = write(tmp_path, "a.png", text).values()
    images = load_images(
        tmp_path, expected=spec, preprocess=Preprocess(channel_order=order) if as_option else Preprocess()
    )
    ordered = pixels[..., ::-1] if order == "BGR" else pixels
    expected = (ordered / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    expected = expected if spec is NHWC else expected.transpose(2, 0, 1)
    np.testing.assert_allclose(images.images[0], expected, atol=1e-5)
    assert images.check(spec).layout == spec.layout
    assert np.array_equal(np.concatenate(list(images.batches(1))), images.images)


def test_bytes_of_an_array_in_both_layouts() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    given = Preprocess(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    last, first = (
        read_data(x, (spec,), preprocess=given).inputs()[0]
        for x, spec in ((pixels, NHWC), (list(pixels.transpose(0, 3, 1, 2)), NCHW))
    )
    assert np.array_equal(last.transpose(0, 3, 1, 2), first)
    np.testing.assert_allclose(last[0, 0, 0], (pixels[0, 0, 0] / 255 - [0.1, 0.2, 0.3]) / [1, 2, 3], rtol=1e-5)


def test_pixels_of_255(tmp_path: Path) -> None:
    (pixels,) = write(tmp_path, "a.png", 'pixel_range = "0..255"').values()
    np.testing.assert_allclose(load_images(tmp_path, expected=NHWC).images[0], pixels, rtol=1e-5)
    given = Preprocess(mean=(103.9, 116.8, 123.7), std=(1.0, 1.0, 1.0), pixel_range="0..255")
    found = load_images(tmp_path, expected=NHWC, preprocess=given).images[0]
    np.testing.assert_allclose(found, pixels - np.array(given.mean), atol=1e-3)


def test_a_share_of_the_image_is_cropped() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    by_hand = Preprocess(resize=256, crop=(224, 224)).apply(image)
    assert Preprocess(crop_fraction=0.875).apply(image, (224, 224)) == by_hand
    assert Preprocess(crop_fraction=0.875, crop=(224, 224)).apply(image) == by_hand
    with pytest.raises(ValueError, match="the model's size is dynamic; set crop"):
        Preprocess(crop_fraction=0.875).apply(image)
    with pytest.raises(ValueError, match="crop_fraction is of a square, and the crop is 8 x 4"):
        Preprocess(crop_fraction=0.875).apply(image, (8, 4))


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(0, 255))
def test_a_letterbox_shows_the_whole_image(height: int, width: int, high: int, wide: int, padding: int) -> None:
    image = Image.new("RGB", (width, height), (255 - padding,) * 3)
    made = np.asarray(Preprocess(letterbox=(high, wide), padding=padding).apply(image))
    assert made.shape == (high, wide, 3)
    inside = (made[..., 0] == 255 - padding) if padding != 255 - padding else np.ones((high, wide), bool)
    ratio = min(high / height, wide / width)
    assert abs(inside.any(1).sum() - max(1, height * ratio)) <= 1
    assert abs(inside.any(0).sum() - max(1, width * ratio)) <= 1


def test_filters(tmp_path: Path) -> None:
    (pixels,) = write(tmp_path, "a.png", PLAIN + 'resize = [8, 8]\ninterpolation = "bicubic"', (20, 16)).values()
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(load_images(tmp_path, expected=NHWC).pixels[0:1][0], expected)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess(resize=8), r"array.npy: --resize is given, and is for folders of images alone"),
        (Preprocess(channel_order="BGR"), r"--channel-order is given, .* set channel_order in its preprocess.toml"),
        (Preprocess(mean=(0.5,) * 3), "std is missing; expected mean and std together"),
        (Preprocess(mean=(0.5,), std=(1.0,)), "expected 3 numbers, one for each channel"),
    ],
)
def test_what_does_not_go_with_arrays(tmp_path: Path, preprocess: Preprocess, message: str) -> None:
    np.save(tmp_path / "array.npy", np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(DataError, match=message):
        read_data(tmp_path / "array.npy", (NCHW,), preprocess=preprocess)


def test_mean_std_and_range_stay_together(tmp_path: Path) -> None:
    """Those of preprocess.toml are of its own range: options do not mix with them."""
    write(tmp_path, "a.png", 'mean = [51, 51, 51]\nstd = [255, 255, 255]\npixel_range = "0..255"')
    own = load_images(tmp_path, expected=NCHW)
    assert own.mean is not None
    np.testing.assert_allclose(own.mean, [0.2] * 3)
    given = load_images(tmp_path, expected=NCHW, preprocess=Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert given.mean is not None
    assert given.std is not None
    np.testing.assert_allclose((given.mean, given.std), [[0.5] * 3, [0.25] * 3])
    load_images(tmp_path, expected=NCHW, preprocess=Preprocess(pixel_range="0..255"))
    for wrong, message in (
        (
            Preprocess(mean=(0.5,) * 3),
            r"std is missing \(that of preprocess.toml belongs to its own mean\); expected mean",
        ),
        (Preprocess(pixel_range="0..1"), r"pixel_range 0\.\.1 is given alone, .* of pixels of 0\.\.255; .* all three"),
        (Preprocess(mean=(51,) * 3, std=(255,) * 3), r"say pixel_range 0\.\.255 with them"),
    ):
        with pytest.raises(DataError, match=message):
            load_images(tmp_path, expected=NCHW, preprocess=wrong)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "own"), [("npz", True), ("npz", False), ("npy", False), ("array", False), ("items", False)]
)
def test_a_range_alone(tmp_path: Path, channels: int, suffix: str, own: bool) -> None:
    """It is of every channel where there is no mean, and leaves one that there is alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, channels, 8, 8), dtype=np.uint8)
    statistics = {"mean": np.full(channels, 0.25), "std": np.full(channels, 0.5)} if own else {}
    source: Any = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(source, images=pixels, **statistics)
    elif suffix == "npy":
        np.save(source, pixels)
    else:
        source = pixels if suffix == "array" else list(pixels)
    expected = (InputSpec(name="x", shape=(None, channels, 8, 8)),)
    unit = read_data(source, expected, preprocess=Preprocess(pixel_range="0..1")).inputs()[0]
    np.testing.assert_allclose(unit, (pixels / 255 - 0.25) / 0.5 if own else pixels / 255, atol=1e-6)
    if own:
        with pytest.raises(DataError, match=r"is given alone, and mean and std are there already, of pixels of 0\.\.1"):
            read_data(source, expected, preprocess=Preprocess(pixel_range="0..255"))
    else:
        bytes_ = read_data(source, expected, preprocess=Preprocess(pixel_range="0..255")).inputs()[0]
        np.testing.assert_allclose(bytes_, pixels, rtol=1e-5)


FLOATS = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
UNUSED: dict[str, Any] = {
    "npz": (lambda p: np.savez(p / "a.npz", images=FLOATS) or p / "a.npz", NCHW),
    "npy": (lambda p: np.save(p / "a.npy", FLOATS) or p / "a.npy", NCHW),
    "array": (lambda _: FLOATS, NCHW),
    "by name": (lambda _: {"x": FLOATS}, NCHW),
    "items": (lambda _: list(FLOATS), NCHW),
    "floats of a set": (lambda _: ImageSet.from_array(FLOATS), NCHW),
    "bytes of a set": (
        lambda _: ImageSet.from_array((FLOATS * 255).astype(np.uint8), mean=[0.0] * 3, std=[1.0] * 3),
        NCHW,
    ),
    "no image": (lambda _: FLOATS[:, 0], InputSpec(name="x", shape=(None, 8, 8))),
    "no image in an npz": (
        lambda p: np.savez(p / "a.npz", x=FLOATS[:, 0]) or p / "a.npz",
        InputSpec(name="x", shape=(None, 8, 8)),
    ),
}


@pytest.mark.parametrize("form", UNUSED)
@pytest.mark.parametrize("given", [Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), Preprocess(pixel_range="0..255")])
def test_what_has_no_influence_is_refused(tmp_path: Path, form: str, given: Preprocess) -> None:
    make, spec = UNUSED[form]
    with pytest.raises(DataError, match=rf"--{given.given()[0].replace('_', '-')} is given, and (is for uint8|has no)"):
        read_data(make(tmp_path), (spec,), preprocess=given)
    assert len(read_data(make(tmp_path), (spec,), preprocess=Preprocess())) == 4


def test_the_layout_of_a_set_is_its_own() -> None:
    images = ImageSet.from_array(FLOATS)
    assert read_data(images, (NCHW,), preprocess=Preprocess(layout="NCHW")) is images
    with pytest.raises(DataError, match="--layout is given, and has no influence on an ImageSet"):
        read_data(images, (NCHW,), preprocess=Preprocess(layout="NHWC"))


def test_classes_by_number(tmp_path: Path) -> None:
    names = [str(number) for number in range(11)]
    made = write(tmp_path, " ".join(f"{name}/a.png" for name in names))
    message = "class 2 is '10' in the order of names, .* but '2' in that of numbers; .* as many digits each .02."
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, expected=NCHW)
    rows = "".join(f"{name},{name.split('/')[0]}\n" for name in made)
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")  # the remedies
    by_csv = load_images(tmp_path, expected=NCHW)
    (tmp_path / "labels.csv").unlink()
    for name in names:
        (tmp_path / name).rename(tmp_path / f"{int(name):02}")
    by_rank = load_images(tmp_path, expected=NCHW)
    assert by_rank.labels is not None
    for images in (by_csv, by_rank):
        assert images.labels is not None
        for pixels, label in zip(images.pixels[:], images.labels.tolist(), strict=True):
            assert np.array_equal(pixels, made[f"{label}/a.png"].transpose(2, 0, 1))


@pytest.mark.parametrize("names", ["0 1 2", "1 2 3", "7 8 9", "00 1 2", "10 2 x"])
def test_names_that_are_in_order_both_ways(tmp_path: Path, names: str) -> None:
    write(tmp_path, " ".join(f"{name}/a.png" for name in names.split()))
    labels = load_images(tmp_path, expected=NCHW).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


def test_options_contradict_the_file(tmp_path: Path) -> None:
    write(tmp_path, "a.png", PLAIN + "resize = 8")
    with pytest.raises(DataError, match=r"preprocess\.toml with what is given for it: letterbox and resize exclude"):
        load_images(tmp_path, expected=NCHW, preprocess=Preprocess(letterbox=(8, 8)))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is too large to be held."""
    monkeypatch.setattr("pdq_export.data.folder.HELD", 3 * 192)
    write(tmp_path, "a/1.png a/2.png b/1.png b/2.png b/3.png")
    (tmp_path / "a/0.png").write_bytes(b"damaged")
    return tmp_path


def test_a_large_folder_is_the_same_set(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = load_images(large, expected=NCHW)
    assert not isinstance(found.pixels, np.ndarray)
    assert str(found) == f"{large}: 5 images 3 x 8 x 8 (uint8, labelled)"
    assert caplog.text.count("skipped") == 1  # and once is enough
    monkeypatch.undo()
    held = load_images(large, expected=NCHW)
    assert isinstance(held.pixels, np.ndarray)
    assert held.labels is not None
    assert np.array_equal(found.labels, held.labels)
    for some, others in ((found, held), (found.take([4, 1]), held.take([4, 1])), (found.head(2), held.head(2))):
        assert np.array_equal(some.images, others.images)
        assert image_digests(some) == image_digests(others)
        assert [len(batch) for batch in some.batches(2)] == [len(batch) for batch in others.batches(2)]
    assert count_shared(held.head(2), found) == count_shared(held.head(2), held) == 2
    floats = read_data(held.images[1:3], (NCHW,))
    assert count_shared(floats, found) == 2


def test_images_of_a_large_folder_are_found_again_without_decoding(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together would lie in memory, the parts that are compared and what these are views of."""
    streamed = load_images(large, expected=NCHW)
    with monkeypatch.context() as context:
        context.setattr("pdq_export.data.folder.HELD", 2**20)
        held = load_images(large, expected=NCHW)
    shutil.rmtree(large)
    for calibration, evaluation in ((streamed, held), (held, streamed), (streamed, streamed)):
        assert count_shared(calibration.head(3), evaluation) == 3


def test_a_large_folder_that_changes_is_refused(large: Path) -> None:
    images = load_images(large, expected=NCHW)
    first = large / "a/1.png"
    Image.new("RGB", (8, 8)).save(first)
    with pytest.raises(DataError, match=r"1\.png: has changed since it was read first; start again"):
        next(images.batches(2))
    first.unlink()
    with pytest.raises(DataError, match=r"1\.png: could be read before, but no more: .*No such file"):
        next(images.batches(2))


def test_samples_of_large_folders(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = read_samples(large, large, (NCHW,), 4)
    assert samples.shared == 4
    assert "4 of the 5 evaluation images are among the 4 of calibration" in caplog.text
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("LA", "png"), ("P", "png")])
def test_modes_that_are_no_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    """As Pillow, and with it torchvision, converts them."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(load_images(tmp_path, expected=NHWC).pixels[0:1][0], expected)


def test_a_mean_alone_is_told_as_what_it_is(tmp_path: Path) -> None:
    """The file of the folder has a std, which is of its own mean."""
    write(tmp_path, "a.png", "mean = [0.2, 0.2, 0.2]\nstd = [0.5, 0.5, 0.5]")
    for alone, message in (
        (
            Preprocess(mean=(0.5,) * 2),
            "--mean has 2 values, and the model's input 3 channels; expected 3 numbers, .* std",
        ),
        (
            Preprocess(std=(0.5,) * 3),
            r"--std is given, and mean is missing \(that of preprocess.toml belongs to its own",
        ),
    ):
        with pytest.raises(DataError, match=message):
            load_images(tmp_path, expected=NCHW, preprocess=alone)
    load_images(tmp_path, expected=NCHW, preprocess=Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3))
