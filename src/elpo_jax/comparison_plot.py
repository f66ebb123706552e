"""Draws a comparison: held-out success against rollouts, tokens and time."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from elpo_jax.comparison import AXES
from elpo_jax.workdir import write_atomic

# Okabe and Ito's colours, which the colour-blind can tell apart; the dashes say the same.
_STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
)


def plot(found: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes a PNG: a panel an axis, a line an algorithm (mean), a band (least to most)."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for number, (name, row) in enumerate(found["algorithms"].items()):
            _line(panel, row["curves"], axis, name, _STYLES[number % len(_STYLES)])
        panel.set_xlabel(label)
        panel.locator_params(axis="x", nbins=5)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out success, %")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{title}; line: mean, band: least to most")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_atomic(path, picture.getvalue())


def _line(
    panel: Axes,
    curves: Mapping[str, Any],
    axis: str,
    name: str,
    style: tuple[str, str, str],
) -> None:
    color, dashes, marker = style
    x = np.mean([[point[axis] for point in curve] for curve in curves.values()], axis=0)
    y = 100 * np.array([[point["success"] for point in curve] for curve in curves.values()])
    panel.plot(x, y.mean(0), dashes, color=color, marker=marker, markersize=5, label=name)
    panel.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
