"""Each decision about images that are not plain upright RGB, against hand values."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ImagesConfig, LimitsConfig
from pipeline.errors import ErrorCode, MediaError
from pipeline.media.container import MediaType
from tests.media.helpers import probe, read
from tests.media_factory import make_animation, make_image, picture


def image_of(path, images=None):
    return read(path, [0], images=images, media_type=MediaType.IMAGE)[0]


def save(path, array, mode=None, **kwargs):
    Image.fromarray(array, mode).save(path, **kwargs) if mode is None else Image.fromarray(array).save(path, **kwargs)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm"])
def test_lossless_rgb_is_unchanged(tmp_path, name):
    assert np.array_equal(image_of(make_image(tmp_path / name)), picture(0, 80, 56))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif", "a.jp2"])
def test_lossy_image_is_what_pillow_decodes(tmp_path, name):
    path = make_image(tmp_path / name)
    with Image.open(path) as image:
        assert np.array_equal(image_of(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_reported(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = make_image(tmp_path / name, exif=exif)
    stored = np.asarray(Image.open(make_image(tmp_path / f"plain_{name}")).convert("RGB"))
    turns = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(stored),
    }
    info, shown = probe(path), image_of(path)
    assert (info.height, info.width) == shown.shape[:2] == turns[orientation].shape[:2]
    assert np.array_equal(shown, turns[orientation])


def test_transparent_pixels_show_the_background(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (10, 20, 30, 0)
    pixels[1, 0] = (200, 100, 0, 128)
    path = save(tmp_path / "a.png", pixels)
    shown = image_of(path, ImagesConfig(background=(0, 0, 255)))
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert shown[0, 1].tolist() == [0, 0, 255]
    assert np.abs(shown[1, 0].astype(int) - (100, 50, 127)).max() <= 1
    assert image_of(path)[0, 1].tolist() == [255, 255, 255]


def test_transparent_palette_entry_and_gray_alpha_show_the_background(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert image_of(tmp_path / "p.png", ImagesConfig(background=(1, 2, 3))).tolist() == [[[255, 0, 0], [1, 2, 3]]]
    Image.new("LA", (1, 1), (90, 0)).save(tmp_path / "la.png")
    assert image_of(tmp_path / "la.png").tolist() == [[[255, 255, 255]]]


def test_colour_key_of_an_rgb_png_shows_the_background(tmp_path):
    save(tmp_path / "a.png", np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8), transparency=(9, 9, 9))
    assert image_of(tmp_path / "a.png").tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bit_gray_is_scaled_and_not_saturated(tmp_path, name):
    deep = np.array([[0, 128, 129, 257, 32_896, 65_535]], np.uint16)
    shown = image_of(save(tmp_path / name, deep))
    assert shown[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (shown == shown[..., :1]).all()


def test_gray_of_more_than_sixteen_bits_is_refused_and_not_saturated(tmp_path):
    shown = image_of(save(tmp_path / "a.tiff", np.array([[0, 257, 65_535]], np.int32)))
    assert shown[0, :, 0].tolist() == [0, 1, 255]
    with pytest.raises(MediaError, match="at most 16 bits, found values from 0 to 70000"):
        image_of(save(tmp_path / "b.tiff", np.array([[0, 70_000]], np.int32)))


def test_a_transparent_gray_of_sixteen_bits_shows_the_background(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 257, 65_535]], np.uint16), transparency=257)
    assert image_of(tmp_path / "a.png", ImagesConfig(background=(9, 8, 7))).tolist() == [
        [[0, 0, 0], [9, 8, 7], [255, 255, 255]]
    ]


def test_an_orientation_that_is_no_number_says_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = make_image(tmp_path / "a.jpg", exif=exif)
    as_number, as_text = (bytes([0x12, 0x01, kind, 0x00, 0x01, 0x00, 0x00, 0x00]) for kind in (3, 2))
    for number, text in ((as_number, as_text), (b"\x01\x12\x00\x03", b"\x01\x12\x00\x02")):
        path.write_bytes(path.read_bytes().replace(number, text, 1))
    with Image.open(path) as image:
        assert not isinstance(image.getexif().get(0x0112), int)
    assert image_of(path).shape == (56, 80, 3)


def test_gray_bilevel_and_cmyk_become_rgb(tmp_path):
    assert np.array_equal(
        image_of(make_image(tmp_path / "g.png", mode="L")),
        np.asarray(Image.fromarray(picture(0, 80, 56)).convert("L").convert("RGB")),
    )
    assert set(np.unique(image_of(make_image(tmp_path / "b.png", mode="1")))) == {0, 255}
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "c.tiff")
    assert image_of(tmp_path / "c.tiff")[0, 0].tolist() == [0, 255, 255]
    assert image_of(make_image(tmp_path / "c.jpg", mode="CMYK")).shape == (56, 80, 3)


def test_floating_point_pixels_are_unsupported(tmp_path):
    path = save(tmp_path / "f.tiff", np.ones((4, 4), np.float32))
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animation_gives_its_first_frame_or_all_as_a_video(tmp_path, name):
    path = make_animation(tmp_path / name)
    with Image.open(path) as image:
        expected = []
        for number in range(5):
            image.seek(number)
            expected.append(np.asarray(image.convert("RGB")))
    assert np.array_equal(image_of(path), expected[0])
    got = read(path, [0, 2, 2, 4])
    assert all(np.array_equal(ours, expected[index]) for ours, index in zip(got, (0, 2, 2, 4), strict=True))


def test_animation_that_ends_early_is_truncated_media(tmp_path):
    with pytest.raises(MediaError) as caught:
        read(make_animation(tmp_path / "a.gif"), [0, 9])
    assert caught.value.code is ErrorCode.TRUNCATED_MEDIA


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.gif", "a.bmp"])
def test_image_that_breaks_off_is_an_error(tmp_path, name):
    path = make_image(tmp_path / name, width=300, height=200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(MediaError) as caught:
        image_of(path)
    assert caught.value.code in (ErrorCode.TRUNCATED_MEDIA, ErrorCode.CORRUPT_MEDIA)


def test_an_assertion_of_the_library_is_the_files_fault(tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError

    path = make_image(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", refuse)
    with pytest.raises(MediaError) as caught:
        image_of(path)
    assert caught.value.code is ErrorCode.CORRUPT_MEDIA


def test_image_over_the_pixel_limit_is_refused_from_its_header(tmp_path):
    path = make_image(tmp_path / "a.png", width=100, height=50)
    with pytest.raises(MediaError, match=r"100x50 = 5000 pixels; limits\.max_image_pixels is 4999") as caught:
        probe(path, limits=LimitsConfig(max_image_pixels=4_999))
    assert caught.value.code is ErrorCode.LIMIT_EXCEEDED


def test_bomb_is_refused_before_it_is_unpacked(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    with pytest.raises(MediaError) as caught:
        probe(tmp_path / "bomb.png")
    assert caught.value.code is ErrorCode.LIMIT_EXCEEDED


def test_image_that_became_a_video_is_changed_media(made):
    with pytest.raises(MediaError) as caught:
        read(made("h264.mp4"), [0], media_type=MediaType.IMAGE)
    assert caught.value.code is ErrorCode.CHANGED_MEDIA
