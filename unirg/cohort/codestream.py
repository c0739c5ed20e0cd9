"""Compressed pixels without all of their detail: JPEG by DCT scaling, JPEG 2000 by resolution levels.

Both codecs hold an image as coarse frequencies and ever finer ones, and most of the decoder's time goes into
the finest. Only the plain case is read here (one unsigned component, the whole file there); whatever is
doubtful is left to the full decoder.

Sources: ITU-T T.81 B.2 (JPEG markers), T.87 C.2 (JPEG-LS), T.800 A.5-A.6 and F.3 (JPEG 2000).
"""

from __future__ import annotations

import io
import math
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image as PIL

SPARE = 1.15
"""How much longer than the square's the reduced shorter side stays: a codec's low band is sharper than a
mean, and with less the films would differ in grain."""

_SOC_SIZ, _COD, _SOD, _EOC = b"\xff\x4f\xff\x51", 0xFF52, 0xFF93, b"\xff\xd9"
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_JPEG_SCALED = frozenset({0xC0, 0xC1, 0xC2})
"""Huffman-coded DCT: baseline, extended, progressive."""


class Header(NamedTuple):
    """What a compressed image says of itself."""

    width: int
    height: int
    precision: int
    """Bits of a value."""
    kind: str
    """`jpeg` (scalable), `jpeg2000` (scalable) or `other`."""
    levels: int = 0
    """How often a JPEG 2000 can be halved."""


def header(frame: bytes) -> Header | None:
    """Read a JPEG's, JPEG-LS's or JPEG 2000's header; None for another kind.

    Raises:
        ValueError: it has such a header, and that is damaged.
    """
    try:
        if frame.startswith(b"\xff\xd8"):
            return _jpeg(frame)
        if frame.startswith((_SOC_SIZ, b"\0\0\0\x0cjP  ")):
            return _jpeg2000(frame)
    except (struct.error, IndexError):
        raise ValueError("damaged header") from None
    return None


def _jpeg(frame: bytes) -> Header:
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise ValueError("damaged header")
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _JPEG_FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", frame, at + 4)
            scalable = marker in _JPEG_SCALED and precision == 8 and components == 1
            return Header(width, height, precision, "jpeg" if scalable else "other")
        if marker in (0xD9, 0xDA):
            raise ValueError("no frame header")
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]


def _jpeg2000(frame: bytes) -> Header:
    start = frame.index(_SOC_SIZ)  # behind the boxes of a JP2 file, where it is one
    # Lsiz and Rsiz come first; then the image's and the tiles' extent and origin on the reference grid.
    x1, y1, x0, y0, _, _, tile_x0, tile_y0, components, depth, dx, dy = struct.unpack_from(
        ">8IH3B", frame, start + 8
    )
    plain = start == 0 and not any((x0, y0, tile_x0, tile_y0, depth & 0x80))
    scalable = plain and (components, dx, dy) == (1, 1, 1)
    levels = _levels(frame, start + 2) if scalable else 0
    return Header(x1 - x0, y1 - y0, (depth & 0x7F) + 1, "jpeg2000" if scalable else "other", levels)


def _levels(frame: bytes, at: int) -> int:
    """How many decompositions the main header's COD marker segment names."""
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == _COD:
            return frame[at + 9]
        if marker < 0xFF00 or marker == _SOD:
            raise ValueError("damaged header")
        at += 2 + length


def load_jpeg(image: PIL.Image, size: int) -> np.ndarray | None:
    """Decode an opened JPEG by DCT scaling; None where it is none that can be.

    Returns:
        (height, width) uint8 with the shorter side at least `size`, if the file's own is.
    """
    side = math.ceil(SPARE * size)
    drafted = image.draft("L", (side, side))
    if drafted is None or drafted[0] != "L":
        return None
    _, (_, _, exact_width, exact_height) = drafted
    image.load()
    return _placed(np.asarray(image), (0, 0, exact_width, exact_height))


def reduced(frame: bytes, head: Header, size: int) -> np.ndarray | None:
    """Decode at a reduced resolution whose shorter side is at least `size`.

    Returns:
        (height, width) uint8 or uint16 of the codestream's own values, or None where that cannot be had.
    """
    if not frame.rstrip(b"\0").endswith(_EOC):  # cut off: let the full decoder say so
        return None
    if head.kind == "jpeg":
        with PIL.open(io.BytesIO(frame), formats=("JPEG",)) as image:
            return load_jpeg(image, size)
    if head.kind != "jpeg2000" or head.precision > 16:
        return None
    halvings = head.levels
    while halvings and min(head.width, head.height) >> halvings < SPARE * size:
        halvings -= 1
    return _low_band(frame, head, halvings) if halvings else None


def _low_band(frame: bytes, head: Header, halvings: int) -> np.ndarray | None:
    step = 1 << halvings
    width, height = -(-head.width // step), -(-head.height // step)
    try:
        with PIL.open(io.BytesIO(frame), formats=("JPEG2000",)) as image:
            # Pillow rounds the reduced size to the nearest, OpenJPEG up: it refuses what disagrees.
            image._size = (width * step, height * step)
            image.reduce = halvings  # type: ignore[method-assign, assignment]
            image.load()
    except OSError:  # a tile of fewer levels, for instance
        return None
    values = np.asarray(image)
    if values.shape != (height, width) or values.dtype not in (np.uint8, np.uint16):
        return None
    # Its pixel k stands on the image's pixel k * step, the first of the `step` that it replaces: unmoved, a
    # film would shift by up to half a pixel of the square.
    shift = 0.5 - 0.5 / step
    padded = np.pad(values, ((0, 1), (0, 1)), mode="edge")
    box = (shift, shift, shift + head.width / step, shift + head.height / step)
    return _placed(padded, box) >> (values.itemsize * 8 - head.precision)


def _placed(values: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """What lies in the box (left, top, right, bottom): codecs round an image up to whole blocks."""
    height, width = values.shape
    whole = box == (0, 0, width, height)
    if whole:
        return values
    size = (math.ceil(box[2] - box[0]), math.ceil(box[3] - box[1]))
    return np.asarray(PIL.fromarray(values).resize(size, PIL.Resampling.BICUBIC, box=box))
