"""Speed of decoding a film to the policy's square, beside plain pydicom and Pillow loops; and of reading it.

    .venv/bin/python benchmarks/staging.py [--workers 2] [--jobs 24] [--scale 1] [--studies 512]

Films of 12 million pixels in JPEG 2000 (lossless, 12 bits, in DICOM with a window) and of 6 million in JPEG
are phantoms, enlarged, with quantum noise; each is encoded once. One core: both sides decode the same films
in turns, in CPU seconds, which other work on the machine moves less. More cores: the same films through
`workers.Pool`, in wall clock from the first result to the last, so starting processes is not counted; beside
it the gain of as many processes that know nothing of each other, which is what the machine gives.

Reading is of a staged cohort of phantoms at 512 x 512, study by study in random order as a trainer does it,
beside Hugging Face `datasets` over the same shards: median wall clock of text and PNG bytes, checked shards
in the page cache. What turning the PNG into pixels takes after that is the same for both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image as PIL

from unirg.cohort import imaging
from unirg.cohort.corpora.phantom import Phantom
from unirg.cohort.reader import Cohort
from unirg.cohort.stage import StageConfig, stage
from unirg.cohort.workers import NO_ITEM, Pool
from unirg.study import Study

SIDE = 512
READING_MS = 1.0
"""A staged study's text and image bytes, at most."""
SCALING = 1.8
"""Rate of two workers over that of one, at least."""


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    label: str
    height: int
    width: int
    bits: int
    encode: Callable[[np.ndarray], bytes]
    plain: Callable[[bytes], np.ndarray]
    goal: float
    """Our rate on one core over the plain loop's, at least."""
    batch: int
    """Films in a job of the pool: about a quarter of a second of work."""


def film(height: int, width: int, bits: int, seed: int) -> np.ndarray:
    """A phantom as a detector would give it: enlarged, with quantum noise."""
    phantom = Phantom(seed + 1, 0)
    study = list(phantom.records())[seed]
    assert isinstance(study, Study)
    assert study.key_image
    drawn = PIL.fromarray(phantom.read(study.key_image).astype(np.float32))
    values = np.asarray(drawn.resize((width, height), PIL.Resampling.BICUBIC)) * (2**bits / 260)
    noise = np.random.default_rng(seed).normal(0, 2**bits * 0.006, values.shape)
    return np.clip(values + noise, 0, 2**bits - 1).astype(np.uint8 if bits <= 8 else np.uint16)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    PIL.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg2000_dicom(pixels: np.ndarray) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 3900
    dataset.PixelData = pixels.tobytes()
    dataset.compress(JPEG2000Lossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def plain_pillow(data: bytes) -> np.ndarray:
    with PIL.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE)))


def plain_pydicom(data: bytes) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    scaled = (values - values.min()) / (values.max() - values.min()) * 255
    return np.asarray(PIL.fromarray(scaled.astype(np.uint8)).resize((SIDE, SIDE)))


def ours(data: bytes) -> np.ndarray:
    return imaging.resize(imaging.decode(data, SIDE), SIDE)


KINDS = (
    Kind("JPEG 2000 DICOM, 12 Mpx", 4000, 3000, 12, jpeg2000_dicom, plain_pydicom, 2.0, 2),
    Kind("JPEG, 6 Mpx, quality 90", 2500, 2400, 8, partial(jpeg, quality=90), plain_pillow, 3.0, 20),
    # MIMIC-CXR-JPG's. DCT scaling saves transforms and resizing, and nothing of the Huffman decoding.
    Kind("JPEG, 6 Mpx, quality 95", 2500, 2400, 8, partial(jpeg, quality=95), plain_pillow, 3.0, 15),
)


def decode_files(paths: Sequence[str], condemned: Mapping[int, str], begin: Callable[[int], None]) -> int:
    """A job of the pool."""
    for number, path in enumerate(paths):
        begin(number)
        ours(Path(path).read_bytes())
    begin(NO_ITEM)
    return len(paths)


def one_core(kind: Kind, films: Sequence[bytes], repeats: int) -> None:
    """Both sides in turns over the same films; and how far their pixels are from the full decode's."""
    took: dict[Callable[[bytes], np.ndarray], list[float]] = {kind.plain: [], ours: []}
    for decode in took:
        decode(films[0])
    for _ in range(repeats):
        for decode, seconds in took.items():
            began = time.process_time()
            for data in films:
                decode(data)
            seconds.append((time.process_time() - began) / len(films))
    plain, mine = (min(seconds) for seconds in took.values())
    print(
        f"{kind.label:26}{1 / plain:9.1f} films/s plain{1 / mine:9.1f} ours{plain / mine:8.2f} x   "
        f"{'met' if plain / mine >= kind.goal else 'MISSED'} (>= {kind.goal})"
    )
    apart = np.abs(ours(films[0]).astype(int) - imaging.resize(imaging.decode(films[0]), SIDE))
    print(f"{'':26}{apart.mean():9.2f} levels of 255 from the full decode on average, {apart.max()} at most")


def more_cores(kind: Kind, paths: Sequence[str], jobs: int, workers: int) -> None:
    few = jobs // workers
    alone, together = pooled(paths, kind, few, 1), pooled(paths, kind, jobs, workers)
    gain = together / alone
    given = bare(paths, kind, jobs, workers) / bare(paths, kind, few, 1)
    print(
        f"{'':26}{alone:9.1f} films/s, 1 worker{together:9.1f} with {workers}{gain:6.2f} x   "
        f"{'met' if gain >= SCALING else 'MISSED'} (>= {SCALING}); bare processes {given:.2f} x",
        flush=True,
    )


def pooled(paths: Sequence[str], kind: Kind, jobs: int, workers: int) -> float:
    """Films a second through the pool, from its first result on."""
    batches = [[paths[number % len(paths)]] * kind.batch for number in range(jobs)]
    counts, ends = [], []
    for _, count in Pool(workers, decode_files).run(batches):
        counts.append(count)
        ends.append(time.perf_counter())
    return sum(counts[1:]) / (ends[-1] - ends[0])


def bare(paths: Sequence[str], kind: Kind, jobs: int, workers: int) -> float:
    """Films a second of processes that know nothing of each other: what the machine's cores give."""
    context = multiprocessing.get_context("spawn")
    start, queue = context.Barrier(workers), context.Queue()
    each = [paths[number % len(paths)] for number in range(jobs * kind.batch // workers)]
    crew = [context.Process(target=_alone, args=(each, start, queue)) for _ in range(workers)]
    for process in crew:
        process.start()
    rates = [queue.get() for _ in crew]
    for process in crew:
        process.join()
    return sum(rates)


def _alone(paths: Sequence[str], start, queue) -> None:  # type: ignore[no-untyped-def]
    ours(Path(paths[0]).read_bytes())
    start.wait()
    began = time.perf_counter()
    for path in paths:
        ours(Path(path).read_bytes())
    queue.put(len(paths) / (time.perf_counter() - began))


def reading(studies: int, workers: int, side: int, folder: Path) -> None:
    """Random access to a staged cohort, beside `datasets` in turns."""
    import datasets

    datasets.disable_progress_bars()
    with contextlib.redirect_stderr(io.StringIO()):  # staging's progress
        made = stage(StageConfig(studies=studies, size=side, workers=workers), str(folder / "store"))
    cohort = Cohort.open(made)
    ids = [study.study_id for study in cohort.studies()]
    files = [str(cohort.shard_path(shard)) for shard in cohort.index.shards]
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "datasets")
    )
    place = {study_id: number for number, study_id in enumerate(rows["study_id"])}
    random.Random(0).shuffle(ids)
    sides: dict[str, Callable[[str], object]] = {
        "ours": cohort.with_images,
        "datasets": lambda study_id: rows[place[study_id]],
    }
    took: dict[str, list[float]] = {name: [] for name in (*sides, "pixels")}
    for study_id in ids:
        for name, read in sides.items():
            began = time.perf_counter()
            read(study_id)
            took[name].append(time.perf_counter() - began)
        key = cohort.with_images(study_id).key_image
        assert key
        assert key.data
        began = time.perf_counter()
        np.asarray(PIL.open(io.BytesIO(key.data)))
        took["pixels"].append(time.perf_counter() - began)
    ms = {name: 1000 * statistics.median(seconds) for name, seconds in took.items()}
    print(
        f"{f'reading one of {studies} studies':26}{ms['datasets']:9.2f} ms datasets{ms['ours']:9.2f} ms ours"
        f"{ms['datasets'] / ms['ours']:8.2f} x   {'met' if ms['ours'] < READING_MS else 'MISSED'} "
        f"(< {READING_MS} ms); its pixels take {ms['pixels']:.2f} ms more"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=24, help="of the pool, about a quarter of a second each")
    parser.add_argument("--repeats", type=int, default=2, help="on one core, in turns; the least counts")
    parser.add_argument("--scale", type=float, default=1.0, help="of a film's sides; 1 for the sizes named")
    parser.add_argument("--studies", type=int, default=512, help="phantoms to stage and read")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            height, width = round(kind.height * asked.scale), round(kind.width * asked.scale)
            films = [kind.encode(film(height, width, kind.bits, seed)) for seed in range(2)]
            paths = []
            for number, data in enumerate(films):
                path = Path(folder, f"{kind.label}-{number}")
                path.write_bytes(data)
                paths.append(str(path))
            one_core(kind, films, asked.repeats)
            more_cores(kind, paths, asked.jobs, asked.workers)
        reading(asked.studies, asked.workers, max(64, round(SIDE * asked.scale)), Path(folder))


if __name__ == "__main__":
    main()
