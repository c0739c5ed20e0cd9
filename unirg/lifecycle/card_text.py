"""What model cards and data cards share: front matter, sections, the words that stand on both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from unirg.cohort.card_page import plain, visible

NOTICE = "Research use, not for diagnosis."
TAGS = ("radiology", "medical", "chest-x-ray", "report-generation", "unirg")


def front_matter(about: dict[str, Any]) -> str:
    """YAML between its marks; a value on one line, so that none can end it."""
    text = yaml.safe_dump(_one_line(about), sort_keys=False, allow_unicode=True, width=2**31)
    return f"---\n{text}---\n\n"


def _one_line(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _one_line(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_one_line(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def section(title: str, said: Iterable[str], bullets: bool = False, escaped: bool = True) -> list[str]:
    lines = ["", f"## {title}", ""]
    for each in said:
        text = plain(each, whole=True) if escaped else each
        lines += [f"- {text}"] if bullets else [text, ""]
    return lines if bullets else lines[:-1]
