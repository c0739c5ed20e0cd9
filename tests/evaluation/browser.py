"""Headless Chromium at a window's size: what a page asks for, complains of, and where its elements lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

DESKTOP, PHONE = (1280, 800), (390, 844)
"""Width and height of a window in CSS pixels."""
GRAVE = ("serious", "critical")
"""Impacts that axe-core gives to what shuts somebody out."""


@dataclass
class Tab:
    """One page in a browser of its own."""

    page: Page
    requested: list[str] = field(default_factory=list)
    """Every URL that the page asked for, its own included; what is embedded in it is none."""
    complaints: list[str] = field(default_factory=list)
    """What the console says of the page, with every script's error."""

    def open(self, uri: str) -> None:
        """Load a page to its end."""
        self.page.goto(uri, wait_until="load")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.page.evaluate(expression)

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        root = "document.documentElement"
        return int(self.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))

    def bottom(self, selector: str) -> float:
        """Where the first such element ends, in pixels from the top of the page; it must be seen."""
        box = self.page.locator(selector).first.bounding_box()
        assert box, f"{selector} is not shown"
        return float(box["y"] + box["height"])

    def inaccessible(self) -> list[str]:
        """axe-core's findings of a grave impact: the rule, the impact, the first elements."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']} ({each['impact']}): {[node['html'][:120] for node in each['nodes'][:3]]}"
            for each in found
            if each["impact"] in GRAVE
        ]


@contextmanager
def tab(size: tuple[int, int] = DESKTOP) -> Iterator[Tab]:
    """A tab of a Chromium of its own, gone at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height})
        opened = Tab(page)
        page.on("request", lambda request: opened.requested.append(request.url))
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        yield opened
        browser.close()


def executable() -> str:
    """Chromium's path; without one the test is skipped, but in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
