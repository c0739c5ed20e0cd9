"""KFP component: the checkpoints of a sweep -> one table of them."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_table(store: str, grid: list, checkpoints: list, traceparent: str) -> str:
    """Tabulate a sweep's trainings as CSV and Markdown; returns the table's URI.

    Args:
        store: URI below which every artifact lies.
        grid: the axes, each `key=value,value,...`.
        checkpoints: URIs of the points' checkpoints, in the grid's order.
        traceparent: W3C trace context of the run.
    """
    from unirg import artifact, telemetry
    from unirg.training.sweep import SweepConfig, points, tabulate

    telemetry.join_trace(traceparent)
    opened = [artifact.open_artifact(uri) for uri in checkpoints]
    return tabulate(SweepConfig(points=tuple(points(grid))), opened, store).uri
