"""Writes a run's report: `report.html`, a page for each file of trees, and plots as PNG.

It reads only what the run left in its folder, so it can be made of a run that is going on, ended
or was killed. It needs no accelerator and imports no jax.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elpo_jax.errors import UsageError
from elpo_jax.metrics import TABLE, lookup
from elpo_jax.report.brief import brief, summary
from elpo_jax.report.charts import sparkline
from elpo_jax.report.documents import ENDS, Critical, Episode, criticals, episodes
from elpo_jax.report.failures import (
    Failures,
    Group,
    lost_at,
    moves,
    sort_failures,
)
from elpo_jax.report.faults import faults
from elpo_jax.report.habits import habits, tools
from elpo_jax.report.pages import render
from elpo_jax.report.panels import (
    EPISODES,
    LEARNING,
    LOCALISATION,
    THROUGHPUT,
    UPDATE,
    charts,
    success_chart,
)
from elpo_jax.report.plots import write_plots
from elpo_jax.report.run import Document, Points, Run, TreeFile, read_run, read_trees, tree_files
from elpo_jax.report.run import total as total_counts
from elpo_jax.report.tree_pages import IndexRow, index_page, index_rows, tree_page
from elpo_jax.report.verdict import Change, changes, judge, phases
from elpo_jax.report.words import NOTHING, number, percent
from elpo_jax.workdir import WorkDir, write_atomic

PAGES = 100  # files of trees that get a page, if no other number is asked for
BINS = 5  # of the histogram of t_crit / (K + 1)

# What reading a file of trees may raise that isn't as a run writes it, or is nested too deeply.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
)

Bars = list[tuple[str, str, float, str]]  # label, count, share of the longest bar, address


@dataclass
class _Trees:
    """What was read from the files of trees.

    Attributes:
      files: those with a page.
      left_out: how many have none.
      rows: of the index.
      criticals: (file, critical step) of the training steps' searches.
      searches: those of the training steps: how many, how many that probed an anchor, how many
        that were resolved.
      evaluations: the episodes of the evaluations, by step.
      problems: files that couldn't be read.
    """

    files: list[TreeFile] = field(default_factory=list)
    left_out: int = 0
    rows: list[IndexRow] = field(default_factory=list)
    criticals: list[tuple[TreeFile, Critical]] = field(default_factory=list)
    searches: Counter[str] = field(default_factory=Counter)
    evaluations: dict[int, list[Episode]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write_report(folder: WorkDir, pages: int = PAGES) -> Path:
    """Writes the report, or writes it anew, and returns where it is.

    Args:
      folder: of the run.
      pages: at most that many files of trees get a page, spread evenly over the run; those of
        evaluations always do.

    Raises:
      UsageError: there is no run, or the folder can't be written.
    """
    run = read_run(folder)
    try:
        trees = _write_trees(folder, pages)
        write_plots(run, folder.path / "plots")
        context = _context(run, trees) | {"faults": faults(folder)}
        write_atomic(folder.report, render("report", **context))
    except OSError as error:
        raise UsageError([f"{folder.report}: expected to write it, got: {error}"]) from None
    return folder.report


def _write_trees(folder: WorkDir, pages: int) -> _Trees:
    """Writes the pages of trees and their index; pages of files that are gone are removed."""
    found = _Trees()
    files = tree_files(folder)
    chosen = spread([file for file in files if not file.is_evaluation], pages)
    drawn = [file for file in files if file.is_evaluation or file in chosen]
    found.left_out = len(files) - len(drawn)
    for file, after in zip(drawn, [*drawn[1:], None], strict=False):
        try:
            documents = read_trees(file)
            before = found.files[-1] if found.files else None
            page = tree_page(file, documents, before, after)
            _note(found, file, documents)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            found.problems.append(f"trees/{file.path.name}: {type(error).__name__}: {reason}")
            continue
        write_atomic(file.path.with_suffix(".html"), page)
        found.files.append(file)
    if found.files:
        index = index_page(found.rows[::-1], found.files, found.left_out)
        write_atomic(folder.trees / "index.html", index)
    current = {f"{file.name}.html" for file in found.files} | {"index.html"}
    for page_file in folder.trees.glob("*.html"):
        if page_file.name not in current:
            page_file.unlink()
    return found


def _note(found: _Trees, file: TreeFile, documents: Sequence[Document]) -> None:
    """Adds what a file's trees say; nothing of them if one can't be read."""
    rows = index_rows(file, list(documents))
    if file.is_evaluation:
        seen = [each for i, tree in enumerate(documents) for each in episodes(i, tree)]
        found.evaluations[file.step] = seen
    else:
        named = [each for i, tree in enumerate(documents) for each in criticals(i, tree)]
        found.criticals += [(file, critical) for critical in named]
        searches = [each for tree in documents for each in tree["localizations"]]
        found.searches["all"] += len(searches)
        found.searches["probed"] += sum(bool(each["probes"]) for each in searches)
        found.searches["resolved"] += sum(each["resolved"] for each in searches)
    found.rows += rows


def spread(files: Sequence[TreeFile], count: int) -> list[TreeFile]:
    """At most `count` of the files, evenly spread, with the first and the last."""
    if len(files) <= count:
        return list(files)
    if count < 2:
        return list(files[-1:]) * count
    last = len(files) - 1
    return [files[round(i * last / (count - 1))] for i in range(count)]


def _context(run: Run, trees: _Trees) -> dict[str, Any]:
    verdict, evaluations = judge(run), run.evaluations
    by_kind = changes(run, "kind")
    total = Change("all", verdict.before, verdict.after) if verdict.before else None
    settings = run.settings()
    wrong = _failures(run, trees)
    before, now = _first_and_newest(trees)
    changed_habits = habits(before, now)
    return {
        "run": run,
        "about": _about(run),
        "progress": _progress(run),
        "verdict": verdict,
        "problems": trees.problems,
        "has_trees": bool(trees.files),
        "read": _what_was_read(trees),
        "learning": [chart for chart in (success_chart(run), *charts(run, LEARNING)) if chart],
        "by_kind": by_kind,
        "by_calls": changes(run, "calls"),
        "total": total,
        "endings": _endings(run),
        "episodes": charts(run, EPISODES),
        "update": charts(run, UPDATE),
        "batches": _batches(run),
        "throughput": charts(run, THROUGHPUT),
        "phases": _phases(run),
        "spared": _spared(run),
        "changed": [each for each in settings if each.value != each.default],
        "unchanged": [each for each in settings if each.value == each.default],
        "metrics": _all_metrics(run),
        "evaluated": total_counts(evaluations[-1])[1] if evaluations else 0,
        **_localisation(run, trees),
        **wrong,
        "brief": brief(run, verdict, changed_habits, wrong["failures"]),
        "habits": changed_habits,
        "tools": tools(before, now),
    }


def _first_and_newest(trees: _Trees) -> tuple[list[Episode], list[Episode]]:
    """The saved episodes of the first and of the newest evaluation; the first empty if alone."""
    steps = sorted(trees.evaluations)
    first = trees.evaluations[steps[0]] if len(steps) > 1 else []
    return first, trees.evaluations[steps[-1]] if steps else []


def _what_was_read(trees: _Trees) -> str:
    """Of which training trees the report tells: files without a page aren't read."""
    if not trees.left_out:
        return "all saved trees"
    steps = sum(not file.is_evaluation for file in trees.files)
    return f"the saved trees of the {steps} steps that have a page"


def _failures(run: Run, trees: _Trees) -> dict[str, Any]:
    saved = {file.step: file for file in trees.files if file.is_evaluation}
    context: dict[str, Any] = {
        "failures": None,
        "summary": "",
        "moved": None,
        "newest": None,
        "oldest": None,
        "error_bars": [],
        "lost_bars": [],
        "lost_count": 0,
    }
    if not saved:
        return context
    first, last = min(saved), max(saved)
    found: Failures = sort_failures(trees.evaluations.get(last, []))
    late = [
        (file.name, critical)
        for file, critical in trees.criticals
        if file.step > run.steps - max(1, run.steps // 4)
    ]
    lost = lost_at(late)
    return context | {
        "failures": found,
        "summary": summary(found, lost),
        "newest": saved[last],
        "oldest": saved[first],
        "moved": moves(trees.evaluations[first], trees.evaluations[last]) if first < last else None,
        "error_bars": _bars(
            [(_labelled(group, saved[last]), group.size) for group in found.errors]
        ),
        "lost_bars": _bars(
            [
                (
                    (
                        f"{group.does}{_errors(group.errors)}",
                        f"trees/{group.example[0]}.html"
                        f"#t{group.example[1].tree}n{group.example[1].node}",
                    ),
                    group.size,
                )
                for group in lost
            ]
        ),
        "lost_count": len(late),
    }


def _errors(count: int) -> str:
    return f" ({count} error{'s' if count > 1 else ''})" if count else ""


def _labelled(group: Group, file: TreeFile) -> tuple[str, str]:
    return group.name, f"trees/{file.name}.html#t{group.example.tree}n{group.example.leaf}"


def _bars(rows: Sequence[tuple[tuple[str, str], int]]) -> Bars:
    longest = max((count for _, count in rows), default=1) or 1
    return [(label, str(count), count / longest, link) for (label, link), count in rows]


def _localisation(run: Run, trees: _Trees) -> dict[str, Any]:
    positions = [critical.position for _, critical in trees.criticals]
    bins = [0] * BINS
    for position in positions:
        bins[min(BINS - 1, int(position * BINS - 1e-9))] += 1
    labels = [f"up to {(i + 1) / BINS:.1f}" for i in range(BINS)]
    searches = sum(value for _, value in run.series("bel/searches"))
    prompts = run.whole("train.batch_prompts")
    return {
        "localisation": charts(run, LOCALISATION),
        "position_bars": _bars(
            [((label, ""), count) for label, count in zip(labels, bins, strict=True)]
        )
        if positions
        else [],
        "position_count": len(positions),
        "searched": f"BEL took up about {number(round(searches * prompts))} failed trajectories "
        "to find their first irrecoverable step (search: "
        f"{run.config.get('rollout.search', '?')}).{_probed(trees)}",
    }


def _probed(trees: _Trees) -> str:
    """How many searches the budget allowed: one that comes when it is spent probes nothing."""
    found = trees.searches
    if not found["all"]:
        return ""
    return (
        f" Of {number(found['all'])} such searches in {_what_was_read(trees)}, "
        f"{number(found['probed'])} had budget for a probe and {number(found['resolved'])} were "
        "resolved."
    )


def _endings(run: Run) -> list[tuple[str, str, str]]:
    """How held-out episodes end: (end, share before, share now)."""
    rows = run.evaluations
    if not rows:
        return []

    def shown(row: dict[str, Any], end: str) -> str:
        value = row.get(f"eval/end_{end}")
        return NOTHING if value is None else percent(value)

    return [
        (words, shown(rows[0], end) if len(rows) > 1 else NOTHING, shown(rows[-1], end))
        for end, words in ENDS.items()
        if any(row.get(f"eval/end_{end}") for row in (rows[0], rows[-1]))
    ]


def _about(run: Run) -> str:
    config = run.config
    suite = " ".join(str(config[key]) for key in ("suite.name", "suite.length") if key in config)
    return " · ".join(
        [
            run.name,
            f"{config.get('algorithm', '?')} on {suite or '?'}",
            f"seed {config.get('seed', '?')}",
        ]
    )


def _progress(run: Run) -> str:
    planned = run.config.get("train.steps", "?")
    if run.written is None:
        return f"No row of metrics yet; {planned} steps are planned."
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written))
    return f"{run.steps} of {planned} steps are done; the last row was written on {when}."


def _batches(run: Run) -> str:
    prompts, mini = run.whole("train.batch_prompts"), run.whole("train.mini_batch_prompts")
    if prompts <= 0 or mini <= 0:
        return ""
    updates = -(-prompts // mini) * run.whole("train.epochs", 1)
    return f"A step rolls out {prompts} prompts and makes {updates} updates of {mini} prompts."


def _phases(run: Run) -> list[tuple[str, str, float]]:
    found = phases(run)
    whole = sum(found.values())
    return [(label, _seconds(value), value / whole) for label, value in found.items()]


def _seconds(value: float) -> str:
    return f"{number(round(value, 1))} s" if value < 600 else f"{number(round(value / 60, 1))} min"


def _spared(run: Run) -> str:
    sums = {
        name: sum(value for _, value in run.series(f"sampler/{name}_tokens"))
        for name in ("saved", "prefill", "decode")
    }
    if not sums["saved"]:
        return ""
    without = sums["saved"] + sums["prefill"]
    return (
        f"Forks of cached prefixes spared {number(sums['saved'])} of {number(without)} tokens of "
        f"prefill ({percent(sums['saved'] / without, 0)}); {number(sums['decode'])} tokens were "
        "drawn."
    )


def _all_metrics(run: Run) -> list[dict[str, Any]]:
    """Every metric of the table in its order, families by their members in the run."""
    names = {name for row in run.rows for name in row if name != "step"}
    known: dict[str, list[str]] = {metric.name: [] for metric in TABLE}
    unknown = []
    for name in sorted(names):
        try:
            known[lookup(name).name].append(name)
        except ValueError:
            unknown.append(name)
    rows = []
    for metric in TABLE:
        rows += [
            _metric_row(name, metric.description, run.series(name))
            for name in known[metric.name] or [metric.name]
        ]
    return rows + [_metric_row(name, "of another version", run.series(name)) for name in unknown]


def _metric_row(name: str, description: str, points: Points) -> dict[str, Any]:
    values = [value for _, value in points]
    return {
        "name": name,
        "description": description,
        "points": points,
        "low": min(values, default=None),
        "high": max(values, default=None),
        "spark": sparkline(points),
    }
