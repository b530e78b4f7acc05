"""The picture of `benchmarks/planner.py`: what one plan takes against the number of states planned for at once."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

PANELS = (
    ("seconds", 1e3, "milliseconds per plan"),
    ("memory_mib", 1.0, "MiB above what was in use"),
    ("launches", 1.0, "launches, or operations where eager"),
)
STYLES = {
    "ours eager": ("tab:blue", "--"),
    "ours compiled": ("tab:blue", "-"),
    "Kaixhin": ("tab:orange", "-"),
    "TorchRL": ("tab:green", "-"),
    "mbrl-lib": ("tab:red", "-"),
    "pytorch-mppi": ("tab:purple", "--"),
    "pytorch-mppi compiled": ("tab:purple", "-"),
    "ceiling": ("black", ":"),
}


def series(rows: list[dict[str, Any]], planner: str, column: str) -> tuple[list[int], list[float]]:
    """B and the column's values, where there are any; operations stand in for launches that were not counted."""
    found = []
    for row in rows:
        value = row[column] if column != "launches" else row["launches"] or row["operations"]
        if row["planner"] == planner and value:
            found.append((row["batch"], value))
    found.sort()
    return [batch for batch, _ in found], [value for _, value in found]


def panels(rows: list[dict[str, Any]]) -> list[tuple[str, float, str]]:
    """Those of `PANELS` for which the rows hold a number."""
    return [panel for panel in PANELS if any(series(rows, planner, panel[0])[0] for planner in STYLES)]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the panels that the rows have numbers for, both axes logarithmic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = panels(rows)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3 * len(shown) + 2.0, 3.8), layout="constrained")
        batches = sorted({row["batch"] for row in rows})
        for axes, (column, scale, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for planner, (color, line) in STYLES.items():
                where, values = series(rows, planner, column)
                if where:
                    scaled = [scale * value for value in values]
                    axes.plot(where, scaled, line, color=color, marker="o", markersize=3.5, label=planner)
            axes.set(xscale="log", yscale="log", xlabel="states planned for at once, B", title=label)
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3, which="both")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.savefig(path, dpi=150, metadata={"Software": None})
