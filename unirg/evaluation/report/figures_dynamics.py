"""Figures 2b to 2d: scores of the validation and errors against training steps, ablations laid over."""

from __future__ import annotations

from unirg.evaluation.report import draw, plots
from unirg.evaluation.report.draw import Panel, Series
from unirg.evaluation.report.shown import Cell, Data, Drawn, Shown, Table, formatted
from unirg.metrics import catalog
from unirg.metrics.catalog import CATALOG

LOGGED = {
    **{"loss": "Loss", "reward": "Reward", "kl": "KL divergence", "entropy": "Entropy, nats per token"},
    **{"length": "Length, tokens", "duplicate_share": "Share of repeated rollouts"},
    **{"truncated_share": "Share of truncated rollouts", "errors": "1 / (errors + 1)"},
}
PAPER = {"2c": "RadCliQ-v1 against training steps", "2d": "Errors per report against training steps"}


def figures(suite: Data, shown: Shown) -> list[Drawn]:
    """The paper's figures from the validations, then the trainers' own curves, then the ends compared."""
    drawn: list[Drawn] = []
    runs = list(suite["runs"])
    colours = {
        run: shown.colours.get(run, plots.PALETTE[at % len(plots.PALETTE)]) for at, run in enumerate(runs)
    }
    curves = {(curve["run"], curve["key"]): curve for curve in suite["curves"]}
    families = list(dict.fromkeys(figure["of"] for figure in suite["figures"]))
    for at, of in enumerate(families):
        for paper in ("2c", "2d", "2b", None):
            found = [f for f in suite["figures"] if f["of"] == of and f["figure"] == paper]
            if not found:
                continue
            panels = []
            for figure in found:
                lines = [
                    (
                        run,
                        curves[run, figure["key"]]["steps"],
                        curves[run, figure["key"]]["values"],
                        colours[run],
                    )
                    for run in figure["runs"]
                ]
                panels.append((_label(figure, shown), _about(figure, shown), lines))
            title = PAPER.get(paper or "", "Scores of the validation" if paper else "The trainers' own logs")
            if of:
                title = f"{title}: {of} and its ablations"
            caption = (
                "Means over the validation studies at each step, one marker a run; the logs hold no score of "
                "a single study, so there are no intervals."
                if paper
                else "Thin: as logged; thick: the running mean over a tenth of the steps."
            )
            name = f"dynamics-{at}-{paper or 'training'}"
            draw_lines = plots.scored if paper else plots.curves
            svg = draw_lines(name, f"{title}. {caption}", panels)
            rows = [
                (
                    f"{_label(figure, shown)}, {run}",
                    [
                        *(formatted(curves[run, figure["key"]]["values"][end], "") for end in (0, -1)),
                        str(curves[run, figure["key"]]["steps"][-1]),
                    ],
                )
                for figure in found
                for run in figure["runs"]
            ]
            table = Table(
                f"{title}: where each curve starts and ends", ["Curve", "First", "Last", "Step"], rows
            )
            drawn.append(Drawn(name, paper or "", title, caption, svg, [table]))
    return [*drawn, *_ends(suite, shown)]


def _label(figure: Data, shown: Shown) -> str:
    name = str(figure["name"])
    if figure["key"].startswith("validation/"):
        return "Loss, validation" if name == "loss" else shown.label(name)
    return LOGGED.get(name, shown.label(name))


def _about(figure: Data, shown: Shown) -> str:
    """Whose numbers these are, where a scorer's, and which way is better."""
    name, higher = str(figure["name"]), figure["higher_is_better"]
    scorers = shown.data["scorers"] if name in CATALOG and catalog.with_weights([name]) else None
    better = None if higher is None else "higher is better" if higher else "lower is better"
    return ", ".join(filter(None, (scorers, better)))


def _ends(suite: Data, shown: Shown) -> list[Drawn]:
    """Each run against its ablations, over the evaluated studies."""
    drawn = []
    for at, group in enumerate(g for g in suite["ends"] if "too_small" not in g):
        pairs = {f"{d['run']} minus {d['ablation']}": d["metrics"] for d in group["differences"]}
        if not pairs:
            continue
        known = [
            m for m in suite["metrics"] if any(p.get(m, {}).get("mean") is not None for p in pairs.values())
        ]
        metrics = [m for m in ("radcliq_v1", "composite", "bertscore", "radgraph", "errors") if m in known][
            :4
        ]
        title = f"Ablations: {shown.place(group)}"
        caption = "Paired differences at the end of training with 95% intervals; dashed: no difference."

        def find(metric: str, pair: str, _: str, of: dict[str, Data] = pairs) -> Data | None:
            found: Data | None = of[pair].get(metric)
            return found

        series = [Series("", "run minus ablation", "#0072B2", "o")]
        panels: list[Panel] = [shown.panel(m) for m in metrics]
        name = f"dynamics-ends-{at}"
        svg = draw.forest(
            name, f"{title}. {caption}", panels, [(p, p) for p in pairs], series, find, zero=True
        )
        heads = ["Pair", *map(shown.heading, known)]
        rows = [(p, [Cell(find(m, p, ""), m, signed=True) for m in known]) for p in pairs]
        drawn.append(Drawn(name, "2b", title, caption, svg, [Table(title, heads, rows)]))
    return drawn
