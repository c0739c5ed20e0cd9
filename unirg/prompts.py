"""A study -> the chat that the policy sees and the text that it should write.

One place for training, serving and scoring, so that a policy is never asked otherwise than it was taught.
The two templates are the paper's, word for word (supplementary information, "Prompt Templates"); the one
for an impression alone and the wording of the prior study are ours, as the paper publishes neither.
"""

from __future__ import annotations

from typing import Any, Literal

from unirg.storage import sha256
from unirg.study import Study

Sections = Literal["both", "findings", "impression"]

_FRAME = "This is a radiology report generation task. Here is the context: {context} "
_TEMPLATES: dict[Sections, str] = {
    "both": _FRAME + "Given the image and the context, provide the report in the following format: "
    "Findings: [write the findings] Impression: [write the impression] "
    "Now write the report in the format above.",
    "findings": _FRAME + "Given the image and the context, provide the findings in the following format: "
    "Findings: [write the findings] Now write the report in the format above.",
    "impression": _FRAME + "Given the image and the context, provide the impression in the following format: "
    "Impression: [write the impression] Now write the report in the format above.",
}
_PRIOR = (
    "The first image is the prior study, with this report: {report} The second image is the current study."
)
VERSION = sha256(repr((_TEMPLATES, _PRIOR)).encode())[:12]
"""Digest of the wording: part of the identity of everything trained or scored with it."""


def sections(study: Study) -> Sections | None:
    """Which template a study is asked with: by the sections that its reference has (the paper's rule)."""
    if study.findings and study.impression:
        return "both"
    if study.findings:
        return "findings"
    return "impression" if study.impression else None


def report(study: Study) -> str:
    """The reference as one text, as ReXrank forms it: `Findings: ... Impression: ...`, if present."""
    return join_sections(study.findings, study.impression)


def join_sections(findings: str | None, impression: str | None) -> str:
    parts = [f"{name}: {text}" for name, text in (("Findings", findings), ("Impression", impression)) if text]
    return " ".join(" ".join(part.split()) for part in parts)


def split_sections(text: str) -> tuple[str | None, str | None]:
    """(findings, impression) of a candidate written in the templates' form.

    Text before the first heading counts as findings, so that nothing a policy wrote goes unread.
    """
    head, found, tail = text.partition("Impression:")
    findings = head.strip().removeprefix("Findings:").strip()
    return findings or None, (tail.strip() or None) if found else None


def messages(study: Study, wanted: Sections, prior: Study | None = None) -> list[dict[str, Any]]:
    """The chat for one study, with an `{"type": "image"}` place for each of `images(study, prior)`.

    Args:
        wanted: which sections to ask for.
        prior: the patient's previous study, for longitudinal input: its image and report come first.
    """
    context = [
        f"{name}: {' '.join(text.split())}"
        for name, text in (("Indication", study.indication), ("Comparison", study.comparison))
        if text
    ]
    if prior:
        context.append(_PRIOR.format(report=report(prior)))
    text = _TEMPLATES[wanted].format(context=" ".join(context))
    places: list[dict[str, str]] = [{"type": "image"} for _ in range(2 if prior else 1)]
    return [{"role": "user", "content": [*places, {"type": "text", "text": text}]}]


def images(study: Study, prior: Study | None = None) -> list[bytes]:
    """PNG bytes of the radiographs that the chat has places for, in its order: prior first."""
    shown = [prior, study] if prior else [study]
    found = [s.key_image.data for s in shown if s.key_image and s.key_image.data]
    if len(found) != len(shown):
        raise ValueError("a study without a staged frontal image cannot be shown to a policy")
    return found
