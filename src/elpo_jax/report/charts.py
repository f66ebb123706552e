"""Line charts for the pages: their geometry; the templates draw it as SVG.

Coordinates are those of a `WIDTH` x `HEIGHT` view box. A line is told from its neighbours by dashes
as well as by colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from elpo_jax.report.words import number, percent

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
SMOOTH_FROM = 20  # points from which on a noisy line is shown with its running mean

Points = Sequence[tuple[int, float]]


class Line(NamedTuple):
    """What is drawn of one metric.

    Attributes:
      label: in the legend.
      points: (step, value), ascending.
      band: (step, low, high) of an interval around the line.
      smooth: draw the running mean boldly and the values behind it thinly, where there are enough.
      marked: draw a dot at each point.
    """

    label: str
    points: Points
    band: Sequence[tuple[int, float, float]] = ()
    smooth: bool = False
    marked: bool = False


class Tick(NamedTuple):
    at: float  # in the view box
    label: str


class Drawn(NamedTuple):
    """A line in the view box. `style` numbers colour and dashes; paths are SVG's `d`."""

    label: str
    style: int
    path: str
    raw: str
    band: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn.

    Attributes:
      title: what it shows.
      note: a sentence on how to read it.
      lines: those that have points.
      x_ticks, y_ticks: of the axes.
      data: what the pointer reads off, for the page's script: {unit, x: [first, last], frame:
        [left, right, width] in the view box, lines: [points]}.
      summary: the same in words, for who can't see it.
    """

    title: str
    note: str
    lines: tuple[Drawn, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    data: dict[str, Any]
    summary: str


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    steps: tuple[int, int],
    unit: str = "number",
    note: str = "",
) -> Chart | None:
    """Lays a chart out; None where no line has a point.

    Lines that are 0 throughout beside others that aren't are only named in the note.

    Args:
      title: what it shows.
      lines: at most as many as there are styles (6).
      steps: first and last of the axis.
      unit: 'number' or 'percent' (values are shares).
      note: a sentence below it.
    """
    styled = [(style, line) for style, line in enumerate(lines, 1) if line.points]
    if not styled:
        return None
    flat = [line.label for _, line in styled if not any(value for _, value in line.points)]
    if flat and len(flat) < len(styled):
        styled = [(style, line) for style, line in styled if line.label not in flat]
        note = f"{note} Always 0: {', '.join(flat)}.".strip()
    values = [value for _, line in styled for _, value in line.points]
    values += [edge for _, line in styled for _, *edges in line.band for edge in edges]
    x = _Axis(*steps, LEFT, WIDTH - RIGHT, whole=True)
    y = _Axis(min([*values, 0.0]), max(values), HEIGHT - BOTTOM, TOP, whole=False)
    text = percent_tick if unit == "percent" else number
    return Chart(
        title=title,
        note=note,
        lines=tuple(_draw(style, line, x, y) for style, line in styled),
        x_ticks=tuple(Tick(x.at(tick), f"{tick:.0f}") for tick in x.ticks),
        y_ticks=tuple(Tick(y.at(tick), text(tick)) for tick in y.ticks),
        data={
            "unit": unit,
            "x": [x.low, x.high],
            "frame": [LEFT, WIDTH - RIGHT, WIDTH],
            "lines": [line.points for _, line in styled],
        },
        summary="; ".join(_in_words(line, unit) for _, line in styled),
    )


def sparkline(points: Points, width: int = 120, height: int = 22) -> str:
    """The path of a small line without axes; '' for fewer than two points."""
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    x = _Axis(points[0][0], points[-1][0], 1, width - 1, whole=True, exact=True)
    y = _Axis(min(values), max(values), height - 2, 2, whole=False, exact=True)
    return _path([(x.at(step), y.at(value)) for step, value in points])


def percent_tick(value: float) -> str:
    """'25%', '0.05%'."""
    return f"{number(100 * value)}%"


def running_mean(points: Points) -> list[tuple[int, float]]:
    """Centred means over a tenth of the points, fewer at the ends."""
    half = _window(len(points)) // 2
    means = []
    for i, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, i - half) : i + half + 1]]
        means.append((step, sum(near) / len(near)))
    return means


class _Axis:
    """From values to the view box; the range is widened to whole ticks unless it is `exact`."""

    def __init__(
        self, low: float, high: float, start: float, end: float, whole: bool, exact: bool = False
    ):
        if low == high:
            low, high = (low, low + 1) if whole or not low else sorted((0.0, 2 * low))
        if whole:
            ticks = MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            self.ticks = [float(tick) for tick in ticks if low <= tick <= high]
        elif not exact:
            ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            self.ticks = [float(tick) for tick in ticks]
            low, high = self.ticks[0], self.ticks[-1]
        self.low, self.high = low, high
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self._start + part * (self._end - self._start), 1)


def _window(count: int) -> int:
    """Steps of a running mean: an odd number of about a tenth."""
    return max(3, count // 10 | 1)


def _draw(style: int, line: Line, x: _Axis, y: _Axis) -> Drawn:
    smooth = line.smooth and len(line.points) >= SMOOTH_FROM
    values = _path([(x.at(step), y.at(value)) for step, value in line.points])
    means = running_mean(line.points) if smooth else line.points
    upper = [(x.at(step), y.at(high)) for step, _, high in line.band]
    lower = [(x.at(step), y.at(low)) for step, low, _ in line.band]
    single = len(line.points) == 1  # a path of one point draws nothing
    return Drawn(
        label=line.label,
        style=style,
        path=_path([(x.at(step), y.at(value)) for step, value in means]),
        raw=values if smooth else "",
        band=_path([*upper, *lower[::-1]]) + "Z" if len(upper) > 1 else "",
        dots=tuple((x.at(step), y.at(value)) for step, value in line.points)
        if line.marked or single
        else (),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def _in_words(line: Line, unit: str) -> str:
    text = percent if unit == "percent" else number
    (first, begin), (last, end) = line.points[0], line.points[-1]
    if first == last:
        return f"{line.label}: {text(begin)} at step {first}"
    return f"{line.label}: {text(begin)} at step {first}, {text(end)} at step {last}"
