"""Decoding, resizing and encoding of radiographs, and what hostile files do."""

from __future__ import annotations

import io
import logging
import struct
import traceback
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PIL
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from unirg.cohort import imaging
from unirg.cohort.corpora import UnreadableImage

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CANARY = "CANARYNAME"

rng = np.random.default_rng(7)
FILM = (np.add.outer(np.arange(60), np.arange(80)) * 255 // 138).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = PIL.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(pixels: np.ndarray, **fields: Any) -> bytes:
    """A minimal DICOM file of the pixels, whose header names a patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = fields.pop("transfer_syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.PatientName = CANARY
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_an_8_bit_png_keeps_its_pixels() -> None:
    assert np.array_equal(imaging.decode(encoded(FILM)), FILM)


def test_a_grey_film_saved_as_rgb_keeps_its_pixels() -> None:
    assert np.array_equal(imaging.decode(encoded(FILM, mode="RGB")), FILM)


def test_a_palette_or_transparency_does_not_change_a_grey_film() -> None:
    assert np.array_equal(imaging.decode(encoded(FILM, mode="RGBA")), FILM)
    assert np.array_equal(imaging.decode(encoded(FILM, mode="P")), FILM)


def test_a_jpeg_is_decoded_to_within_its_loss() -> None:
    decoded = imaging.decode(encoded(FILM, "JPEG", quality=95))
    assert decoded.shape == FILM.shape
    assert np.abs(decoded.astype(int) - FILM).max() <= 6


@pytest.mark.parametrize("depth", [65535, 4095, 1000])
def test_a_16_bit_png_keeps_its_greys_whatever_part_of_the_range_it_fills(depth: int) -> None:
    deep = (FILM.astype(np.uint32) * depth // 255).astype(np.uint16)
    decoded = imaging.decode(encoded(deep))
    assert len(np.unique(decoded)) > 100
    assert np.abs(decoded.astype(int) - FILM).max() <= 1


def test_a_constant_16_bit_image_is_black_and_not_an_error() -> None:
    assert not imaging.decode(encoded(np.full((8, 9), 40_000, np.uint16))).any()


def test_dicom_monochrome1_is_inverted_once_even_where_the_lut_shape_says_inverse_too() -> None:
    plain = imaging.decode(dicom(FILM))
    inverted = imaging.decode(
        dicom(FILM, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    assert np.array_equal(plain, FILM)
    assert np.array_equal(inverted, 255 - FILM)


def test_a_dicom_window_clips_and_a_modality_lut_comes_before_it() -> None:
    raw = np.tile(np.arange(1000, dtype=np.uint16), (200, 1))
    windowed = imaging.decode(
        dicom(raw, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=500, WindowWidth=400)
    )
    # The window's 300..700 are stored as 400..600.
    assert windowed[0, 395] == 0
    assert windowed[0, 605] == 255
    assert abs(int(windowed[0, 500]) - 127) <= 2


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        ({"NumberOfFrames": 2}, np.zeros((2, 8, 8), np.uint8)),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, np.zeros((8, 8), np.uint8)),
        ({"Rows": 60_000, "Columns": 60_000}, np.zeros((8, 8), np.uint8)),
        ({"BitsAllocated": 32, "BitsStored": 32}, np.zeros((8, 8), np.uint32)),
        ({"WindowCenter": 1, "WindowWidth": -5}, FILM),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "0"}, FILM),
        ({"PixelData": b"\0\0"}, FILM),
    ],
)
def test_a_dicom_that_is_no_single_grey_film_is_unreadable(
    fields: dict[str, Any], pixels: np.ndarray, recwarn: pytest.WarningsRecorder
) -> None:
    data = dicom(pixels, **fields)
    recwarn.clear()
    with pytest.raises(UnreadableImage):
        imaging.decode(data)
    assert not recwarn.list


def test_nothing_of_a_dicom_header_reaches_a_message_a_log_or_a_warning(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    odd = dicom(FILM, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", CANARY.encode())
    bad = dicom(FILM, NumberOfFrames="1234567890").replace(b"1234567890", CANARY.encode())
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    assert np.array_equal(imaging.decode(odd), FILM)  # pydicom warns of it with the value
    for hostile in (bad, odd[:-100]):
        with pytest.raises(UnreadableImage) as raised:
            imaging.decode(hostile)
        assert CANARY not in "".join(traceback.format_exception(raised.value))
    assert not caplog.text
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_unreadable(kind: str, kept: float) -> None:
    noise = rng.integers(0, 256, (200, 200), dtype=np.uint8)
    data = dicom(noise) if kind == "DICOM" else encoded(noise, kind)
    with pytest.raises(UnreadableImage):
        imaging.decode(data[: int(len(data) * kept)])


def test_a_png_with_one_flipped_byte_of_pixels_is_unreadable() -> None:
    for level in (0, 1, 9):
        data = bytearray(encoded(rng.integers(0, 256, (100, 100), dtype=np.uint8), compress_level=level))
        data[len(data) // 2] ^= 0xFF
        with pytest.raises(UnreadableImage):
            imaging.decode(bytes(data))


def test_a_file_of_another_kind_is_unreadable() -> None:
    for data in (b"", b"<html>not found</html>", encoded(FILM, "GIF"), encoded(FILM, "TIFF")):
        with pytest.raises(UnreadableImage):
            imaging.decode(data)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    side = 30_000
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    with pytest.raises(UnreadableImage):
        imaging.decode(b"\x89PNG\r\n\x1a\n" + header + body)


def test_the_limits_on_bytes_and_pixels_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(FILM)
    monkeypatch.setattr(imaging, "MAX_BYTES", len(data) - 1)
    with pytest.raises(UnreadableImage, match="MiB"):
        imaging.decode(data)
    monkeypatch.setattr(imaging, "MAX_BYTES", len(data))
    monkeypatch.setattr(imaging, "MAX_PIXELS", FILM.size - 1)
    monkeypatch.setattr(imaging, "MAX_BYTES", 2**20)
    for too_many in (data, dicom(FILM)):
        with pytest.raises(UnreadableImage, match="pixels"):
            imaging.decode(too_many)
    monkeypatch.setattr(imaging, "MAX_PIXELS", FILM.size)
    assert imaging.decode(data).shape == FILM.shape


def test_a_strip_is_not_the_shape_of_a_radiograph() -> None:
    spine, strip = np.zeros((40, 10), np.uint8), np.zeros((90, 10), np.uint8)
    assert imaging.decode(encoded(spine)).shape == spine.shape
    for data in (encoded(strip), encoded(strip.T), dicom(strip), encoded(strip, "JPEG")):
        with pytest.raises(UnreadableImage, match="not the shape of a radiograph"):
            imaging.decode(data)


def test_a_dicom_of_a_billion_rows_is_refused_before_it_is_decoded() -> None:
    rows = b"\x28\0\x10\0"
    data = dicom(FILM).replace(
        rows + b"US" + struct.pack("<HH", 2, 60), rows + b"IS" + struct.pack("<H", 10) + b"1000000000"
    )
    for size in (None, 512):
        with pytest.raises(UnreadableImage, match="million pixels"):
            imaging.decode(data, size)


def test_a_deflated_dicom_is_decoded_and_its_bomb_is_not() -> None:
    films = {"transfer_syntax": DeflatedExplicitVRLittleEndian}
    assert np.array_equal(imaging.decode(dicom(FILM, **films)), FILM)
    bomb = dicom(np.zeros((20_000, 7_000), np.uint8), **films)
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match="more than 128 MiB"):
        imaging.decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2.2 * imaging.MAX_BYTES
    tracemalloc.stop()
    with pytest.raises(UnreadableImage, match="corrupt or truncated"):
        imaging.decode(dicom(rng.integers(0, 256, (99, 99), dtype=np.uint8), **films)[:-500])


def test_a_decoder_out_of_memory_is_the_image_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(imaging, "_decode_picture", hungry)
    with pytest.raises(UnreadableImage, match="needs too much memory"):
        imaging.decode(encoded(FILM))


def test_one_hot_pixel_does_not_take_the_contrast_of_a_large_film() -> None:
    ramp = np.tile(np.linspace(1000, 2000, 1200, dtype=np.uint16), (1200, 1))
    hot = ramp.copy()
    hot[600, 600] = 65535
    spoilt = imaging.decode(encoded(hot))
    assert spoilt[600, 600] == 255
    assert np.ptp(spoilt[:500]) > 128  # were the pixel the brightest shown, 4 of 255


def test_signed_and_big_endian_values_are_read_as_such() -> None:
    signed = FILM.astype(np.int16) * 8 - 1000
    assert np.array_equal(imaging.decode(dicom(signed)), FILM)
    swapped = (FILM.astype(np.uint16) * 8).astype(">u2")
    assert np.array_equal(imaging.decode(dicom(swapped, transfer_syntax=ExplicitVRBigEndian)), FILM)


@settings(max_examples=60)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 128 + b"DICM"]),
)
def test_no_bytes_whatever_raise_anything_but_unreadable(tail: bytes, magic: bytes) -> None:
    with pytest.raises(UnreadableImage):
        imaging.decode(magic + tail)


sides = st.integers(1, 90)


@given(sides, sides, st.sampled_from(["stretch", "pad", "crop"]), st.integers(0, 255), st.integers(1, 64))
def test_a_resized_film_is_square_and_keeps_its_range(
    height: int, width: int, mode: imaging.ResizeMode, grey: int, size: int
) -> None:
    resized = imaging.resize(np.full((height, width), grey, np.uint8), size, mode)
    assert resized.shape == (size, size)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= ({grey, 0} if mode == "pad" else {grey})


def test_stretch_shows_all_pad_keeps_the_aspect_and_crop_takes_the_centre() -> None:
    wide = np.zeros((100, 200), np.uint8)
    wide[:, :100] = 200
    stretched, padded, cropped = (imaging.resize(wide, 64, mode) for mode in ("stretch", "pad", "crop"))
    assert stretched[32, 2] == 200
    assert stretched[32, 60] == 0
    assert padded[32, 2] == 200
    assert not padded[:15].any()
    assert not padded[-15:].any()
    assert cropped[0, 2] == 200
    assert cropped[-1, 60] == 0


def test_shrinking_averages_every_pixel() -> None:
    board = np.indices((512, 512)).sum(0) % 2 * 255
    shrunk = imaging.resize(board.astype(np.uint8), 64)
    assert np.abs(shrunk.astype(int) - 127).max() <= 3


def test_encoding_is_lossless_and_the_same_every_time() -> None:
    data = imaging.encode_png(FILM)
    assert data == imaging.encode_png(FILM.copy())
    assert np.array_equal(imaging.decode(data), FILM)
    with PIL.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")


@pytest.mark.real_data
def test_the_real_dicom_chest_is_bright_where_it_is_dense() -> None:
    path = DATA / "dicom" / "RG1_J2KI.dcm"
    if not path.exists():
        pytest.skip("no real data beside the repository")
    pixels = imaging.decode(path.read_bytes())
    assert pixels.shape == (1955, 1841)
    mediastinum, lung, outside = pixels[900:1500, 900:1000], pixels[500:700, 1150:1300], pixels[40:120, :60]
    assert mediastinum.mean() > lung.mean() > outside.mean()


@pytest.mark.real_data
def test_every_real_film_at_hand_is_decoded() -> None:
    paths = sorted([*DATA.glob("hannover_covid19/png/*.png"), *DATA.glob("nih_cxr14/*.png")])
    if not paths:
        pytest.skip("no real data beside the repository")
    for path in paths:
        pixels = imaging.decode(path.read_bytes())
        assert pixels.std() > 10, path.name
