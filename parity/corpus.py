"""Report texts for parity and speed: IU X-ray, read at run time from shared/data beside the repository."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
BASELINE = DATA / "metrics" / "bertscore_baseline_distilroberta-base.csv"
"""bert-score's published baseline of distilroberta-base."""

Pairs = list[tuple[str, str]]
"""(candidate, reference)"""


def _text(findings: str, impression: str) -> str:
    """A report as ReXrank writes it."""
    parts = [f"Findings: {findings.strip()}"] if findings.strip() else []
    parts += [f"Impression: {impression.strip()}"] if impression.strip() else []
    return " ".join(parts)


def reports(data: Path = DATA) -> list[str]:
    """The distinct reports of IU X-ray (about 3,000), in a fixed random order."""
    with (data / "iu_xray" / "indiana_reports.csv").open(newline="") as file:
        texts = [_text(row["findings"], row["impression"]) for row in csv.DictReader(file) if row["findings"]]
    found = list(dict.fromkeys(text for text in texts if text))
    random.Random(0).shuffle(found)
    return found


def findings_of_test(data: Path = DATA) -> list[str]:
    """The findings of ReXrank's 590 test studies, as often as they occur."""
    studies = json.loads((data / "rexrank" / "ReXRank_IUXray_test.json").read_text())
    return [study["section_findings"] for study in studies.values()]


def parity_pairs(count: int, data: Path = DATA) -> Pairs:
    """Distinct reports of ReXrank's IU test studies, each against the next: every text once on each side."""
    studies = json.loads((data / "rexrank" / "ReXRank_IUXray_test.json").read_text())
    texts = list(dict.fromkeys(study["report"].strip() for study in studies.values()))
    texts = [text for text in texts if text][:count]
    if len(texts) < count:
        raise ValueError(f"{data}: {len(texts)} distinct reports, not {count}")
    return list(zip(texts[1:] + texts[:1], texts, strict=True))


def group_pairs(references: int, candidates: int, texts: Sequence[str]) -> Pairs:
    """The GRPO shape: each reference beside `candidates` texts, none of which comes twice."""
    pool = iter(texts)
    pairs: Pairs = []
    for _ in range(references):
        reference = next(pool)
        pairs += [(next(pool), reference) for _ in range(candidates)]
    return pairs


def evaluation_pairs(count: int, texts: Sequence[str]) -> Pairs:
    """The evaluation shape: no text twice."""
    return list(zip(texts[:count], texts[count : 2 * count], strict=True))


def duplicate_pairs(data: Path = DATA) -> Pairs:
    """Natural duplicates: the findings of each test study against those of the study after it."""
    texts = findings_of_test(data)
    return list(zip(texts[1:] + texts[:1], texts, strict=True))


_SENTENCES = (
    "The heart is normal in size.",
    "The heart is mildly enlarged.",
    "Mediastinal contours are within normal limits.",
    "The aorta is tortuous and calcified.",
    "There is no focal consolidation.",
    "Patchy opacity is seen in the right lower lobe.",
    "Streaky left basilar opacity may reflect atelectasis.",
    "There is no pleural effusion or pneumothorax.",
    "There is a small left pleural effusion.",
    "A trace right apical pneumothorax is present.",
    "Pulmonary vascularity is normal.",
    "There is mild interstitial edema.",
    "A calcified granuloma is noted in the left upper lobe.",
    "Degenerative changes are present in the thoracic spine.",
    "No acute bony abnormality is identified.",
    "An old healed fracture of the right sixth rib is again seen.",
    "The endotracheal tube ends 4 cm above the carina.",
    "A left-sided pacemaker is in unchanged position.",
    "Lung volumes are low.",
    "The lungs are hyperexpanded, consistent with emphysema.",
)


def made_up(count: int) -> list[str]:
    """Distinct reports of about 45 words, for a machine without IU's."""
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"Findings: {' '.join(draw.sample(_SENTENCES, 7))} Impression: {draw.choice(_SENTENCES)}"] = (
            None
        )
    return list(found)
