"""The few ways in which a phantom puts shapes on a film: filled, stroked, mottled, enlarged.

What is soft is drawn at half size, (256, 256), and enlarged once; what is thin is stroked at full size.
Pillow fills and blurs in 8 bits, and the arrays made of that are only added, multiplied and compared: all of
this rounds alike on every machine, so that a phantom is the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from unirg.cohort.corpora.phantom.anatomy import SIZE, Points

HALF = SIZE // 2

Layer = np.ndarray
"""float32, mostly in [0, 1]: (256, 256) unless its name says `film`."""
Stroke = tuple[Points, int, int]
"""A line's placed points, its width in pixels, and its strength in [0, 255]."""


def fill(shapes: Iterable[Points], *, soft: float) -> Layer:
    """Placed polygons -> (256, 256): 1 inside, 0 outside, with edges about `soft` film pixels wide."""
    # What is very soft needs few pixels.
    grid = HALF if soft < 3 else HALF // 2 if soft < 12 else HALF // 4
    image = Image.new("L", (grid, grid))
    pen = ImageDraw.Draw(image)
    for points in shapes:
        pen.polygon((points * (grid / SIZE)).ravel().tolist(), fill=255)
    # Twice a box is close to a bell curve.
    box = ImageFilter.BoxBlur(soft * grid / SIZE)
    image = image.filter(box).filter(box)
    if grid != HALF:
        image = image.resize((HALF, HALF), Image.Resampling.BILINEAR)
    return _layer(image)


def mottle(rng: np.random.Generator, cells: int) -> Layer:
    """A smooth random field (256, 256) around 0.5, with `cells` bumps along a side."""
    field = np.frombuffer(rng.bytes(cells * cells), dtype=np.uint8).reshape(cells, cells)
    return _layer(Image.fromarray(field).resize((HALF, HALF), Image.Resampling.BICUBIC))


def enlarge(layer: Layer) -> Layer:
    """(256, 256) -> (512, 512), linearly."""
    near, far = np.float32(0.75), np.float32(0.25)
    padded = np.pad(layer, 1, mode="edge")
    tall = np.empty((SIZE, HALF + 2), dtype=np.float32)
    tall[0::2] = near * padded[1:-1] + far * padded[:-2]
    tall[1::2] = near * padded[1:-1] + far * padded[2:]
    film = np.empty((SIZE, SIZE), dtype=np.float32)
    film[:, 0::2] = near * tall[:, 1:-1] + far * tall[:, :-2]
    film[:, 1::2] = near * tall[:, 1:-1] + far * tall[:, 2:]
    return film


def strokes(*groups: list[Stroke], soft: float) -> Layer:
    """Lines on a film, (512, 512). Within a group the later line is on top; groups add up."""
    total: Image.Image | None = None
    for lines in groups:
        image = Image.new("L", (SIZE, SIZE))
        pen = ImageDraw.Draw(image)
        for points, width, strength in lines:
            pen.line(points.ravel().tolist(), fill=strength, width=width)
        total = image if total is None else ImageChops.add(total, image)
    assert total is not None
    return _layer(total.filter(ImageFilter.BoxBlur(soft)))


def _layer(image: Image.Image) -> Layer:
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
