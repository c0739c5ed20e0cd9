"""An institution's data with planted canaries: identifiers that must be found nowhere in what a run makes."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SITE_KEY = "5ec2e7" * 6 + "a1b2c3d4"
SURNAMES = [
    *("Quackenbush", "Zyskowski", "Featherstonhaugh", "Oyelaran"),
    *("Vuković", "Brzęczyk", "Xiomarez", "Ngwenya"),
]
FORENAMES = ["Zebulon", "Wilhelmina", "Thelonius", "Ebunoluwa", "Krešimir", "Grzegorz", "Ximena", "Sibusiso"]
FINDINGS = [
    "The heart is mildly enlarged. No pleural effusion.",
    "There is a small left pleural effusion. The heart size is normal.",
    "Lungs are clear. No pneumothorax.",
    "There is a right lower lobe opacity, concerning for pneumonia.",
]
COLUMNS = [
    *("patient_name", "mrn", "accession", "study_date", "age", "sex", "views", "images"),
    *("indication", "comparison", "findings", "impression"),
]


@dataclass(frozen=True)
class Patient:
    """What must not get out about one patient."""

    name: str
    surname: str
    mrn: str

    def accession(self, visit: int) -> str:
        return f"QX{visit}{self.mrn[::-1]}"


PATIENTS = [
    Patient(f"{surname}, {forename}", surname, f"{773_104_259 + 61_117 * number:010d}")
    for number, (surname, forename) in enumerate(zip(SURNAMES, FORENAMES, strict=True))
]


def write(folder: Path) -> Path:
    """Write 12 good studies of 8 patients and four faulty rows; returns the table."""
    rows = []
    for number, patient in enumerate(PATIENTS):
        for visit in range(1 + number % 2):
            rows.append(_row(folder, patient, visit, number))
    rows += faulty(folder)
    return write_table(folder / "studies.csv", rows)


def faulty(folder: Path) -> list[dict[str, str]]:
    """One row for each way to be wrong, all with canaries beside the fault."""
    unreadable, empty, dated, traversing = (_row(folder, PATIENTS[n], 5 + n, n) for n in range(4))
    (folder / unreadable["images"]).write_bytes(b"\x89PNG\r\n\x1a\n" + f"{PATIENTS[0].name}".encode())
    empty |= {"findings": "", "impression": ""}
    dated["study_date"] = f"born as {PATIENTS[2].name} {PATIENTS[2].mrn}"
    traversing["images"] = f"../{PATIENTS[3].mrn}/{PATIENTS[3].surname}.png"
    return [unreadable, empty, dated, traversing]


def write_table(table: Path, rows: list[dict[str, str]]) -> Path:
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


def _row(folder: Path, patient: Patient, visit: int, number: int) -> dict[str, str]:
    surname, _, forename = patient.name.partition(", ")
    accession = patient.accession(visit)
    path = Path(patient.mrn) / accession / f"{surname}.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(_picture(patient, number * 10 + visit))
    return {
        "patient_name": patient.name,
        "mrn": patient.mrn,
        "accession": accession,
        "study_date": f"2024-{1 + number:02d}-{1 + visit:02d}",
        "age": str(40 + number),
        "sex": "FM"[number % 2],
        "views": "PA",
        "images": str(path),
        "indication": f"{forename} {surname.upper()} (MRN {patient.mrn}), cough.",
        "comparison": f"Accession {accession.lower()} of {surname.lower()} {forename.lower()}.",
        "findings": f"{FINDINGS[(number + visit) % len(FINDINGS)]} Compared with {patient.mrn.lstrip('0')}.",
        "impression": f"Discussed with {forename} {surname}. Accession #{accession}: no acute disease.",
    }


def _picture(patient: Patient, seed: int) -> bytes:
    """A small grey PNG whose metadata names the patient, as exports from viewers do."""
    notes = PngInfo()
    notes.add_itxt("PatientName", patient.name)
    notes.add_text("PatientID", patient.mrn)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((96, 96)).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def secrets() -> list[str]:
    """Every canary in the spelling from which the others follow by case, plus the key to the ids."""
    found = [*SURNAMES, *FORENAMES, SITE_KEY]
    for patient in PATIENTS:
        found += [patient.mrn.lstrip("0"), patient.mrn[::-1]]  # each accession holds the second
    return found


def _encodings(secret: str) -> set[bytes]:
    """The bytes, ASCII in lower case, that give a secret away in the encodings that files use."""
    found = set()
    for text in (secret.lower(), secret.upper()):  # bytes.lower() leaves Ć as it is
        found |= {text.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")}
        found.add(text.encode().hex().encode())
        found |= {text.encode("ascii", how) for how in ("backslashreplace", "xmlcharrefreplace")}
        found.add(quote(text).encode())
    return {encoded.lower() for encoded in found}


_PATTERN = re.compile(b"|".join(sorted(map(re.escape, {e for s in secrets() for e in _encodings(s)}))))
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")


def leaks(data: bytes) -> list[bytes]:
    """Canaries in some bytes, in any case, also inside base64."""
    found = _PATTERN.findall(data.lower())
    for run in _BASE64.findall(data):
        for start in range(4):
            whole = run[start : start + (len(run) - start) // 4 * 4]
            found += _PATTERN.findall(base64.b64decode(whole).lower())
    return found


def searched(data: bytes, folder: Path) -> list[bytes]:
    """Canaries in a file's bytes and, for Parquet, in its values."""
    found = leaks(data)
    if data.startswith(b"PAR1"):
        copy = folder / "searched.parquet"
        copy.write_bytes(data)
        found += leaks(repr(pq.read_table(copy).to_pylist()).encode())
    return found


def leaking(files: dict[str, bytes], folder: Path) -> dict[str, set[bytes]]:
    found = {name: set(searched(data, folder)) | set(leaks(name.encode())) for name, data in files.items()}
    return {name: canaries for name, canaries in found.items() if canaries}


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
