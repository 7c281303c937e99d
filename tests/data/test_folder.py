"""Folders of images: order, sizes, preprocessing, labels, and files that are damaged."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pdq_export.data import InputSpec, find_default, load_images, read_data
from pdq_export.data.preprocess import Preprocess, read_preprocess
from pdq_export.errors import DataError

RNG = np.random.default_rng(0)
SPEC = InputSpec(name="x", shape=(1, 3, 8, 8))
STATISTICS = "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"


def write_image(path: Path, height: int = 8, width: int = 8, mode: str = "RGB") -> np.ndarray:
    """A random image; returns its pixels as (H, W, 3)."""
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def write_folder(folder: Path, names: str = "b.png a.png c.png", preprocess: str = STATISTICS) -> dict[str, np.ndarray]:
    if preprocess:
        (folder / "preprocess.toml").write_text(preprocess)
    return {name: write_image(folder / name) for name in names.split()}


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    written = write_folder(tmp_path)
    images = load_images(tmp_path, expected=SPEC)
    for index, name in enumerate(["a.png", "b.png", "c.png"]):
        expected = (written[name].transpose(2, 0, 1) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(images.array()[index], expected, rtol=1e-5, atol=1e-6)
    assert images.labels is None


def test_every_suffix_and_other_files(tmp_path: Path) -> None:
    write_folder(tmp_path, "a.jpg b.JPEG c.png d.bmp e.webp")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "f.png").mkdir()
    assert len(load_images(tmp_path, expected=SPEC)) == 5


def test_only_the_first_images_are_decoded(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "c.png").write_bytes(b"damaged, but never looked at")
    assert len(load_images(tmp_path, expected=SPEC, limit=2)) == 2


def test_it_is_told_how_many_images_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, "a.png b.png c.png d.png")
    (tmp_path / "b.png").write_bytes(b"damaged")
    told: list[tuple[int, int]] = []
    load_images(tmp_path, expected=SPEC, told=lambda done, count: told.append((done, count)))
    assert told == [(1, 4), (2, 4), (3, 4)]
    told.clear()
    read_data(tmp_path, [SPEC], limit=2, told=lambda done, count: told.append((done, count)))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_become_the_channels_of_the_model(tmp_path: Path, mode: str, channels: int) -> None:
    write_image(tmp_path / "a.png", mode=mode)
    images = load_images(tmp_path, expected=InputSpec(name="x", shape=(1, channels, 8, 8)))
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    assert images.image_shape == (channels, 8, 8)
    assert np.array_equal(images.pixels[0], expected[None] if channels == 1 else expected.transpose(2, 0, 1))


def test_without_preprocess_pixels_are_scaled_to_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, preprocess="")
    with caplog.at_level(logging.WARNING):
        images = load_images(tmp_path, expected=SPEC).array()
    assert "no mean and std (they would stand in preprocess.toml): pixels are scaled to 0..1" in caplog.text
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1


def test_resize_and_crop(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 30, 20)
    (tmp_path / "preprocess.toml").write_text(STATISTICS + "resize = 10\ncrop = 8\n")
    images = load_images(tmp_path, expected=SPEC)
    with Image.open(tmp_path / "a.png") as image:
        resized = np.asarray(image.resize((10, 15), Image.Resampling.BILINEAR))
    assert np.array_equal(images.pixels[0], resized[4:12, 1:9].transpose(2, 0, 1))


@pytest.mark.parametrize("settings", ["resize = [8, 8]", "resize = 9\ncrop = [8, 8]", "crop = 8"])
def test_other_sizes_are_brought_to_the_models(tmp_path: Path, settings: str) -> None:
    write_image(tmp_path / "a.png", 12, 40)
    (tmp_path / "preprocess.toml").write_text(settings)
    assert load_images(tmp_path, expected=SPEC).image_shape == (3, 8, 8)


@given(height=st.integers(1, 60), width=st.integers(1, 60), resize=st.integers(1, 40), crop=st.integers(1, 40))
def test_resize_gives_the_shorter_side_and_crop_its_size(height: int, width: int, resize: int, crop: int) -> None:
    image = Image.new("RGB", (width, height))
    resized = Preprocess(resize=resize).apply(image)
    assert min(resized.size) == resize
    cropping = Preprocess(resize=resize, crop=(crop, crop))
    if crop <= resize:
        assert cropping.apply(image).size == (crop, crop)
    else:
        with pytest.raises(ValueError, match="smaller than crop"):
            cropping.apply(image)


@pytest.mark.parametrize(
    ("height", "width", "settings", "message"),
    [
        (9, 10, "", r"a\.png: 9 x 10 \(H x W\), but the model's input 'x' .* takes 8 x 8; set resize or crop in"),
        (
            9,
            12,
            "resize = 8",
            r"a\.png: 8 x 10 \(H x W, made of 9 x 12\), but the model's input 'x' .* 8 x 8; set",
        ),
        (6, 6, "crop = 8", r"a\.png: 6 x 6 \(H x W\) is smaller than crop = \[8, 8\]; set resize"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path: Path, height: int, width: int, settings: str, message: str) -> None:
    write_image(tmp_path / "a.png", height, width)
    (tmp_path / "preprocess.toml").write_text(settings)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, expected=SPEC)


def test_a_dynamic_size_is_that_of_the_first_image(tmp_path: Path) -> None:
    dynamic = InputSpec(name="x", shape=(None, 3, None, None))
    write_image(tmp_path / "a.png", 9, 7)
    assert load_images(tmp_path, expected=dynamic).image_shape == (3, 9, 7)
    write_image(tmp_path / "b.png", 9, 8)
    with pytest.raises(DataError, match=r"b\.png: 9 x 8 \(H x W\), but the first image is 9 x 7; set resize"):
        load_images(tmp_path, expected=dynamic)


def test_channels_follow_the_means_where_the_model_leaves_them_open(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "preprocess.toml").write_text("mean = [0.5]\nstd = [0.5]\n")
    assert load_images(tmp_path).image_shape == (1, 8, 8)
    with pytest.raises(DataError, match=r"mean of shape \[1\], float64; expected 3 numbers"):
        load_images(tmp_path, expected=SPEC)
    with pytest.raises(DataError, match="takes 4 channels, but image files give 1 or 3"):
        load_images(tmp_path, expected=InputSpec(name="x", shape=(1, 4, 8, 8)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("means = [0.5]", r"key 'means' is not known; did you mean 'mean'\?"),
        ("gamma = 2.2", r"key 'gamma' is not known; expected mean, std, resize, crop, crop_fraction, letterbox"),
        ("interpolation = 'cubic'", r"interpolation = 'cubic'; expected one of nearest, bilinear, bicubic"),
        ("channel_order = 'GBR'", r"channel_order = 'GBR'; expected one of RGB, BGR"),
        ("layout = 'CHW'", r"layout = 'CHW'; expected one of NCHW, NHWC"),
        ("pixel_range = 255", r"pixel_range = 255; expected one of 0..1, 0..255"),
        ("crop_fraction = 87.5", r"crop_fraction = 87.5; expected a number from 0.01 to 1"),
        ("letterbox = 8\ncrop = 8", r"letterbox and crop exclude each other"),
        ("crop_fraction = 0.5\nresize = 8", r"crop_fraction and resize exclude each other"),
        ("padding = 3", r"padding is what letterbox puts around an image; expected letterbox"),
        ("letterbox = 8\npadding = 256", r"padding = 256; expected a whole number from 0 to 255"),
        ("mean = [0.5, 0.5, 0.5]", r"std is missing; expected mean and std together"),
        ("std = [0.5, 0.5, 0.5]", r"mean is missing"),
        ("mean = 0.5\nstd = 0.5", r"mean = 0\.5; expected a list of numbers"),
        ("mean = ['a']\nstd = [1.0]", r"mean = \['a'\]; expected a list of numbers"),
        ("mean = []\nstd = []", r"mean = \[\]; expected a list of numbers"),
        ("mean = [0.5, 0.5, 0.5]\nstd = [0.0, 1.0, 1.0]", r"std = .*; expected positive values"),
        ("mean = [123.0, 116.0, 103.0]\nstd = [58.0, 57.0, 57.0]", r"mean = .*: divide those for 0\.\.255 by 255"),
        ("resize = 0", r"resize = 0; expected the shorter side or \[height, width\]"),
        ("resize = true", r"resize = True; expected the shorter side"),
        ("crop = 'all'", r"crop = 'all'; expected the side of a square or \[height, width\]"),
        ("crop = [1, 2, 3]", r"crop = \[1, 2, 3\]; expected"),
        ("resize = 100000000", r"resize = 100000000; expected"),
        ("mean = [", r"not valid TOML"),
    ],
)
def test_preprocess_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    write_folder(tmp_path, preprocess=text)
    with pytest.raises(DataError, match=rf"preprocess\.toml: {message}"):
        load_images(tmp_path, expected=SPEC)


def test_labels(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbflabel,file,more\r\n7,c.png,x\r\n0,a.png,x\r\n3,b.png,x\r\n")
    images = load_images(tmp_path, expected=SPEC)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 3, 7]
    assert load_images(tmp_path, expected=SPEC, limit=2).labels.tolist() == [0, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", r"labels\.csv: columns none; expected a header line with 'file' and 'label'"),
        ("a.png,0", r"labels\.csv: columns 'a\.png', '0'; expected a header line"),
        ("file,class\na.png,0", r"columns 'file', 'class'; expected a header line"),
        ("file,label\na.png,0", r"no label for 2 images, first 'b\.png'; add them, or remove labels\.csv"),
        ("file,label\na.png,0\nz.png,1", r"line 3: 'z\.png': no such file in the folder"),
        ("file,label\na.png,0\na.png,1", r"line 3: 'a\.png' a second time"),
        ("file,label\n../a.png,0", r"line 2: '\.\./a\.png' is not a file of the folder; expected a bare file name"),
        ("file,label\n/etc/passwd,0", r"line 2: '/etc/passwd' is not a file of the folder"),
        ("file,label\nlabels.csv,0", r"line 2: 'labels\.csv' is no image"),
        ("file,label\na.png", r"line 2: incomplete; expected a file and a label"),
        ("file,label\na.png,cat", r"line 2: label 'cat'; expected the index of a class"),
        ("file,label\na.png,-1", r"line 2: label '-1'; expected the index of a class"),
        ("file,label\na.png,1.0", r"line 2: label '1\.0'; expected"),
        ("file,label\na.png,\u0663", r"line 2: label '\u0663'; expected"),
        ("file,label\na.png,99999999999", r"line 2: label '99999999999'; expected"),
        ("file,label\na.png,\udcff", r"labels\.csv: not a readable CSV file in UTF-8"),
    ],
)
def test_labels_that_are_wrong(tmp_path: Path, lines: str, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(lines.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, expected=SPEC)


def test_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images, it is empty; expected \.bmp, .* directly in the folder"):
        load_images(tmp_path)
    (tmp_path / "class0").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no images, but 1 other file and 1 folder"):
        load_images(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_files_are_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, "a.jpg b.jpg c.jpg d.png e.png")
    truncate(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"not a JPEG")
    truncate(tmp_path / "d.png")
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,0\nb.jpg,1\nc.jpg,2\nd.png,3\ne.png,4\n")
    with caplog.at_level(logging.WARNING):
        images = load_images(tmp_path, expected=SPEC)
    assert len(images) == 2
    assert images.labels is not None
    assert images.labels.tolist() == [0, 4]
    skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(skipped) == 3
    assert all(f"{name}: skipped: " in text for name, text in zip(("b.jpg", "c.jpg", "d.png"), skipped, strict=True))


@pytest.mark.parametrize("limit", [None, 2, 3])
def test_labels_beside_a_folder_are_of_its_files(tmp_path: Path, limit: int | None) -> None:
    names = "a.png b.png c.png d.png e.png"
    write_folder(tmp_path, names)
    (tmp_path / "b.png").write_bytes(b"damaged")
    data = read_data(tmp_path, (SPEC,), limit=limit, labels=[10, 11, 12, 13, 14])
    assert data.labels is not None
    assert data.labels.tolist() == [10, 12, 13, 14][:limit]
    for labels in (range(4), range(6)):  # of the good files alone, or of others
        with pytest.raises(DataError, match=rf"files by name: labels of shape {len(labels)} for 5 images"):
            read_data(tmp_path, (SPEC,), limit=limit, labels=labels)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{name},0\n" for name in names.split()))
    with pytest.raises(DataError, match="has labels of its own, and labels are given as well"):
        read_data(tmp_path, (SPEC,), limit=limit, labels=range(5))


def test_a_limit_counts_good_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"damaged")
    assert len(load_images(tmp_path, expected=SPEC, limit=2)) == 2


def test_all_damaged(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="none of 3 images can be decoded; see the warnings above"):
        load_images(tmp_path, expected=SPEC)


def bmp_header(width: int, height: int) -> bytes:
    fields = b"".join(n.to_bytes(4, "little") for n in (40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0))
    return b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + fields


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_decompression_bombs_are_skipped(tmp_path: Path, side: int, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, "b.png")
    (tmp_path / "a.bmp").write_bytes(bmp_header(side, side))
    with caplog.at_level(logging.WARNING):
        assert len(load_images(tmp_path, expected=SPEC)) == 1
    assert "a.bmp: skipped: " in caplog.text


def test_many_damaged_files_give_few_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, "z.png")
    for number in range(50):
        (tmp_path / f"{number}.png").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert len(load_images(tmp_path, expected=SPEC)) == 1
    assert len(caplog.records) == 4
    assert "47 more files are skipped" in caplog.text


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, channels: int, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "preprocess.toml").write_text("mean = [0]\nstd = [1]\n" if channels == 1 else STATISTICS)
    values = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    values[0, :2] = 0, 65535
    for number in range(100):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    with caplog.at_level(logging.WARNING):
        images = load_images(tmp_path, expected=InputSpec(name="x", shape=(1, channels, 8, 8)))
    expected = np.rint(values / 257).astype(np.uint8)
    assert images.pixels.shape == (100, channels, 8, 8)
    assert (images.pixels == expected).all()
    (message,) = (record.getMessage() for record in caplog.records)
    assert "100 of 100 images have 16 bits a channel, which are scaled to 8: 65535 becomes 255" in message


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, "b.png")
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        load_images(tmp_path, expected=SPEC)
    assert "1 of 2 images use at most 12 of their 16 bits and come out dark; if white is not 65535" in caplog.text


# What an image, stored as it is, looks like: EXIF orientations 1 to 8.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_images_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(
        tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    upright = UPRIGHT[orientation](pixels)
    images = load_images(tmp_path, expected=InputSpec(name="x", shape=(1, 3, *upright.shape[:2])))
    assert (images.pixels[0] == upright.transpose(2, 0, 1)).all()


def test_deep_images_are_upright_too(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    images = load_images(tmp_path, expected=SPEC)
    assert (images.pixels[0] == np.rot90(np.rint(values / 257).astype(np.uint8), -1)).all()


def test_damaged_exif_data_leave_the_pixels(tmp_path: Path) -> None:
    pixels = write_image(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\1" * 40)
    images = load_images(tmp_path, expected=SPEC)
    assert (images.pixels[0] == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("mode", "alpha", "told"), [("RGBA", 255, False), ("RGBA", 254, True), ("LA", 0, True), ("P", 0, True)]
)
def test_transparency_is_told(
    tmp_path: Path, mode: str, alpha: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "preprocess.toml").write_text(STATISTICS)
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode)
    if mode == "P":
        image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    else:
        image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], alpha))
        image.save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        images = load_images(tmp_path, expected=SPEC)
    assert (images.pixels[0] == np.asarray(image.convert("RGB")).transpose(2, 0, 1)).all()
    assert ("1 of 1 images are transparent in places" in caplog.text) == told


def test_the_first_picture_of_an_animation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING):
        images = load_images(tmp_path, expected=SPEC)
    assert (images.pixels[0] == np.asarray(first).transpose(2, 0, 1)).all()
    assert "1 of 1 images are animated: the first picture is taken" in caplog.text


def test_printed_colours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    write_image(tmp_path / "b.jpg")
    images = load_images(tmp_path, expected=SPEC)
    assert "1 of 2 images are in colours of print (CMYK): they are converted" in caplog.text
    assert "(a.jpg)" in caplog.text
    with Image.open(tmp_path / "a.jpg") as read:
        assert read.mode == "CMYK"
        assert (images.pixels[0] == np.asarray(read.convert("RGB")).transpose(2, 0, 1)).all()


def test_warnings_of_the_process_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`warnings.catch_warnings` would change them for every thread."""
    monkeypatch.setattr(warnings, "catch_warnings", pytest.fail)
    write_folder(tmp_path)
    load_images(tmp_path, expected=SPEC)


def test_imagenet(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = InputSpec(name="images", shape=(None, 3, 224, 224))
    images = load_images(shared_data / "imagenet_calib", expected=spec, limit=8)
    assert (len(images), images.image_shape) == (8, (3, 224, 224))
    assert images.labels is not None
    assert images.labels[:4].tolist() == [1, 2, 5, 6]
    assert -1 <= images.array().min() < images.array().max() <= 1.01
    assert not caplog.records


def test_find_default(tmp_path: Path) -> None:
    assert find_default(tmp_path / "missing") == (None, None)
    (tmp_path / "calib.npz").touch()
    (tmp_path / "eval").mkdir()
    assert find_default(tmp_path) == (tmp_path / "calib.npz", tmp_path / "eval")
    (tmp_path / "calib.npy").touch()
    with pytest.raises(DataError, match=r"calib\.npz, calib\.npy: expected one of them; say which with --calib"):
        find_default(tmp_path)


def test_toml_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "preprocess.toml"
    path.write_text("mean = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(DataError, match="not valid TOML"):
        read_preprocess(path)


def test_a_size_that_an_option_gives_is_mended_by_the_option(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 9, 12)
    (tmp_path / "preprocess.toml").write_text("resize = 8")
    given = Preprocess.of({"resize": 16})
    message = r"a\.png: 16 x 21 \(H x W, made of 9 x 12\), but .* takes 8 x 8; .* give --resize 8x8$"
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, expected=SPEC, preprocess=given)
    load_images(tmp_path, expected=SPEC, preprocess=Preprocess.of({"resize": "8x8"}))
