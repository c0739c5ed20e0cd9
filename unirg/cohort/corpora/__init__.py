"""Corpora as their owners ship them. Each module here turns one of them into `Study` records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from unirg.study import Image, Study


@dataclass(frozen=True)
class Dropped:
    """A record that an adapter could not turn into a study, and why (never with its content)."""

    study_id: str
    reason: str
    """A few fixed words, such as `unreadable report`: they become the names of counts."""


class UnreadableImage(Exception):
    """An image that is missing or cannot be decoded; the text holds no path and no header value."""


class Corpus(Protocol):
    """What `stage` asks of an adapter. Instances are pickled into worker processes."""

    name: str
    public: bool
    """True keeps image URIs in the cohort; False (an institution's own data) drops them."""

    def fingerprint(self) -> str:
        """Identify the source's content (hex); it changes when a file is added, removed or altered."""
        ...

    def records(self) -> Iterator[Study | Dropped]:
        """Yield every study lazily, in an order that does not depend on the file system's."""
        ...

    def read(
        self, image: Image, size: int | None = None, fetched: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """Decode one image to (height, width) uint8, bright = dense.

        Args:
            size: side of the square that `imaging.resize` will make of it, where the decoder may save work.
            fetched: called when its bytes are here: a storage that stalls is not the decoder's fault.

        Raises:
            UnreadableImage: it is missing or cannot be decoded.
        """
        ...

    def account(self) -> Mapping[str, int]:
        """What the latest whole pass of `records` met beside studies, in fixed words: values not
        read, identifiers removed, files passed over."""
        ...

    def truth(self) -> pa.Table | None:
        """Ground truth by study_id where the corpus has it (phantoms), else None."""
        ...
