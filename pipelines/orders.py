"""The paper's order of results, held against an evaluation: holds, not shown, or contradicted; and a figure.

Every order is one paired difference with its 95% interval, bootstrapped by patient; the intervals are not
corrected for their number. An order holds where the whole interval is on the paper's side, and is
contradicted where the whole of it is on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any, Literal

from pipelines.demo import interval
from unirg.evaluation.report import plots
from unirg.evaluation.report.page import View

Verdict = Literal["holds", "not shown", "contradicted"]
HOW = ("greedy", "sampled")
"""How reports are drawn from a policy."""
SPLIT = "test"
RADCLIQ_MARGIN = 0.05
"""By how much RadCliQ-v1 (lower is better) may rise and count as kept; ours. A third of what RL after SFT
gains over SFT in the paper's Table 1, 1 / 0.962 - 1 / 1.110 = 0.139."""
PANELS = ("composite", "radcliq_v1", "errors", "bleu2")
"""Metrics of the figure."""


@dataclass(frozen=True)
class Order:
    """What the paper finds of two systems in one metric."""

    claim: str
    a: str
    """The system that the paper finds better, or as good."""
    b: str
    metric: str
    margin: float = 0.0
    """How much worse `a` may be; 0: it must be better."""


ORDERS = (
    Order("SFT and RL are above SFT", "sft + rl", "sft", "composite"),
    Order("SFT and RL in two steps are above SFT", "step 2", "sft", "composite"),
    Order("SFT is above RL alone", "sft", "rl alone", "composite"),
    Order("SFT and RL are above RL alone", "sft + rl", "rl alone", "composite"),
    Order("step 2 makes fewer errors than step 1", "step 2", "step 1", "errors"),
    Order("step 2 keeps step 1's RadCliQ-v1", "step 2", "step 1", "radcliq_v1", RADCLIQ_MARGIN),
    Order("RL on BLEU wins its own metric", "rl on bleu", "sft + rl", "bleu2"),
    Order("RL on BLEU loses overall", "sft + rl", "rl on bleu", "composite"),
    Order("the error reward lowers errors", "step 2", "no error reward", "errors"),
    Order("priors help who was trained with them", "step 2 with priors", "no priors", "composite"),
)
"""The paper's Table 1 and Figures 2b to 2e and 3a. SFT + RL is one RL on the combined reward after SFT."""


@dataclass(frozen=True)
class Finding:
    """One order as an evaluation has it."""

    order: Order
    how: str
    verdict: Verdict
    label: str
    """The metric's name."""
    numbers: Mapping[str, Any]
    """The comparison's record: difference a - b, low, high, n."""


def system(name: str, how: str) -> str:
    """What the evaluation calls a system by how its reports are written."""
    return name if how == "greedy" else f"{name}, {how}"


def comparisons(orders: Sequence[Order] = ORDERS) -> list[list[str]]:
    """The pairs that an evaluation must compare, each once."""
    pairs = dict.fromkeys((system(order.a, how), system(order.b, how)) for order in orders for how in HOW)
    return [list(pair) for pair in pairs]


def judged(data: Mapping[str, Any], orders: Sequence[Order] = ORDERS) -> list[Finding]:
    """Every order, for greedy and for sampled reports, on the held-out studies.

    Args:
        data: the evaluation's aggregates.
    """
    whole = (
        record
        for record in data["comparisons"]
        if record["split"] == SPLIT and record["setting"] == "report" and record["institution"] is None
    )
    records = {(record["a"], record["b"], record["metric"]): record for record in whole}
    found = []
    for order in orders:
        metric = data["metrics"][order.metric]
        for how in HOW:
            numbers = records[system(order.a, how), system(order.b, how), order.metric]
            verdict = verdict_of(numbers["low"], numbers["high"], metric["higher_is_better"], order.margin)
            found.append(Finding(order, how, verdict, metric["label"], numbers))
    return found


def verdict_of(low: float | None, high: float | None, higher_is_better: bool, margin: float) -> Verdict:
    """What the interval of a difference says of "better", or of "not worse by more than the margin"."""
    if low is None or high is None:
        return "not shown"
    worst, best = (low, high) if higher_is_better else (-high, -low)
    if worst > -margin:
        return "holds"
    return "contradicted" if best < -margin else "not shown"


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """A table for a terminal."""
    return _even([_cells(one) for one in found])


def _mean(data: Mapping[str, Any], called: str, metric: str) -> Mapping[str, Any] | None:
    """A system's mean of whole reports over the held-out studies; None where the evaluation has none."""
    for value in data["values"]:
        whole = value["setting"] == "report" and value["corpus"] is None and value["institution"] is None
        if whole and (value["system"], value["split"], value["metric"]) == (called, SPLIT, metric):
            return dict(value)
    return None


def means(data: Mapping[str, Any], shown: Sequence[str]) -> Iterator[str]:
    """A table for a terminal: means of `PANELS` with intervals, of each system and each baseline."""
    names = [(name, how, system(name, how)) for name in shown for how in HOW]
    names += [(one["name"], "", one["name"]) for one in data["systems"] if one["kind"] == "baseline"]
    head = ("system", "reports", *(data["metrics"][metric]["label"] for metric in PANELS))
    rows = [
        (name, how, *(interval(_mean(data, called, metric)) for metric in PANELS))
        for name, how, called in names
    ]
    return _even([head, *rows])


def _even(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns of even width."""
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip()


def _cells(one: Finding) -> tuple[str, ...]:
    what = f"{one.label}: {one.order.a} - {one.order.b}"
    if one.order.margin:
        what += f", margin {one.order.margin:g}"
    return one.verdict, one.order.claim, one.how, what, difference(one.numbers)


def difference(numbers: Mapping[str, Any]) -> str:
    """`+0.021 [+0.003, +0.040]`."""
    if numbers["difference"] is None:
        return "not scored"
    if numbers["low"] is None:
        return f"{numbers['difference']:+.3f}, no interval"
    return f"{numbers['difference']:+.3f} [{numbers['low']:+.3f}, {numbers['high']:+.3f}]"


def _arrow(data: Mapping[str, Any], metric: str) -> str:
    """Where better is."""
    better = data["metrics"][metric]["higher_is_better"]
    return "\N{RIGHTWARDS ARROW}" if better else "\N{LEFTWARDS ARROW}"


def page(data: Mapping[str, Any], found: Sequence[Finding], shown: Sequence[str]) -> str:
    """The figure and the table as one HTML file that loads nothing from elsewhere.

    Args:
        shown: the systems of the figure, without `, sampled`.
    """
    view = View(data)
    studies, patients = view.group(SPLIT)["studies"], view.group(SPLIT)["patients"]
    whose = " and ".join(filter(None, (data["scorers"], view.judge)))
    figure = plots.dots(
        "ablations",
        f"{', '.join(view.label(metric) for metric in PANELS)} of each arm, with 95% intervals.",
        [{"name": name, "kind": "policy"} for name in shown],
        [
            (metric, f"{data['metrics'][metric]['label']} {_arrow(data, metric)}", view.by(metric))
            for metric in PANELS
        ],
        [(how, f"{how} reports") for how in HOW],
        lambda name, how, metric: _mean(data, system(name, how), metric),
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(one)) + "</tr>\n" for one in found
    )
    style = (resources.files("unirg.evaluation.report") / "templates" / "report.css").read_text()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Ablations</title>
<style>{style}</style>
</head>
<body>
<p class="notice">Research use, not for diagnosis.</p>
<header><h1>Ablations</h1>
<p>{studies} held-out studies of {patients} patients; means and paired differences with 95% intervals,
resampled by patient and not corrected for their number. Numbers are by {escape(whose or "no model")}.</p>
</header>
<main>
<figure><div class="scroll">{figure}</div>
<figcaption>Composite: {escape(view.formula())}.</figcaption></figure>
<section><h2>The paper's order of results</h2>
<div class="scroll"><table>
<thead>
<tr><th>Verdict</th><th>Order</th><th>Reports</th><th>Difference</th><th>With its interval</th></tr>
</thead>
<tbody>
{body}</tbody>
</table></div></section>
</main>
</body>
</html>
"""
