"""Figures 4b and 4c: F1 by CheXbert condition, and its averages."""

from __future__ import annotations

from unirg.evaluation.report import draw
from unirg.evaluation.report.draw import Panel
from unirg.evaluation.report.shown import Cell, Data, Drawn, Shown, Table, whole

MEASURES = {"f1": "F1", "precision": "Precision", "recall": "Recall"}
AVERAGES = {"micro": "micro", "macro": "macro", "macro_supported": "macro, if supported"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """One figure of conditions and one of averages a group."""
    drawn = []
    rule = suite["headline"]
    for name, group in whole(suite):
        found = group["systems"]
        few, names = shown.few(found), shown.names(found)
        label, labeller = shown.place(group), suite["labeller"]

        def condition(measure: str, key: str, system: str, of: Data = found) -> Data | None:
            record: Data | None = of[system][rule]["conditions"][key].get(measure)
            return record

        every = list(found[names[0]][rule]["conditions"]) if names else []
        support = {key: max(found[n][rule]["conditions"][key]["support"] for n in names) for key in every}
        rows = [key for key in every if any(condition("f1", key, n) for n in names)]
        rows.sort(key=lambda key: -support[key])
        size = f"{group['studies']} studies, {group['patients']} patients"
        tables = [
            Table(
                f"{label}: {words} of each condition, {size}; labels by {labeller}",
                ["Condition", "Support", *names],
                [
                    (
                        key,
                        [
                            str(support[key]),
                            *(
                                Cell(condition(measure, key, n), measure) if key in rows else "too small"
                                for n in names
                            ),
                        ],
                    )
                    for key in every
                ],
            )
            for measure, words in MEASURES.items()
        ]
        panels = [Panel(key, title, labeller) for key, title in MEASURES.items()]
        if rows:
            title = f"Conditions: {label}"
            caption = (
                f"F1, precision and recall of each condition with 95% intervals, by support (references that "
                f"state it, in brackets); labels by {labeller}; {suite['rules'][rule]}."
            )
            labelled = [(key, f"{key} ({support[key]})") for key in rows]
            svg = draw.forest(
                f"{name}-each", f"{title}. {caption}", panels, labelled, shown.series(few), condition
            )
            drawn.append(Drawn(f"{name}-each", "4b", title, caption, svg, tables))
        kinds = [
            (f"{size_}:{kind}", f"{size_} {words}")
            for size_ in suite["sets"]
            for kind, words in AVERAGES.items()
        ]

        def average(measure: str, key: str, system: str, of: Data = found) -> Data | None:
            which, kind = key.split(":")
            record: Data | None = of[system][rule]["averages"][which][kind][measure]
            return record

        title = f"Averages over conditions: {label}"
        caption = (
            f"Micro and macro averages over 14 and 5 conditions with 95% intervals; labels by {labeller}."
        )
        svg = draw.forest(
            f"{name}-averages", f"{title}. {caption}", panels, kinds, shown.series(few), average
        )
        tables = [
            Table(
                f"{label}: averages of {words}, {size}",
                ["Average", *names],
                [(text, [Cell(average(measure, key, n), measure) for n in names]) for key, text in kinds],
            )
            for measure, words in MEASURES.items()
        ]
        drawn.append(Drawn(f"{name}-averages", "4c", title, caption, svg, tables))
    return drawn
