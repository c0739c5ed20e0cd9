"""Figures 2e and 2f: errors by category and significance, shares of reports by their number of errors."""

from __future__ import annotations

from unirg.evaluation.report import plots
from unirg.evaluation.report.shown import Cell, Data, Drawn, Shown, Table, means, whole

KINDS = (("all", "All errors"), ("significant", "Clinically significant"))
SHARES = {"at_most_1": "At most 1 error", "2": "2 errors", "3": "3 errors", "4_or_more": "4 or more errors"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """Two figures a group."""
    drawn = []
    for name, group in whole(suite):
        label, judge = shown.place(group), shown.judge
        found = group["systems"]
        names = shown.names(found)
        systems = [system for system in shown.systems if system["name"] in shown.scored(found)]
        size = f"{group['studies']} studies, {group['patients']} patients"

        def errors(system: str, kind: str, category: str, of: Data = found) -> Data | None:
            if category == "errors":
                record: Data | None = of[system]["errors" if kind == "all" else kind]
            else:
                record = of[system]["categories"][category][kind]
            return record

        categories = {"errors": "All categories", **suite["categories"]}
        panels = [(key, title, str(judge)) for key, title in categories.items()]
        columns = [(f"errors:{kind}:{key}", f"{title}, {words.lower()}") for key, title in categories.items()
                   for kind, words in KINDS]  # fmt: skip
        tables = [
            means(
                f"{label}: mean errors of a report by the {judge}, {size}",
                names,
                columns,
                lambda system, key, find=errors: find(system, *key.split(":")[1:]),  # type: ignore[misc]
            )
        ]
        title = f"Errors by category: {label}"
        caption = (
            f"Mean errors of a report under CheXprompt's categories, counted by the {judge}, with 95% "
            "intervals; filled: all errors, open: those that would change management. Lower is better."
        )
        svg = plots.dots(f"{name}-categories", f"{title}. {caption}", systems, panels, KINDS, errors)
        drawn.append(Drawn(f"{name}-categories", "2e", title, caption, svg, tables))

        def share(system: str, kind: str, key: str, of: Data = found) -> Data | None:
            record: Data | None = of[system]["shares" if kind == "all" else "shares_significant"][key]
            return record

        panels = [(key, title, str(judge)) for key, title in SHARES.items()]
        table = Table(
            f"{label}: share of reports by their number of errors, by the {judge}, {size}",
            ["System", *SHARES.values(), "At most 2 errors", "At most 3 errors"],
            [
                (
                    system,
                    [
                        *(Cell(share(system, "all", key), "share") for key in SHARES),
                        *(Cell(found[system]["at_most"][most], "share") for most in ("2", "3")),
                    ],
                )
                for system in names
            ],
        )
        title = f"Share of reports by number of errors: {label}"
        caption = (
            f"Of all reports the share with so many errors, counted by the {judge}, with 95% intervals; "
            "filled: all errors, open: significant ones alone. The four shares of a system add up to 1."
        )
        svg = plots.dots(f"{name}-shares", f"{title}. {caption}", systems, panels, KINDS, share)
        drawn.append(Drawn(f"{name}-shares", "2f", title, caption, svg, [table]))
    return drawn
