"""DICOM: right side up, with the grayscale of the PNG of the same array, and with the values of pydicom's own functions."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings, strategies
from made_up_dicom import (
    SECRETS,
    SYNTAXES,
    apply_modality_lut,
    apply_voi,
    convert_color_space,
    film,
    pydicom_brightness,
    read,
    table,
    written,
)
from PIL import Image

from ipu_trainer.cli import main
from ipu_trainer.tasks.chest_xray.data.dataset import load_prepared
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding, open_image
from ipu_trainer.tasks.chest_xray.data.pixels import dicom, dicom_checks, window
from ipu_trainer.tasks.chest_xray.data.pixels.image_limits import ImageError
from ipu_trainer.tasks.chest_xray.data.prepare import PrepareSettings, prepare

SIZE = 24
DEPTHS = [(8, 8), (16, 8), (16, 10), (16, 12), (16, 14), (16, 16)]
SHAPES = (None, "IDENTITY", "INVERSE")
FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def upright(bits, seed=0):
    """A square that is darker above and to the left, with the smallest and the largest value of the bits."""
    values = np.add.outer(np.arange(SIZE), np.arange(SIZE)) * (2**bits - 1) // (2 * SIZE - 2)
    values[5, 7] = np.random.default_rng(seed).integers(2**bits)
    return values


def stored(values, allocated, bits, signed=False, inverted=False):
    """The pixels that a film of these brightnesses stores."""
    values = 2**bits - 1 - values if inverted else values
    return (values - 2 ** (bits - 1) * signed).astype(f"{'i' if signed else 'u'}{allocated // 8}")


def png(values, bits):
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(out, "PNG")
    return out.getvalue()


def decoded(content, window="full"):
    return Decoding(SIZE, window=window)(content)


def reason(content, window="auto"):
    with pytest.raises(ImageError) as caught:
        decoded(content, window)
    return str(caught.value)


@pytest.mark.parametrize("allocated, bits", DEPTHS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", list(SYNTAXES))
def test_a_film_of_every_depth_comes_out_as_the_png_of_the_same_array(allocated, bits, signed, kind, syntax):
    values = upright(bits)
    expected = Decoding(SIZE)(png(values, bits))
    pixels = stored(values, allocated, bits, signed, kind == "MONOCHROME1")
    for shape in SHAPES:
        more = {} if shape is None else {"PresentationLUTShape": shape}
        assert np.array_equal(decoded(film(pixels, bits, syntax, kind, **more)), expected)
    if bits == 8:
        assert np.array_equal(decoded(film(pixels, bits, syntax, kind), "auto"), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", ["auto", "voi", "percentile", "full"])
def test_monochrome1_is_inverted_once_whatever_the_presentation_lut_shape_says(shape, window):
    values = upright(12)
    more = {"WindowCenter": 2048, "WindowWidth": 4096, **({} if shape is None else {"PresentationLUTShape": shape})}
    plain, inverted = (
        decoded(film(stored(values, 16, 12, inverted=kind == "MONOCHROME1"), 12, kind=kind, **more), window).astype(int)
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    assert plain[0, 0] == 0 and plain[-1, -1] == 255
    assert np.abs(plain - inverted).max() <= 1  # the percentiles of an inverted image are other pixels


@settings(max_examples=60, deadline=None)
@given(
    bits=strategies.integers(8, 16),
    signed=strategies.booleans(),
    slope=strategies.sampled_from([None, 0.25, 1.0, 2.0, 3.5]),
    intercept=strategies.integers(-2000, 2000),
    center=strategies.integers(-1500, 5000),
    width=strategies.integers(1, 6000),
    function=strategies.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    seed=strategies.integers(0, 9),
)
def test_modality_and_window_are_those_of_pydicom(bits, signed, slope, intercept, center, width, function, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (9, 9))
    pixels = stored(codes, 16, bits, signed)
    more = {"WindowCenter": [center, 9], "WindowWidth": [width, 7]}
    if slope is not None:
        more.update(RescaleSlope=slope, RescaleIntercept=intercept)
    if function is not None:
        more["VOILUTFunction"] = function
    content = film(pixels, bits, **more)
    image, data = open_image(content), read(content)
    values = apply_modality_lut(pixels, data)
    assert np.array_equal(image.values[image.codes], values)
    if width == 1 and function != "LINEAR_EXACT" and function != "SIGMOID":
        with np.errstate(all="ignore"):
            expected = pydicom_brightness(
                data, values
            )  # a step: pydicom divides nothing by nothing only between its ends
    else:
        expected = pydicom_brightness(data, values)
    assert np.allclose(image.brightness[image.codes], expected, rtol=0, atol=1e-9)


def test_the_modality_lut_comes_before_the_window():
    pixels = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    content = film(pixels, 12, RescaleSlope=100, RescaleIntercept=-50, WindowCenter=101, WindowWidth=201, VOILUTFunction="LINEAR")  # fmt: skip
    image = open_image(content)
    assert image.values[image.codes].tolist() == [[-50, 50, 150, 250]]
    assert np.allclose(image.brightness[image.codes], [[0, (50 - 100.5) / 200 + 0.5, (150 - 100.5) / 200 + 0.5, 1]])


def test_a_negative_slope_turns_the_film_and_a_window_leaves_it_so():
    """pydicom 3.0.2 turns it back (findings): the PNG of the values decides."""
    values = upright(12)
    for more in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        content = film(4095 - values.astype(np.uint16), 12, RescaleSlope=-1, RescaleIntercept=4095, **more)
        assert np.abs(decoded(content, "full" if not more else "voi").astype(int) - decoded(png(values, 12))).max() <= 1


@pytest.mark.parametrize("first, signed", [(0, False), (100, False), (-700, True)])
@pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
def test_lookup_tables_are_those_of_pydicom(first, signed, kind):
    pixels = np.random.default_rng(0).integers(-2048 if signed else 0, 2048, (9, 9)).astype("i2" if signed else "u2")
    entries = np.random.default_rng(1).integers(0, 65536, 900)
    entries[3] = 65535
    content = film(pixels, 12, **{kind: table(entries, first, 16)})
    image, data = open_image(content), read(content)
    if kind == "ModalityLUTSequence":
        assert np.array_equal(image.values[image.codes], apply_modality_lut(pixels, data))
    else:
        assert np.allclose(image.brightness[image.codes], apply_voi(pixels, data) / 65535, rtol=0, atol=1e-12)


@pytest.mark.parametrize("syntax", list(SYNTAXES))
def test_tables_of_eight_bits_serve_values_above_them(syntax):
    """In pydicom 3.0.2 the value 256 reads the entry 0 (findings), and packed bytes are an error."""
    pixels = np.array([[0, 255, 256, 1024, 2048, 4095]], dtype=np.uint16)
    entries = np.arange(4096) // 16
    packed = entries.astype(np.uint8).tobytes()
    for sequence in (table(entries, 0, 8), table(entries, 0, 8, packed)):
        if syntax == "big endian" and "LUTData" in sequence[0] and sequence[0]["LUTData"].VR == "OW":
            continue  # pydicom writes OW as it is
        image = open_image(film(pixels, 12, syntax, VOILUTSequence=sequence))
        assert np.array_equal(image.brightness[image.codes] * 255, pixels // 16)


def test_a_table_that_starts_below_zero_and_says_so_in_unsigned_numbers():
    """As it is read from files without value representations, where pixels are unsigned and the intercept is not."""
    image = open_image(
        film(
            np.array([[0, 24, 1024, 2000]], np.uint16), 12, RescaleSlope=1, RescaleIntercept=-1024,
            VOILUTSequence=table(np.arange(1001), 65536 - 1000, 16),
        )
    )  # fmt: skip
    assert (image.brightness[image.codes] * 1023).tolist() == [[0, 0, 1000, 1000]]


def test_a_table_of_twelve_bits_that_says_sixteen_reaches_white():
    """Agfa's devices write the size of an entry in the place of its bits."""
    image = open_image(film(np.array([[0, 4095]], np.uint16), 12, VOILUTSequence=table(np.arange(4096), 0, 16)))
    assert image.brightness[image.codes].tolist() == [[0.0, 1.0]]


def test_the_first_table_is_preferred_to_a_window_and_the_first_window_to_others():
    pixels = upright(12).astype(np.uint16)
    both = film(pixels, 12, VOILUTSequence=table(4095 - np.arange(4096), 0, 12), WindowCenter=10, WindowWidth=20)
    assert decoded(both, "voi")[0, 0] == 255
    several = film(pixels, 12, WindowCenter=[2048, 10], WindowWidth=[4096, 20])
    assert np.array_equal(
        decoded(several, "voi"), decoded(film(pixels, 12, WindowCenter=2048, WindowWidth=4096), "voi")
    )


@pytest.mark.parametrize(
    "more", [{}, {"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": ""}, {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "CUBIC"}]
)  # fmt: skip
def test_without_a_usable_window_auto_takes_percentiles_and_voi_refuses(more):
    content = film(upright(12).astype(np.uint16), 12, **more)
    assert np.array_equal(decoded(content, "auto"), decoded(content, "percentile"))
    assert "no usable VOI LUT or window" in reason(content, "voi")


@settings(max_examples=50, deadline=None)
@given(values=strategies.lists(strategies.integers(0, 5000), min_size=1, max_size=400))
def test_percentiles_are_those_of_numpy(values):
    ends = window.percentile_range(*np.unique(np.array(values, dtype=float), return_counts=True))
    assert list(ends) == np.percentile(values, window.PERCENTILES, method="inverted_cdf").tolist()


def test_percentile_windows_forget_markers_and_scale():
    rng = np.random.default_rng(3)
    dim = rng.integers(200, 900, (100, 100)).astype(np.uint16)
    marked = dim.copy()
    marked[:4, :10] = 4095
    low, high = np.percentile(marked, window.PERCENTILES, method="inverted_cdf")
    expected = np.rint(np.clip((marked.astype(int) - low) / (high - low), 0, 1) * 255)
    for content in (film(marked, 12), png(marked, 16)):
        assert np.array_equal(Decoding(100, window="percentile")(content), expected)
    assert high < 900 and not Decoding(100, window="percentile")(film(np.full((8, 8), 7, np.uint16), 12)).any()


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_black_and_moves_no_percentile(kind, signed):
    values = 1000 + upright(10)
    pixels = stored(values, 16, 12, signed, kind == "MONOCHROME1")
    border = pixels.copy()
    padding = -2048 * signed + (4090 if kind == "MONOCHROME2" else 3)
    border[:10], border[10, :4] = padding, padding + 2
    content = film(border, 12, kind=kind, PixelPaddingValue=padding, PixelPaddingRangeLimit=padding + 2)
    image = open_image(content)
    found = image.windowed("percentile")
    assert not found[:10].any() and not found[10, :4].any()
    rest = np.ones(pixels.shape, bool)
    rest[:10], rest[10, :4] = False, False
    low, high = np.percentile(values[rest], window.PERCENTILES, method="inverted_cdf")
    inside = np.rint(np.clip((values[rest] - low) / (high - low), 0, 1) * 255)
    assert np.abs(found[rest] - inside).max() <= (2 if kind == "MONOCHROME1" else 0)
    one = film(border, 12, kind=kind, PixelPaddingValue=padding)
    assert not open_image(one).windowed("full")[:10].any()


@pytest.mark.parametrize("signed", [False, True])
def test_an_overlay_in_unused_bits_is_not_seen(signed):
    pixels = stored(upright(12), 16, 12, signed)
    dirty = (pixels.view(np.uint16) & 0x0FFF) | (np.random.default_rng(0).integers(0, 16, pixels.shape) << 12).astype(np.uint16)  # fmt: skip
    assert np.array_equal(decoded(film(dirty.view(pixels.dtype), 12)), decoded(film(pixels, 12)))


COLORS = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("syntax", list(SYNTAXES))
def test_colors_become_the_grayscale_of_their_png(syntax):
    expected = np.asarray(Image.fromarray(COLORS).convert("L"))
    assert np.array_equal(decoded(film(COLORS, kind="RGB", syntax=syntax)), expected)
    planes = np.ascontiguousarray(COLORS.transpose(2, 0, 1)).tobytes()
    assert np.array_equal(
        decoded(film(COLORS, kind="RGB", syntax=syntax, PlanarConfiguration=1, PixelData=planes)), expected
    )
    wide = COLORS.astype(np.uint16) * 257
    assert np.array_equal(decoded(film(wide, kind="RGB", syntax=syntax)), expected)
    luma = convert_color_space(COLORS, "RGB", "YBR_FULL")
    back = convert_color_space(luma, "YBR_FULL", "RGB")
    assert np.array_equal(
        decoded(film(luma, kind="YBR_FULL", syntax=syntax)), np.asarray(Image.fromarray(back).convert("L"))
    )
    gray = np.repeat(upright(8).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(decoded(film(gray, kind="RGB", syntax=syntax)), upright(8))


def test_a_palette_becomes_the_grayscale_of_its_colors():
    colors = np.random.default_rng(6).integers(0, 256, (256, 3))
    more = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        more[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        more[f"{name}PaletteColorLookupTableData"] = (colors[:, number] * 257).astype("<u2").tobytes()
    indices = np.random.default_rng(7).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colors.astype(np.uint8)[indices]).convert("L"))
    assert np.array_equal(decoded(film(indices, kind="PALETTE COLOR", **more)), expected)


def wheel_files():
    return sorted(path.name for path in FILES.iterdir() if path.is_file()) if FILES.is_dir() else []


@pytest.mark.parametrize("name", wheel_files())
def test_files_of_pydicoms_wheel_have_its_values_or_are_refused(name):
    content = (FILES / name).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = open_image(content)
        except ImageError as error:
            assert str(error) and "\n" not in str(error)
            return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read(content)
        if isinstance(image, Image.Image):
            assert image.size == (data.Columns, data.Rows)
            if data.PhotometricInterpretation == "RGB" and data.BitsAllocated == 8:
                assert np.array_equal(np.asarray(image), data.pixel_array)
            return
        values = apply_modality_lut(data.pixel_array, data)
        assert np.array_equal(image.values[image.codes], values)
        if image.brightness is not None and "VOILUTSequence" not in data:
            assert np.allclose(image.brightness[image.codes], pydicom_brightness(data, values), atol=1e-9)
        assert image.windowed("auto").shape == (data.Rows, data.Columns)


EXPECTED_OF_WHEEL = {
    "test-SR.dcm": "no image: a DICOM object without pixel data (Comprehensive SR Storage)",
    "rtplan.dcm": "no image: a DICOM object without pixel data (RT Plan Storage)",
    "waveform_ecg.dcm": "no image: a DICOM object without pixel data (12-lead ECG Waveform Storage)",
    "rtdose.dcm": "multi-frame: 15 images in one file",
    "SC_rgb_rle_2frame.dcm": "multi-frame: 2 images in one file",
    "liver_1frame.dcm": "an enhanced multi-frame object (Segmentation Storage)",
    "rtdose_1frame.dcm": "32 bits per pixel",
    "MR_truncated.dcm": "truncated: 8,130 bytes of pixel data, 8,192 are declared",
    "README.txt": "not an image",
    "no_meta.dcm": "not an image",
}
GRAY_OF_WHEEL = [
    "CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "693_J2KI.dcm",
    "image_dfl.dcm", "MR_small_padded.dcm", "MR_small_jp2klossless.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", list(EXPECTED_OF_WHEEL))
def test_other_objects_of_the_wheel_are_refused_by_name(name):
    assert reason((FILES / name).read_bytes()).startswith(EXPECTED_OF_WHEEL[name])


@pytest.mark.parametrize("name", GRAY_OF_WHEEL)
def test_films_of_the_wheel_are_read_and_no_refusal(name):
    assert len(np.unique(decoded((FILES / name).read_bytes(), "auto"))) > 20


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_compressed_syntaxes_need_the_extra_and_say_so(name):
    content = (FILES / name).read_bytes()
    try:
        import libjpeg  # noqa: F401
    except ImportError:
        assert "pip install 'ipu-trainer[dicom]'" in reason(content)
        return
    assert len(np.unique(decoded(content, "auto"))) > 2
    if name.startswith("MR"):
        assert np.array_equal(decoded(content), decoded((FILES / "MR_small.dcm").read_bytes()))


def compressed(values, form):
    from pydicom.encaps import encapsulate

    out = io.BytesIO()
    if form == "RLE":
        data = read(film(values.astype(np.uint16), 12))
        data.compress("1.2.840.10008.1.2.5")
        return written(data)
    if form == "JPEG 2000":
        pytest.importorskip("openjpeg") if pydicom.__version__[0] != "2" else None
        Image.fromarray(values.astype(np.uint16)).save(out, "JPEG2000", no_jp2=True)
        uid, pixels, bits = "1.2.840.10008.1.2.4.90", values.astype(np.uint16), 16
    else:
        Image.fromarray(values.astype(np.uint8)).save(out, "JPEG", quality=100)
        uid, pixels, bits = "1.2.840.10008.1.2.4.50", values.astype(np.uint8), 8
    data = read(film(pixels, bits))
    data.file_meta.TransferSyntaxUID = uid
    data.PixelData = encapsulate([out.getvalue()])
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    return written(data)


@pytest.mark.parametrize("form, bits, most", [("RLE", 12, 0), ("JPEG 2000", 16, 0), ("JPEG", 8, 3)])
def test_compressed_films_have_the_values_of_native_ones(form, bits, most):
    values = upright(bits)
    content = compressed(values, form)
    expected = decoded(film(stored(values, 16 if bits > 8 else 8, bits), bits)).astype(int)
    assert np.abs(decoded(content) - expected).max() <= most


def test_a_jpeg_stream_of_more_bits_than_its_file_says_does_not_wrap():
    data = read(compressed(upright(16), "JPEG 2000"))
    data.BitsStored, data.HighBit = 12, 11
    assert np.array_equal(decoded(written(data)), decoded(film(upright(16).astype(np.uint16), 16)))


@pytest.mark.parametrize("form", ["JPEG 2000", "JPEG"])
def test_a_compressed_image_larger_than_declared_is_refused_before_it_is_decoded(form, monkeypatch):
    content = compressed(upright(16 if form == "JPEG 2000" else 8), form)
    data = read(content)
    data.Rows = data.Columns = 8
    monkeypatch.setattr(dicom, "decoded_pixels", None)
    assert reason(written(data)).startswith(
        "the compressed image has 24 x 24 pixels of 1 samples, the file declares 8 x 8"
    )


def test_declared_sizes_and_inflated_bytes_of_a_bomb_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(dicom, "decoded_pixels", None)
    content = film(upright(8).astype(np.uint8), Rows=60000, Columns=60000)
    assert reason(content) == "too large: 60000 x 60000 pixels, at most 67,108,864 are read"
    monkeypatch.setattr(dicom_checks, "_MAX_BYTES", 5 << 20)
    plain = (FILES / "image_dfl.dcm").read_bytes()
    end = 144 + struct.unpack("<I", plain[140:144])[0]
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = plain[:end] + packing.compress(b"\0" * (20 << 20)) + packing.flush()
    monkeypatch.setattr(pydicom, "dcmread", None)
    assert reason(bomb) == "too large: the deflated data set has more than 5,242,880 bytes"


FAULTS = {
    "multi-frame: 3 images": {"NumberOfFrames": 3},
    "truncated: an image (Digital X-Ray Image Storage - For Presentation) without pixel data": {"PixelData": None},
    "broken DICOM file: no PhotometricInterpretation": {"PhotometricInterpretation": None},
    "broken DICOM file: no Rows": {"Rows": None},
    "broken DICOM file: 0 x": {"Columns": 0},
    "a photometric interpretation other than MONOCHROME1": {"PhotometricInterpretation": "HSV"},
    "broken DICOM file: 3 samples per pixel with MONOCHROME2": {"SamplesPerPixel": 3},
    "12 bits stored of 16 with high bit 15": {"BitsStored": 12, "HighBit": 15},
    "broken DICOM file: RescaleSlope is 0": {"RescaleSlope": 0, "RescaleIntercept": 5},
    "broken DICOM file: RescaleSlope is 0, or it": {"RescaleSlope": 1, "RescaleIntercept": "nan"},
    "truncated: a lookup table has 90 entries, 100 are declared": {"VOILUTSequence": "short"},
    "truncated: 10 bytes of pixel data": {"PixelData": b"0123456789"},
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_is_no_film_is_refused_with_its_reason(fault):
    more = dict(FAULTS[fault])
    if more.get("VOILUTSequence") == "short":
        more["VOILUTSequence"] = table(np.arange(90), 0, 16)
        more["VOILUTSequence"][0].LUTDescriptor = [100, 0, 16]
    assert reason(film(upright(16).astype(np.uint16), **more)).startswith(fault)


def test_a_file_cut_anywhere_is_refused_in_one_line():
    content = film(upright(12).astype(np.uint16), 12, WindowCenter=2048, WindowWidth=4096, PatientName="Quixote^Alonso")
    rle = compressed(upright(12), "RLE")
    for whole in (content, rle):
        for end in [*range(0, len(whole) - 200, 97), len(whole) - 20]:
            text = reason(whole[:end])
            assert "\n" not in text and "Quixote" not in text and len(text) < 220


def test_broken_packets_of_rle_are_refused_though_their_decoder_panics():
    whole = compressed(upright(12), "RLE")
    for position in range(len(whole) - 300, len(whole) - 20, 9):
        broken = whole[:position] + b"\x7f\x7f\x7f" + whole[position + 3 :]
        try:
            assert decoded(broken).shape == (SIZE, SIZE)
        except ImageError as error:
            assert str(error).startswith("broken or truncated pixel data (RLE Lossless, ")


@settings(max_examples=150, deadline=None)
@given(strategies.integers(132, 1500), strategies.binary(min_size=1, max_size=6))
def test_a_file_with_changed_bytes_is_read_or_refused_without_its_text(position, change):
    content = film(upright(8).astype(np.uint8), PatientName="Quixote^Alonso", WindowCenter=100, WindowWidth=200)
    position = min(position, len(content) - 1)
    try:
        found = decoded(content[:position] + change + content[position + len(change) :], "auto")
    except ImageError as error:
        assert "Quixote" not in str(error)
    else:
        assert found.shape == (SIZE, SIZE)


def test_a_value_of_a_broken_file_does_not_get_into_the_message():
    for name in ("WindowWidth", "NumberOfFrames"):
        content = film(upright(12).astype(np.uint16), 12, **{"WindowCenter": "1", name: "99999999"})
        text = reason(content.replace(b"99999999", b"Quixote "))
        assert "Quixote" not in text and "DICOM file" in text


@pytest.mark.parametrize("syntax", list(SYNTAXES))
def test_a_file_without_preamble_is_read_if_it_has_what_an_image_has(syntax):
    pixels = upright(12).astype(np.uint16)
    assert np.array_equal(decoded(film(pixels, 12, syntax, meta=False)), decoded(film(pixels, 12)))
    assert reason(film(pixels, 12, syntax, meta=False, BitsAllocated=None)).startswith("not an image")


def test_decoding_in_threads_gives_the_same_pixels_and_leaves_warnings_as_they_were():
    contents = [(FILES / name).read_bytes() for name in ("MR_small_padded.dcm", "693_J2KI.dcm", "CT_small.dcm")] * 8
    expected = [decoded(content, "auto") for content in contents]
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(6) as pool:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        found = list(pool.map(lambda content: decoded(content, "auto"), contents))
        assert warnings.filters == inside
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))
    assert not [str(item.message) for item in seen] and warnings.filters == before
    assert threading.active_count() < 6


def test_a_missing_pydicom_is_named_for_a_file_that_is_dicom_by_its_content(monkeypatch):
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'ipu-trainer[dicom]'" in reason(film(upright(8).astype(np.uint8)))
    with pytest.raises(ValueError, match=r"a/b.DCM is a DICOM file, and pydicom.*pip install 'ipu-trainer\[dicom\]'"):
        dicom.check_paths(["a.png", "a/b.DCM", "c.dicom"], False)
    dicom.check_paths(["a.png"], True)


def test_names_without_suffix_are_known_by_their_content(tmp_path):
    content = film(upright(8).astype(np.uint8))
    for name, inside, known in (("IM0001", content, True), ("DICOMDIR", content, False), ("README", b"text", False)):
        (tmp_path / name).write_bytes(inside)
        assert dicom.is_dicom_file(tmp_path / name) is known
    assert not dicom.is_dicom_file(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    assert not dicom.is_dicom_file(tmp_path / "folder")


NAMES = [
    "p1/IM0001",
    "p1/view.dcm",
    "p2/1.2.826.0.1.77",
    "p2/b.dicom",
    "p3/c.dcm",
    "p3/wrong_name.png",
    "p4/d.dcm",
    "p4/e.png",
]


@pytest.fixture
def folder(tmp_path):
    """Films of four patients and one PNG among them, with names and dates in every file, a DICOMDIR, and their table."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = upright(12, seed=number).astype(np.uint16)
        path.write_bytes(png(values // 16, 8) if name == "p4/e.png" else film(values, 12, **SECRETS))
    (tmp_path / "images" / "DICOMDIR").write_bytes(film(values, 12))
    (tmp_path / "images" / "LICENSE").write_text("of the data")
    rows = [f"{name},{'Mass' if i % 2 else 'No Finding'},{name[1]}" for i, name in enumerate(NAMES)]
    (tmp_path / "table.csv").write_text("\n".join(["Image Index,Finding Labels,Patient ID", *rows]))
    return tmp_path


def words(folder, output, *more):
    return ["prepare", "chest-xray", "--csv", str(folder / "table.csv"), "--images", str(folder / "images"), "--output", str(folder / output), "--size", "16", "--workers", "1", "--validation_fraction", "0.25", "--test_fraction", "0.25", *more]  # fmt: skip


@pytest.mark.parametrize("window", ["auto", "percentile", "full"])
def test_a_folder_of_films_is_prepared_with_the_window_and_its_pixels_are_those_of_decoding(folder, window, capsys):
    assert main(words(folder, "out", "--window", window)) == 0
    assert capsys.readouterr().err.count("\n") <= 2  # the bar
    data = load_prepared(folder / "out")
    assert data.decoding == Decoding(16, window=window) and data.manifest["decoding"]["window"] == window
    kept = data.split("all")
    assert sorted(kept.table["file_name"]) == sorted(NAMES)
    for position, name in enumerate(kept.table["file_name"]):
        pixels = data.decoding((folder / "images" / name).read_bytes())
        assert np.array_equal(np.asarray(kept[position]["pixels"]), pixels) and pixels.max() > 200


def test_nothing_of_a_patient_gets_into_a_prepared_folder_or_its_messages(folder, capsys):
    bad = folder / "images" / "p4" / "d.dcm"
    bad.write_bytes(film(upright(12).astype(np.uint16), 12, NumberOfFrames=2, **SECRETS))
    assert main(words(folder, "out", "--skip_bad")) == 0
    said = "".join(capsys.readouterr())
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert {"rejected.csv", "prepared.json", "pixels.u8", "metadata.jsonl"} <= {path.name for path in files}
    content = b"\n".join(path.read_bytes() for path in files) + said.encode()
    assert b"multi-frame: 2 images" in content
    for value in SECRETS.values():
        for part in [value, *value.split("^")]:
            assert part.encode() not in content, part


def test_voi_rejects_films_without_a_window_by_name(folder, capsys):
    assert main(words(folder, "out", "--window", "voi")) == 1
    rejected = (folder / "out" / "rejected.csv").read_text()
    assert rejected.count("no usable VOI LUT or window in the file") == 7 and "p4/e.png" not in rejected


def test_a_missing_pydicom_stops_once_before_decoding(folder, monkeypatch, capsys):
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None)
    assert main(words(folder, "out", "--skip_bad")) == 1
    assert "p1/view.dcm is a DICOM file" in capsys.readouterr().err
    assert not (folder / "out" / "rejected.csv").exists() and not list((folder / "out").glob("pixels*"))


def test_in_place_is_refused_because_imagefolder_reads_no_dicom(folder, capsys):
    assert main(words(folder, "out", "--in_place")) == 1
    assert "imagefolder, which reads no DICOM files such as p1/view.dcm" in capsys.readouterr().err


def test_another_window_is_another_data_set_and_auto_is_what_earlier_releases_prepared(folder):
    settings = PrepareSettings(
        folder / "table.csv", folder / "images", folder / "out", size=16, workers=1, window="percentile",
        validation_fraction=0.25, test_fraction=0.25,
    )  # fmt: skip
    prepare(settings, progress=False)
    assert prepare(settings, progress=False).reused
    for other in ("auto", "full"):
        with pytest.raises(ValueError, match="other settings"):
            prepare(PrepareSettings(**{**vars(settings), "window": other}), progress=False)
    with pytest.raises(ValueError, match="--window 'bone' is not one of auto, voi, percentile, full"):
        PrepareSettings(**{**vars(settings), "window": "bone"})
    assert Decoding.from_dict({"size": 16, "resample": "bilinear", "scale": None}).window == "auto"
    kept = Decoding(16, window="voi")
    assert Decoding.from_dict(kept.to_dict()) == kept


def test_pixels_of_two_films_without_a_number_of_frames_are_refused():
    data = read(film(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    data.PixelData = data.PixelData * 2
    with pytest.raises(ImageError, match="one film is read"):
        open_image(written(data))
