"""Made-up studies in ReXGradient-160K's layout."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image as PIL

UID = "1.2.826.0.1.3680043.8.498"
RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def film(pixels: np.ndarray = RAMP) -> bytes:
    """A 16-bit PNG (mode I;16), as the corpus has them."""
    buffer = io.BytesIO()
    PIL.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def key(patient: int = 1, study: int = 1) -> str:
    return f"pGRDNP{patient}_aGRDNA{study}_s{UID}.{study}"


def path(patient: int = 1, study: int = 1, instance: int = 1) -> str:
    return (
        f"deid_png/GRDNP{patient}/GRDNA{study}/studies/{UID}.{study}/series/{UID}.{study}.1"
        f"/instances/{UID}.{study}.1.{instance}.png"
    )


def record(patient: int = 1, study: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "PatientID": f"GRDNP{patient}",
        "AccessionNumber": f"GRDNA{study}",
        "StudyInstanceUid": f"{UID}.{study}",
        "StudyDate": "20150302",
        "PatientSex": "F",
        "PatientAge": "045Y",
        "Indication": "Made-up cough.",
        "Comparison": "None.",
        "Findings": "Made-up lungs.",
        "Impression": "Made-up chest.",
        "ImagePath": [f"../{path(patient, study, 1)}", f"../{path(patient, study, 2)}"],
        "ImageViewPosition": ["LATERAL", "PA"],
        **changes,
    }
