"""Compressed films: every transfer syntax, what a codestream may claim, decoding at reduced resolution."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image as PIL
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from tests.cohort.test_imaging import CANARY, DATA, dicom, encoded
from unirg.cohort import codestream, imaging
from unirg.cohort.corpora import UnreadableImage
from unirg.cohort.corpora.phantom import Phantom
from unirg.study import Study

MEAN, MOST = 0.6, 48
"""By how many levels of 255 a reduced decode may differ at 512 x 512. Drawings have hard edges."""
REAL_MEAN, REAL_MOST = 0.3, 8

rng = np.random.default_rng(11)
SMALL = np.add.outer(np.arange(61), np.arange(83) * 20).astype(np.uint16)


def film(height: int, width: int, bits: int = 12) -> np.ndarray:
    """A phantom enlarged, with quantum noise and a lead marker with hard edges."""
    study = next(iter(Phantom(1, 0).records()))
    assert isinstance(study, Study)
    assert study.key_image
    drawn = PIL.fromarray(Phantom(1, 0).read(study.key_image).astype(np.float32))
    values = np.asarray(drawn.resize((width, height), PIL.Resampling.BICUBIC)) * (2**bits / 260)
    values[height // 18 : height // 9, width // 11 : width // 10] = 2**bits * 0.98
    noise = rng.normal(0, 2**bits * 0.006, values.shape)
    return np.clip(values + noise, 0, 2**bits - 1).astype(np.uint8 if bits <= 8 else np.uint16)


def packed(pixels: np.ndarray, syntax: str, bits: int = 12, **fields: Any) -> bytes:
    """A DICOM file compressed by pydicom's encoders."""
    plain = dicom(pixels, BitsStored=bits, HighBit=bits - 1, **fields)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.compress(syntax, **({"j2k_cr": [4]} if syntax == JPEG2000 else {}))
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def packed_by_gdcm(pixels: np.ndarray, syntax: int, folder: Path, bits: int = 12) -> bytes:
    (folder / "plain.dcm").write_bytes(dicom(pixels, BitsStored=bits, HighBit=bits - 1))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "packed.dcm"))
    assert writer.Write()
    return (folder / "packed.dcm").read_bytes()


def wrapped(frame: bytes, pixels: np.ndarray, syntax: str, **fields: Any) -> bytes:
    """A DICOM file around a codestream."""
    return dicom(pixels, transfer_syntax=syntax, PixelData=encapsulate([frame]), **fields)


def difference(data: bytes) -> tuple[float, int]:
    full, reduced = (imaging.resize(imaging.decode(data, size)).astype(int) for size in (None, 512))
    apart = np.abs(full - reduced)
    return float(apart.mean()), int(apart.max())


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_a_losslessly_compressed_dicom_shows_what_the_plain_one_shows(syntax: str) -> None:
    plain = imaging.decode(dicom(SMALL, BitsStored=12, HighBit=11))
    for size in (None, 512):
        assert np.array_equal(imaging.decode(packed(SMALL, syntax), size), plain)
    signed = SMALL.astype(np.int16) - 700
    assert np.array_equal(imaging.decode(packed(signed, syntax, 16), 20), plain)


@pytest.mark.parametrize("name", ["JPEGLSLossless", "JPEGLosslessProcess14_1", "JPEG2000Lossless"])
def test_what_gdcm_compresses_shows_what_the_plain_file_shows(name: str, tmp_path: Path) -> None:
    data = packed_by_gdcm(SMALL, getattr(gdcm.TransferSyntax, name), tmp_path)
    plain = imaging.decode(dicom(SMALL, BitsStored=12, HighBit=11))
    for size in (None, 512):
        assert np.array_equal(imaging.decode(data, size), plain)


def test_near_lossless_jpeg_ls_and_lossy_jpeg_2000_are_decoded_within_their_loss(tmp_path: Path) -> None:
    plain = imaging.decode(dicom(SMALL, BitsStored=12, HighBit=11)).astype(int)
    near = packed_by_gdcm(SMALL, gdcm.TransferSyntax.JPEGLSNearLossless, tmp_path)
    for data in (near, packed(SMALL, JPEG2000)):
        assert np.abs(imaging.decode(data) - plain).max() <= 6


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_an_8_bit_jpeg_inside_a_dicom_is_decoded_and_inverted(syntax: str) -> None:
    pixels = film(1300, 1301, bits=8)
    data = wrapped(
        encoded(pixels, "JPEG", quality=95), pixels, syntax, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.abs(imaging.decode(data).astype(int) + pixels - 255).mean() < 3
    assert imaging.decode(data, 512).shape == (650, 651)
    mean, most = difference(data)
    assert mean <= MEAN
    assert most <= MOST


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
def test_a_codestream_cut_off_is_unreadable_whatever_the_size(syntax: str) -> None:
    pixels = film(1300, 1301, bits=8)
    if syntax == JPEGBaseline8Bit:
        data = wrapped(encoded(pixels, "JPEG"), pixels, syntax)
    else:
        data = packed(pixels, syntax, 8)
    frame = get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)
    for cut in (wrapped(frame[: len(frame) // 2], pixels, syntax), data[: len(data) // 2]):
        for size in (None, 512):
            with pytest.raises(UnreadableImage):
                imaging.decode(cut, size)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_a_codestream_that_is_larger_than_the_data_set_says_is_not_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = np.zeros((900, 900), np.uint8), np.zeros((30, 30), np.uint8)
    frame = encoded(large, kind, no_jp2=True)
    data = wrapped(frame, small, JPEGBaseline8Bit if kind == "JPEG" else JPEG2000)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("it was decoded"))
    for size in (None, 64):
        with pytest.raises(UnreadableImage):
            imaging.decode(data, size)


def test_a_deranged_codestream_is_unreadable_and_quotes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = film(200, 200, bits=8)
    for syntax, frame in (
        (JPEG2000Lossless, encoded(pixels, "JPEG2000", no_jp2=True)),
        (JPEGBaseline8Bit, encoded(pixels, "JPEG")),
    ):
        for end in (2, 5, 20, 50, 100):
            spoilt = frame[:end] + CANARY.encode() + frame[end + 10 :]
            for size in (None, 32):
                with suppress(UnreadableImage):  # or, of an odd comment, it is decoded
                    imaging.decode(wrapped(spoilt, pixels, syntax), size)
    assert CANARY not in "".join(capfd.readouterr())


def test_headers_are_read_as_the_encoders_write_them() -> None:
    grey, colour = np.zeros((70, 90), np.uint8), np.zeros((70, 90, 3), np.uint8)
    head = codestream.header(encoded(grey, "JPEG", progressive=True))
    assert head == (90, 70, 8, "jpeg", 0)
    assert codestream.header(encoded(colour, "JPEG")) == (90, 70, 8, "other", 0)
    head = codestream.header(encoded(grey, "JPEG2000", no_jp2=True, num_resolutions=4))
    assert head == (90, 70, 8, "jpeg2000", 3)
    assert codestream.header(encoded(grey, "JPEG2000")) == (90, 70, 8, "other", 0)  # a JP2 file's boxes
    assert codestream.header(encoded(grey)) is None
    for damaged in (b"\xff\xd8", b"\xff\xd8\xff\xd9" + bytes(9), b"\xff\x4f\xff\x51" + bytes(9)):
        with pytest.raises(ValueError, match="header"):
            codestream.header(damaged)


@pytest.mark.parametrize("shape", [(2303, 1281), (1185, 1180)])
def test_a_reduced_jpeg_2000_agrees_with_the_full_one_at_odd_sizes_too(shape: tuple[int, int]) -> None:
    data = packed(film(*shape), JPEG2000Lossless, WindowCenter=2000, WindowWidth=3900)
    assert imaging.decode(data, 512).shape == ((shape[0] + 1) // 2, (shape[1] + 1) // 2)
    mean, most = difference(data)
    assert mean <= MEAN
    assert most <= MOST


def test_a_reduced_jpeg_2000_in_tiles_agrees_with_the_full_one() -> None:
    pixels = film(1400, 1501, bits=8)
    frame = encoded(pixels, "JPEG2000", no_jp2=True, tile_size=(500, 700))
    data = wrapped(frame, pixels, JPEG2000Lossless)
    assert imaging.decode(data, 512).shape == (700, 751)
    mean, most = difference(data)
    assert mean <= MEAN
    assert most <= MOST


def test_a_film_of_12_megapixels_agrees_within_the_stated_tolerance() -> None:
    jpeg2000 = packed(film(3601, 3400), JPEG2000Lossless)
    jpeg = encoded(film(4000, 3001, bits=8), "JPEG", quality=92)
    coloured = encoded(film(3000, 2001, bits=8), "JPEG", mode="RGB")
    for data, shape in ((jpeg2000, (901, 850)), (jpeg, (1000, 751)), (coloured, (1500, 1001))):
        assert imaging.decode(data, 512).shape == shape
        mean, most = difference(data)
        assert mean <= MEAN
        assert most <= MOST


def test_a_small_film_a_signed_one_and_one_of_other_depth_are_decoded_in_full() -> None:
    pixels = film(1300, 1300)
    assert imaging.decode(packed(pixels, JPEG2000Lossless), 1024).shape == pixels.shape
    signed = packed(pixels.astype(np.int16) - 2000, JPEG2000Lossless, 16)
    frame = encoded(pixels << 4, "JPEG2000", no_jp2=True)  # 16 bits where the data set says 12
    for data in (signed, wrapped(frame, pixels, JPEG2000, BitsStored=12, HighBit=11)):
        assert imaging.decode(data, 512).shape == pixels.shape
    assert imaging.decode(encoded(pixels), 512).shape == pixels.shape  # a PNG has no levels


@pytest.mark.real_data
def test_real_films_agree_within_their_tolerance() -> None:
    real = DATA / "dicom" / "RG1_J2KI.dcm"
    paths = [*sorted(DATA.glob("hannover_covid19/png/*.png"))[::8], *DATA.glob("nih_cxr14/*.png")]
    if not paths or not real.exists():
        pytest.skip("no real data beside the repository")
    data = real.read_bytes()
    assert imaging.decode(data, 512).shape == (978, 921)
    for real_film in (data, *map(enlarged, paths)):
        mean, most = difference(real_film)
        assert mean <= REAL_MEAN
        assert most <= REAL_MOST


def enlarged(path: Path) -> bytes:
    """A real film as a detector of about 6 megapixels would have saved it."""
    with PIL.open(path) as image:
        grey = image.convert("L")
    return encoded(np.asarray(grey.resize((2560, 2560 * grey.height // grey.width))), "JPEG", quality=92)
