"""What the page tells beside its figures, as tables and lines: sanity, what was not scored, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unirg.evaluation.report.shown import DASH, SETTINGS, Cell, Data, Shown, Table, formatted

SHARES = {
    **{"top": "Commonest report", "repeated": "Repeat another", "near": "Near copies"},
    **{"empty": "Empty", "unfinished": "Unfinished"},
}
OTHERS = ("Cut at the limit", "Median words", "Like its own reference", "Like another patient's")


def sanity(groups: Sequence[Data], shown: Shown) -> list[Table]:
    """A table a group: every share of a system beside the references' own."""
    return [
        Table(
            f"{shown.place(group)}: {group['studies']} studies, {group['patients']} patients",
            ["System", "Reports", *SHARES.values(), *OTHERS],
            [
                (
                    "References",
                    [
                        str(group["studies"]),
                        *_shares(group["references"]),
                        *(DASH, _words(group["references"]), DASH, DASH),
                    ],
                ),
                *((name, _sanity(group["systems"][name])) for name in shown.names(group["systems"])),
            ],
        )
        for group in groups
    ]


def _sanity(own: Data) -> list[str]:
    missing = f", {own['missing']} missing" if own["missing"] else ""
    return [
        f"{own['said']}{missing}",
        *_shares(own["candidates"]),
        formatted(own["cut"], "share"),
        _words(own["candidates"]) if own["said"] else DASH,
        *(formatted(own[key], "") for key in ("own", "other")),
    ]


def _shares(of: Data) -> list[str]:
    return [formatted(of[key], "share") for key in SHARES]


def _words(of: Data) -> str:
    return str(round(of["length"]["median"]))


def absent(data: Data) -> list[Table]:
    """Metrics without a number; none where all have some."""
    found = data["suites"].get("reports", {}).get("absent", [])
    rows: list[tuple[str, list[Cell | str]]] = [
        (each["label"], [each["why"], each.get("how", DASH)]) for each in found
    ]
    return (
        [Table("Metrics that were not computed", ["Metric", "Why", "How to have it"], rows)] if rows else []
    )


def unscored(data: Data, shown: Shown) -> list[Table]:
    """Studies without a score; none where all have one."""
    rows: list[tuple[str, list[Cell | str]]] = [
        (
            each["system"],
            [SETTINGS[each["setting"]], shown.split(each["split"]), each["reason"], str(each["studies"])],
        )
        for each in data["unscored"]
    ]
    heads = ["System", "Setting", "Split", "Reason", "Studies"]
    return [Table("Studies without a score, by system and reason", heads, rows)] if rows else []


def provenance(data: Data) -> Table:
    """Inputs and measures by digest."""
    rows: list[tuple[str, list[Cell | str]]] = []
    for each in data["provenance"]:
        stage = each["stage"] + (f" v{each['version']}" if each["version"] else "")
        rows.append((each["input"], [stage, each["digest"][:16], each["action_key"][:16] or DASH]))
    rows += [(name, [DASH, digest[:16], DASH]) for name, digest in data["cards"]["measures"].items()]
    return Table("Inputs by digest", ["Input", "Stage", "Digest", "Action key"], rows)


def software(data: Data) -> dict[str, str]:
    """Versions over all stages; several where stages ran with different ones."""
    found: dict[str, dict[str, None]] = {}
    for entry in data["provenance"]:
        for name, version in entry["software"].items():
            found.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in sorted(found.items())}


def not_run(entry: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What did not run: a suite, or a suite of one system."""
    suite = names.get(entry["suite"], entry["suite"])
    return f"{suite} of {entry['system']}" if entry.get("system") else str(suite)
