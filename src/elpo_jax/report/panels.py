"""Which metrics the report draws, and in which charts."""

from typing import NamedTuple

from elpo_jax.metrics import wilson
from elpo_jax.report.charts import Chart, Line, line_chart
from elpo_jax.report.run import Run, total


class Panel(NamedTuple):
    """A chart to be made of metrics.

    Attributes:
      title: of the chart.
      lines: (metric, label).
      unit: 'number' or 'percent'.
      note: a sentence on how to read it.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "number"
    note: str = ""


LEARNING = (
    Panel(
        "Reward",
        (("eval/reward", "held-out"), ("reward/mean", "training, with branches")),
        note="Mean shaped reward. Branches start where others failed, so training may lie lower.",
    ),
    Panel(
        "Response length, tokens",
        (
            ("eval/response_length", "held-out"),
            ("response_length/mean", "training, with branches"),
        ),
    ),
    Panel(
        "Tool calls a trajectory",
        (("eval/calls", "held-out"), ("episode/calls", "training, with branches")),
    ),
)
EPISODES = (
    Panel(
        "Tool errors",
        (("eval/error_share", "held-out"), ("episode/error_share", "training, with branches")),
        "percent",
        "Share of tool outputs that are errors.",
    ),
    Panel(
        "How training episodes end",
        (
            ("episode/end_answer", "answer"),
            ("episode/end_length", "out of tokens"),
            ("episode/end_calls", "out of calls"),
            ("episode/end_turns", "out of turns"),
            ("episode/end_observation", "output too long"),
            ("episode/end_eos", "call without the end of turn"),
        ),
        "percent",
    ),
)
UPDATE = (
    Panel(
        "Clipped at the lower bound",
        (
            ("policy/clip_frac_low_plain", "outside ELC suffixes"),
            ("policy/clip_frac_low_elc", "in ELC suffixes (wider bound)"),
        ),
        "percent",
        "Of the policy tokens there, in trajectories with an advantage. ELC lets tokens after the "
        "critical step fall further.",
    ),
    Panel(
        "Clipped at the upper bound",
        (
            ("policy/clip_frac_high_plain", "outside ELC suffixes"),
            ("policy/clip_frac_high_elc", "in ELC suffixes"),
            ("policy/clip_frac_high", "all"),
        ),
        "percent",
        "Of the policy tokens there, in trajectories with an advantage. ELC doesn't move this "
        "bound.",
    ),
    Panel(
        "KL from the policy before the step",
        (("policy/kl_old", "k3 estimate, nats"),),
        note="How far one step's updates move the policy.",
    ),
    Panel("Entropy of policy tokens, nats", (("policy/entropy", "before the updates"),)),
    Panel("Gradient norm", (("policy/grad_norm", "before clipping"),)),
    Panel(
        "Trajectories with an advantage",
        (("policy/trained_rows_frac", "other than 0"),),
        "percent",
        "The others, of tasks all solved or all failed, teach nothing.",
    ),
    Panel("Largest importance ratio", (("policy/ratio_max", "of a token"),)),
    Panel("Loss", (("policy/loss", "mean over updates"),)),
    Panel(
        "Sampler against learner, KL",
        (("policy/sampler_kl", "nats a token"),),
        note="Above rounding, the tokens weren't sampled from the policy that is trained.",
    ),
    Panel("Learning rate", (("optimizer/learning_rate", "after the step"),)),
)
LOCALISATION = (
    Panel(
        "Searches resolved",
        (("bel/localized_frac", "within the budget"),),
        "percent",
        "The last search of a budget often stays open.",
    ),
    Panel(
        "Where the critical step lies",
        (("bel/relative_position", "t_crit / (K + 1)"),),
        note="1 is the answer, after all K tool calls.",
    ),
    Panel(
        "Effort of a search",
        (("bel/probes", "anchors probed"), ("bel/suffixes", "suffixes sampled")),
    ),
    Panel(
        "Searches a tree",
        (("bel/searches", "searches"),),
        note="Fewer as fewer rollouts fail.",
    ),
)
THROUGHPUT = (
    Panel(
        "Seconds by phase",
        (
            ("time/rollout", "rollout"),
            ("time/update", "update"),
            ("time/eval", "evaluation"),
        ),
    ),
    Panel(
        "Tokens a second",
        (
            ("sampler/tokens_per_s", "drawn, in rollouts"),
            ("update/tokens_per_s", "trajectories', in updates"),
        ),
    ),
    Panel(
        "Lane use",
        (("sampler/lane_use", "lane-steps that drew a token"),),
        "percent",
    ),
    Panel(
        "Tokens a step",
        (
            ("sampler/decode_tokens", "drawn"),
            ("sampler/prefill_tokens", "prefilled"),
            ("sampler/saved_tokens", "spared by forks"),
        ),
    ),
    Panel(
        "Cache rows",
        (("sampler/forks", "copied for branches"), ("sampler/swaps", "swapped to the host")),
    ),
    Panel("Programs compiled", (("sampler/compiles", "since the process started"),)),
)


def charts(run: Run, panels: tuple[Panel, ...]) -> list[Chart]:
    """The charts of those panels of which the run has anything to show."""
    made = []
    for title, names, unit, note in panels:
        lines = [
            Line(label, run.series(name), smooth=not held_out(name), marked=held_out(name))
            for name, label in names
        ]
        made.append(line_chart(title, lines, steps=_axis(run), unit=unit, note=note))
    return [chart for chart in made if chart]


def success_chart(run: Run) -> Chart | None:
    """Success on held-out tasks with its interval, and on training tasks."""
    rows = run.evaluations
    band = [(row["step"], *wilson(*total(row))) for row in rows if total(row)[1]]
    lines = [
        Line("held-out, with 95% interval", run.series("eval/success"), band, marked=True),
        Line("training, unaided", run.series("success/unaided"), smooth=True),
        Line("training, with branches", run.series("success/mean"), smooth=True),
    ]
    return line_chart(
        "Success",
        lines,
        steps=_axis(run),
        unit="percent",
        note="Held-out: the same tasks each time. Unaided: each task's first rollouts, asked for "
        "before any outcome is known; later ones depend on what came before.",
    )


def _axis(run: Run) -> tuple[int, int]:
    """All charts of a run have the same steps below them."""
    return 0, max(1, run.steps)


def held_out(name: str) -> bool:
    """Whether a metric is of an evaluation, which few steps have."""
    return name.startswith("eval/") or name == "time/eval"
