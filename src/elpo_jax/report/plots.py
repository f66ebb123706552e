"""The main curves as PNG files, for slides and terminals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from elpo_jax.metrics import wilson
from elpo_jax.report.charts import SMOOTH_FROM, running_mean
from elpo_jax.report.run import Run, total
from elpo_jax.report.verdict import Change, changes

COLOURS = ("#1f5fbf", "#c2570c", "#5d6470", "#8a3ab9", "#0f7b6c")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (5, 2)), (0, (2, 2)), "-.", ":")
Names = Sequence[tuple[str, str]]  # (metric, label)


def write_plots(run: Run, folder: Path) -> list[Path]:
    """Writes the plots of which the run has data, and returns where they are."""
    folder.mkdir(exist_ok=True)
    figures = {
        "success": _success(run),
        "success_by_kind": _before_after(changes(run, "kind"), "Held-out success by question type"),
        "success_by_calls": _before_after(
            changes(run, "calls"), "Held-out success by calls that the solver needs"
        ),
        "reward": _curves(
            run, "Reward", [("eval/reward", "held-out"), ("reward/mean", "training")]
        ),
        "policy": _grid(
            run,
            (
                ("Entropy, nats", [("policy/entropy", "policy tokens")], False),
                ("KL from the policy before the step", [("policy/kl_old", "nats a token")], False),
                (
                    "Clipped tokens",
                    [
                        ("policy/clip_frac_low_plain", "low, outside ELC"),
                        ("policy/clip_frac_low_elc", "low, in ELC"),
                        ("policy/clip_frac_high_plain", "high, outside ELC"),
                        ("policy/clip_frac_high_elc", "high, in ELC"),
                    ],
                    True,
                ),
                ("Gradient norm", [("policy/grad_norm", "before clipping")], False),
            ),
        ),
        "localisation": _grid(
            run,
            (
                ("Searches resolved", [("bel/localized_frac", "within the budget")], True),
                ("t_crit / (K + 1)", [("bel/relative_position", "mean")], False),
            ),
        ),
        "throughput": _grid(
            run,
            (
                (
                    "Seconds a step",
                    [("time/rollout", "rollout"), ("time/update", "update")],
                    False,
                ),
                (
                    "Tokens drawn a second of rollout",
                    [("sampler/tokens_per_s", "tokens/s")],
                    False,
                ),
            ),
        ),
    }
    written = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        figure.savefig(path, dpi=144, bbox_inches="tight", pad_inches=0.15)
        written.append(path)
    return written


def _success(run: Run) -> Figure | None:
    rows = [row for row in run.evaluations if total(row)[1]]
    training = run.series("success/unaided")
    if not rows and not training:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    _style(axes, "Success", is_share=True)
    if rows:
        steps = [row["step"] for row in rows]
        bounds = [wilson(*total(row)) for row in rows]
        axes.fill_between(
            steps,
            [b[0] for b in bounds],
            [b[1] for b in bounds],
            color=COLOURS[0],
            alpha=0.15,
            lw=0,
        )
        values = [row["eval/success"] for row in rows]
        axes.plot(steps, values, "o-", color=COLOURS[0], ms=4.5, label="held-out, 95% interval")
    if training:
        _line(axes, training, 1, "training, unaided")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _before_after(found: Sequence[Change], title: str) -> Figure | None:
    groups = [change for change in found if change.before and change.after]
    if not groups:
        return None
    figure = Figure(figsize=(6.4, 1.3 + 0.42 * len(groups)), layout="constrained")
    axes = figure.subplots()
    _style(axes, title, is_share=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color="#e1e3e6", lw=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("")
    for row, change in enumerate(groups):
        for share, colour, offset, filled in (
            (change.before, COLOURS[2], -0.14, False),
            (change.after, COLOURS[0], 0.14, True),
        ):
            assert share
            axes.plot(share.bounds, [row + offset] * 2, color=colour, lw=2.2, alpha=0.45)
            axes.plot(
                [share.value],
                [row + offset],
                "o",
                color=colour,
                mfc=colour if filled else "white",
                ms=6,
                label=("now" if filled else "before RL") if row == 0 else None,
            )
    axes.set_yticks(range(len(groups)), [change.group for change in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def _curves(run: Run, title: str, names: Names) -> Figure | None:
    return _grid(run, ((title, names, False),))


def _grid(run: Run, plots: Sequence[tuple[str, Names, bool]]) -> Figure | None:
    """A figure of up to two columns; plots without data are left out."""
    shown = [plot for plot in plots if any(run.series(name) for name, _ in plot[1])]
    if not shown:
        return None
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(
        figsize=(6.4 if columns == 1 else 9.6, 3.6 if rows == 1 else 3.1 * rows),
        layout="constrained",
    )
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    for axes, (title, names, is_share) in zip(every, shown, strict=False):
        _style(axes, title, is_share)
        drawn = [(i, name, label) for i, (name, label) in enumerate(names) if run.series(name)]
        for i, name, label in drawn:
            _line(axes, run.series(name), i, label)
        if len(drawn) > 1:
            axes.legend(frameon=False, fontsize=9)
    return figure


def _line(axes: Axes, points: Sequence[tuple[int, float]], style: int, label: str) -> None:
    colour, dashes = COLOURS[style], DASHES[style]
    marker = "o" if len(points) < SMOOTH_FROM else None
    if len(points) >= SMOOTH_FROM:
        axes.plot(*zip(*points, strict=True), color=colour, lw=0.8, alpha=0.35)
        points = running_mean(points)
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=colour, ls=dashes, lw=1.8, marker=marker, ms=4, label=label)


def _style(axes: Axes, title: str, is_share: bool) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step of RL", fontsize=9, color="#5d6470")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=9, colors="#5d6470", length=0)
    axes.grid(axis="y", color="#e1e3e6", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8bdc4")
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
