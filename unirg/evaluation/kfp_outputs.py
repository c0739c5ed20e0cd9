"""What KFP's UI shows of an evaluation and of its report, as artifacts of the tasks that make them.

The UI reads metrics and confusion matrices from an artifact's metadata, which is JSON and has no NaN: a mean
that is missing is left out, and told in the summary. A component's artifacts are fixed when it is compiled,
so the confusion matrices are of one system, the last policy that has a report here. The rows
of a matrix are the reference's, as KFP has them ("True label"). HTML is shown in a frame that shares nothing
with the UI, and Markdown is cut at 400,000 characters (frontend/src/components/viewers of KFP 2).

The summary holds no text of a report and no id of a study. The report's HTML does, as the artifact does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from unirg import storage
from unirg.artifact import Artifact
from unirg.evaluation import aggregates, suites
from unirg.evaluation.report.figures_conditions import MEASURES
from unirg.evaluation.report.markdown import rendered, text
from unirg.evaluation.report.plots import visible
from unirg.evaluation.report.render import HTML, MARKDOWN
from unirg.evaluation.report.shown import SPLITS, UNKNOWN, Table, formatted
from unirg.metrics.conditions import FIVE

ALL = "all"
"""The matrix of all 14 conditions together, beside those of `FIVE`."""
CATEGORIES = ("stated", "not stated")
LONGEST = 200
"""Characters of a metric's name: MLMD, where KFP keeps them, has 255."""
NOTICE = "Research use, not for diagnosis. The task report has the whole page, with figures and cases."

Data = Mapping[str, Any]
Matrix = list[list[int]]


class File(Protocol):
    """A `dsl.HTML` or `dsl.Markdown`."""

    path: str


class Metrics(Protocol):
    """A `dsl.Metrics`."""

    def log_metric(self, metric: str, value: float) -> None: ...


class Classification(Protocol):
    """A `dsl.ClassificationMetrics`."""

    def log_confusion_matrix(self, categories: list[str], matrix: Matrix) -> None: ...


def show_evaluation(
    evaluation: Artifact,
    scalars: Metrics,
    html: File,
    markdown: File,
    classified: Mapping[str, Classification],
) -> None:
    """Fill the outputs of the task that evaluates.

    Args:
        classified: by `ALL` and `FIVE`; one whose condition too few references state stays empty.
    """
    data, found = aggregates.read(evaluation), suites.read(evaluation)
    for name, value in metrics(data, found).items():
        scalars.log_metric(name, value)
    for name, matrix in matrices(data, found).items():
        classified[name].log_confusion_matrix(list(CATEGORIES), matrix)
    sections = list(summary(data, found))
    Path(html.path).write_text(page(sections), encoding="utf-8")
    Path(markdown.path).write_text(as_markdown(sections), encoding="utf-8")


def show_report(report: Artifact, html: File, markdown: File) -> None:
    """Fill the outputs of the task that reports, with copies of its files."""
    shutil.copyfile(report.path(HTML), html.path)
    shutil.copyfile(report.path(MARKDOWN), markdown.path)


def metrics(data: Data, found: Data) -> dict[str, float]:
    """`system/split/metric` -> mean over whole reports, where there is one; `alarms`, how many there are."""
    means = {"alarms": float(len(suites.alarms(found)))}
    for system, splits in data["headline"].items():
        for split, numbers in splits.items():
            for metric, record in (numbers or {}).items():
                if record["mean"] is not None:
                    means[_short(f"{visible(system)}/{split}/{metric}")] = record["mean"]
    return means


def _short(name: str) -> str:
    """A name that fits; two long ones stay two."""
    if len(name) <= LONGEST:
        return name
    return f"{name[-LONGEST + 10 :]} {storage.sha256(name.encode())[:8]}"


def matrices(data: Data, found: Data) -> dict[str, Matrix]:
    """Condition -> [[both, missed], [wrongly stated, neither]] of the last policy on whole held-out reports.

    Of the headline rule for uncertain labels. Empty where the suite did not run or its group is too small.
    """
    system, group = _classified(data, found)
    if group is None:
        return {}
    own = group["systems"][system]
    of_rule = own[found["conditions"]["headline"]]
    counts = {name: of_rule["conditions"][name] for name in FIVE}
    kept = {name: _matrix(one, own["read"]) for name, one in counts.items() if "too_small" not in one}
    size = len(found["conditions"]["sets"]["14"])
    return {ALL: _matrix(of_rule["averages"]["14"]["counts"], size * own["read"])} | kept


def _matrix(counts: Data, places: int) -> Matrix:
    """Args: places: where a condition might be stated, studies x conditions."""
    both: int = counts["both"]
    missed, wrong = counts["support"] - both, counts["claimed"] - both
    return [[both, missed], [wrong, places - both - missed - wrong]]


def _classified(data: Data, found: Data) -> tuple[str, Data | None]:
    """The last policy with any candidate, and the group of the conditions over all held-out reports."""
    for group in found.get("conditions", {}).get("groups", ()):
        if (group["split"], group["setting"]) == ("test", "report") and "too_small" not in group:
            read = [
                system["name"]
                for system in data["systems"]
                if system["kind"] == "policy" and group["systems"][system["name"]]["read"]
            ]
            return (read[-1], group) if read else ("", None)
    return "", None


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, unescaped."""

    heading: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def summary(data: Data, found: Data) -> Iterator[Section]:
    """What a reader should know before opening the report."""
    raised = [alarm["sentence"] for alarm in suites.alarms(found)]
    yield Section("Alarms", raised or ["No suite raised an alarm."])
    by = [f"Scores that rest on a model are by: {data['scorers']}."] if data["scorers"] else []
    judge = f"Errors are counted by: {data['judge'] or 'no judge'}."
    yield Section("Means", [*by, judge, *data["notes"]], list(_means(data)))
    system, group = _classified(data, found)
    if group is not None:
        yield _conditions(system, group, found["conditions"])
    lines = suites.missing(found)
    yield Section("Not computed", lines or ["Everything was computed."])


def _means(data: Data) -> Iterator[Table]:
    """A table a split with its headline: means with 95% intervals."""
    shown = aggregates.shown_first(data["metrics"])
    for split in aggregates.HEADLINE_SPLITS:
        names = [system["name"] for system in data["systems"]]  # in the order shown, which JSON's keys lost
        rows = [
            (name, [_interval(of.get(metric), metric) for metric in shown])
            for name in names
            if (of := data["headline"][name][split])
        ]
        if rows:
            heads = ["System", *(data["metrics"][metric]["label"] for metric in shown)]
            label = UNKNOWN if split == "test" else SPLITS[split]
            yield Table(f"{label}: means with 95% intervals, findings and impression", heads, rows)


def _conditions(system: str, group: Data, suite: Data) -> Section:
    own = group["systems"][system][suite["headline"]]["conditions"]
    rows = [
        (
            name,
            [
                str(one["support"]),
                str(one["claimed"]),
                *(_interval(one[key], key) if key in one else "too small" for key in MEASURES),
            ],
        )
        for name, one in own.items()
    ]
    caption = f"{system}, {group['studies']} studies; labels by {suite['labeller']}"
    heads = ["Condition", "References that state it", "Candidates that do", *MEASURES.values()]
    words = [f"Uncertain labels: {suite['rules'][suite['headline']]}. The matrices are of this system."]
    return Section("Conditions", words, [Table(caption, heads, rows)])


def _interval(record: Data | None, metric: str) -> str:
    if record is None or record["mean"] is None:
        return formatted(None, metric)
    shown = formatted(record["mean"], metric)
    if record["low"] is not None:
        shown += f" ({formatted(record['low'], metric)} to {formatted(record['high'], metric)})"
    return shown + (f", {record['missing']} missing" if record["missing"] else "")


def as_markdown(sections: list[Section]) -> str:
    """The summary; whatever came from outside is escaped, so that it shows as it is written."""
    lines = ["# Evaluation", "", NOTICE]
    for section in sections:
        lines += ["", f"## {text(section.heading)}", "", *(f"- {text(line)}" for line in section.lines)]
        for each in section.tables:
            lines += rendered(each)
    return "\n".join(lines) + "\n"


def page(sections: list[Section]) -> str:
    """The summary as one HTML file without scripts that loads nothing."""
    style = (resources.files("unirg.evaluation.report") / "templates" / "report.css").read_text()
    body = "".join(
        f"<section><h2>{_shown(section.heading)}</h2>\n<ul>"
        + "".join(f"<li>{_shown(line)}</li>\n" for line in section.lines)
        + "</ul>\n"
        + "".join(map(_table, section.tables))
        + "</section>\n"
        for section in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evaluation</title>
<style>{style}</style>
</head>
<body>
<header><h1>Evaluation</h1>
<p>{_shown(NOTICE)}</p></header>
<main>
{body}</main>
</body>
</html>
"""


def _table(table: Table) -> str:
    first, *others = table.heads
    heads = f'<th scope="col">{_shown(first)}</th>' + "".join(
        f'<th scope="col" class="num">{_shown(head)}</th>' for head in others
    )
    rows = "".join(
        f'<tr><th scope="row">{_shown(label)}</th>'
        + "".join(f'<td class="num">{_shown(str(cell))}</td>' for cell in cells)
        + "</tr>\n"
        for label, cells in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_shown(table.caption)}"><table>'
        f"<caption><span>{_shown(table.caption)}</span></caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _shown(words: str) -> str:
    return escape(visible(words))
