"""The loop around `trainer.Trainer`: cold start, steps, evaluation, checkpoints, resume."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from elpo_jax import faults
from elpo_jax.checkpoint import Checkpoints, SaveFault, newest_step, parts_of, state_of
from elpo_jax.cold_start import cold_start
from elpo_jax.cold_start import notes as cold_start_notes
from elpo_jax.components import Components
from elpo_jax.config import Config, differences, from_dict, get, to_dict
from elpo_jax.data_order import TrainingTasks
from elpo_jax.errors import RunFault, ToolFault, UsageError, memory_problem, os_problem
from elpo_jax.interrupt import Interrupted, Interrupts
from elpo_jax.learner.run import NonFiniteUpdateError
from elpo_jax.learner.update import TrainState
from elpo_jax.metrics import MetricsWriter, held_out_counts, read
from elpo_jax.policy.export import export_policy
from elpo_jax.policy.origin import PATHS, changed_files, weights_of
from elpo_jax.progress import Display, summary
from elpo_jax.report.report import write_report
from elpo_jax.report.words import short
from elpo_jax.rollout.tree import Tree
from elpo_jax.sampler.engine import NonFiniteSampleError
from elpo_jax.tasks.base import TRAIN
from elpo_jax.trainer import Metrics, Trainer
from elpo_jax.workdir import WorkDir, write_json


def train(
    components: Components, folder: WorkDir, display: Display, interrupts: Interrupts
) -> None:
    """Trains to the end, or from the newest checkpoint in `folder` to the end.

    Raises:
      UsageError: the folder can't be used, or holds something else than this run.
      RunFault: a disk, a file, a tool or a number broke; what was saved before stands.
      Interrupted: after the state was saved.
    """
    notes = [*components.notes, *components.start_sandboxes()]
    for line in notes:
        display.note(line)
    try:
        # First, so that nothing is written to a foreign folder.
        check_claim(components.config, folder)
        if newest_step(folder.checkpoints) is None:
            of_cold_start = cold_start_notes(components)
            for line in of_cold_start:
                display.note(line)
            notes += of_cold_start
        with folder.locked():
            _claim(components, folder)
            if notes and not folder.notes.exists():  # for the report
                write_json(folder.notes, notes)
            keep = components.config.checkpoint.keep
            with Checkpoints(folder.checkpoints, keep) as checkpoints:
                checkpoints.drop_broken(folder.faults, display.note)
                trainer = Trainer(components, display.note)
                _Run(trainer, folder, display, interrupts, checkpoints).go()
    except (OSError, SaveFault) as error:
        what = os_problem(error, folder.path) if isinstance(error, OSError) else str(error)
        stands = _standing(folder)
        raise RunFault(
            [f"{what}; {stands}; once that is mended the same command goes on"]
        ) from error
    except (MemoryError, RuntimeError) as error:
        _raise_if_memory(error, folder, "")
        raise
    except ToolFault as error:
        line = f"{folder.path}: {error}; {_standing(folder)}"
        raise RunFault([f"{line}; once that is mended the same command goes on"]) from error
    except Interrupted:
        display.stop()
        display.note(f"{folder.path}: stopped, {_standing(folder)}; the same command goes on")
        raise


def _standing(folder: WorkDir) -> str:
    """What a run that ends now can go on from."""
    try:
        step = newest_step(folder.checkpoints)
        updates = max((newest_step(each) or 0 for each in folder.cold_start.glob("*")), default=0)
    except OSError:
        return "what is saved can't be read"
    if step is not None:
        return f"saved step {step}"
    return f"saved update {updates} of the cold start" if updates else "no checkpoint yet"


def _raise_if_memory(error: BaseException, folder: WorkDir, place: str) -> None:
    """Raises RunFault where memory is out; `place` is what was going on, with ': ', or ''."""
    problem = memory_problem(error)
    if problem is not None:
        less = f"{problem} (settings of a run that has saved something need another --workdir)"
        raise RunFault([f"{folder.path}: {place}{less}; {_standing(folder)}"]) from error


def _claim(components: Components, folder: WorkDir) -> None:
    """Writes config.json, or compares it with that of a run that saved something."""
    check_claim(components.config, folder)
    if not folder.config.exists() or newest_step(folder.checkpoints) is None:
        folder.notes.unlink(missing_ok=True)
        write_json(folder.config, to_dict(components.config))


def _is_unstarted(folder: WorkDir) -> bool:
    """Whether the run there saved nothing, so that no setting of it is worth keeping."""
    saved = [folder.checkpoints, *folder.cold_start.glob("*")]
    has_rows = folder.metrics.exists() and folder.metrics.stat().st_size > 0
    return not has_rows and all(newest_step(each) is None for each in saved)


def check_claim(config: Config, folder: WorkDir) -> None:
    """Raises UsageError unless the folder is that of this config's run, or nobody's."""
    folder.refuse_foreign()
    if not folder.config.exists():
        return
    other = "give another --workdir for a new run"
    try:
        there = json.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        words = f"expected a run's settings, got {type(error).__name__}: {error}"
        raise UsageError([f"{folder.config}: {words}; put the file back, or {other}"]) from None
    if not isinstance(there, dict) or not {"algorithm", "train"} <= there.keys():
        raise UsageError(
            [f"{folder.config}: expected a run's settings, got something else; {other}"]
        )
    try:
        theirs = from_dict(there)
    except UsageError as error:
        what = "written by another version, or by hand; go on with that version, or"
        lines = [f"{folder.config}: {line}; {what} {other}" for line in error.problems]
        raise UsageError(lines) from None
    lines = [
        f"{folder.config}: {key}: the run there has {old!r}, got {new!r}; "
        f"give the old value to go on with it, or {other.replace('give ', '')}"
        for key, (new, old) in differences(config, theirs).items()
        # A cold start under way is found by content, checkpoints are compared with that later.
        if not (key in PATHS and new and old)
    ]
    if lines and not _is_unstarted(folder):
        raise UsageError(lines)


class _Run:
    """One process's share of a run.

    The order of writing makes every kill harmless: a step's trees and its row of metrics, then the
    checkpoint. What lies beyond the newest checkpoint is cut when the run is taken up again.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: WorkDir,
        display: Display,
        interrupts: Interrupts,
        checkpoints: Checkpoints,
    ):
        self.trainer = trainer
        self.config = trainer.config
        components = trainer.components
        self.tasks = TrainingTasks(components.suite, components.indices[TRAIN], self.config.seed)
        self.folder = folder
        self.display = display
        self.interrupts = interrupts
        self.checkpoints = checkpoints
        self.saved: int | None = checkpoints.latest_step()
        self.order = self.tasks.state()  # after the last whole step
        self.weights = ""  # of the policy's checkpoint, their fingerprint when the run began

    def go(self) -> None:
        """From where the folder stands to the last step."""
        begun = self.saved
        state = restored = None
        if begun is not None:
            # A run that is done too: its figures are of these files.
            metadata = self.checkpoints.restore({}).metadata
            self._check_policy(metadata)
            self._check_files(metadata["data_files"])
        if begun is not None and begun < self.config.train.steps:
            self.display.note(f"{self.folder.path}: going on after step {begun}")
            restored = self._restore()  # before anything is cut
        self._cut_trees(begun)
        self._prune_evaluations()
        with MetricsWriter(self.folder.metrics, self.folder.tensorboard, begun) as metrics:
            if metrics.last_step != begun:
                lost = f"its rows end with step {metrics.last_step}, checkpoint {begun} is used"
                self.display.note(f"warning: {self.folder.metrics}: {lost}")
            if begun is None:
                state, cold_start_metrics = self._begin()
                state = self._warm_up(state)
                metrics.write(0, cold_start_metrics | self._evaluate(state, 0))
                self._save(state, 0)
                self._remove_cold_start()
                state = self._steps(state, 0, metrics)
            elif restored is not None:
                self._remove_cold_start()
                state = self._steps(self._warm_up(restored), begun, metrics)
        self._prune_evaluations()
        self._export(state)
        self._show_summary()
        self._report()

    def _begin(self) -> tuple[TrainState, Metrics]:
        """The state that RL begins with, and the metrics of the cold start's last update."""
        steps = self.config.sft.steps

        def on_step(done: int, metrics: Mapping[str, float]) -> None:
            self.interrupts.check()
            self.display.step(done, metrics)

        self.display.start("cold start", steps, print_every=max(1, steps // 10))
        with self._dumping("cold_start", None, None):
            params, metrics = cold_start(
                self.trainer.components, on_step, self.folder.cold_start, self.display.note
            )
        self.display.stop()
        self.weights = weights_of(self.config.policy)
        return self.trainer.learner.init(params), metrics

    def _remove_cold_start(self) -> None:
        """Removes what a cache that can't be written left of it, now that a checkpoint has it."""
        if self.folder.cold_start.exists():
            self.checkpoints.wait()
            shutil.rmtree(self.folder.cold_start, ignore_errors=True)

    def _restore(self) -> TrainState:
        shapes = self.trainer.learner.shapes()
        _, parts, metadata = self.checkpoints.restore(parts_of(shapes))
        self._compare_tiers(metadata["sandbox_tier"])
        self.tasks.restore(metadata["data_order"])
        self.order = self.tasks.state()
        return state_of(parts)

    def _check_files(self, digests: Mapping[str, str]) -> None:
        """Raises UsageError unless the data files are those that the run began with."""
        ours = self.trainer.components.data_digests
        lines = [
            f"{key}: {get(self.config, key)} is not the file that the run in {self.folder.path} "
            "began with; put that back to go on, or give another --workdir for a new run"
            for key in sorted(ours.keys() | digests.keys())
            if ours.get(key) != digests.get(key)
        ]
        if lines:
            raise UsageError(lines)

    def _compare_tiers(self, before: str | None) -> None:
        tier = self.trainer.components.sandboxes.start()
        if tier != before:
            self.display.note(
                f"WARNING: the policy's code ran in sandbox tier {before} so far, now in {tier}; "
                "what it prints may differ"
            )

    def _check_policy(self, metadata: Mapping[str, Any]) -> None:
        """Takes up what the policy came from; config.json gets the places where that is now.

        Raises:
          UsageError: tokenizer, template, config.json or, elsewhere, weights are others.
        """
        policy = self.config.policy
        began = f"is not what the run in {self.folder.path} began with; put it back to go on, or"
        lines = [
            f"{file} {began} give another --workdir for a new run"
            for file in changed_files(
                policy, self.trainer.components.policy_digests, metadata["policy_files"]
            )
        ]
        self.weights = metadata["policy_weights"]
        there = from_dict(json.loads(self.folder.config.read_text(encoding="utf-8")))
        moved = differences(self.config, there)
        if not lines and "policy.checkpoint" in moved and weights_of(policy) != self.weights:
            lines = [
                f"policy.checkpoint: the weights in {policy.checkpoint} are not those that the run "
                f"in {self.folder.path} began with; give the folder of those, or another --workdir "
                "for a new run"
            ]
        if lines:
            raise UsageError(lines)
        if moved:
            write_json(self.folder.config, to_dict(self.config))

    def _warm_up(self, state: TrainState) -> TrainState:
        self.interrupts.check()
        self.display.note("compiling the sampler and the learner")
        with self._dumping("warm_up", self.saved or 0, state):
            state = self.trainer.warm_up(state)
        self.interrupts.check()
        return state

    def _steps(self, state: TrainState, done: int, metrics: MetricsWriter) -> TrainState:
        """Steps `done + 1` to the last one. Returns the state after it."""
        config = self.config
        self.display.start("training", config.train.steps, done)
        written = time.monotonic()
        for step in range(done + 1, config.train.steps + 1):
            self.checkpoints.check()
            state, trees, values = self._step(state, step)
            if step == config.train.steps or is_due(step, config.eval.every):
                values |= self._evaluate(state, step)
            self.trainer.save_trees(self.folder, step, trees)
            written, before = time.monotonic(), written
            metrics.write(step, values | {"time/step": written - before})
            self.order = self.tasks.state()
            if step == config.train.steps or is_due(step, config.checkpoint.every):
                self._save(state, step)
            self.display.step(step, values)
        self.display.stop()
        return state

    def _step(self, state: TrainState, step: int) -> tuple[TrainState, list[Tree], Metrics]:
        """Rollouts and updates of a step.

        Raises:
          Interrupted, ToolFault: with `state`, that of the last whole step, saved.
        """
        try:
            self.interrupts.check()
            batch = self.tasks.take(self.config.train.batch_prompts)
            with self._dumping("step", step, state):
                return self.trainer.step(state, step, batch, self.interrupts)
        except (Interrupted, ToolFault):
            self._save(state, step - 1)
            self.checkpoints.wait()
            raise

    def _evaluate(self, state: TrainState, step: int) -> Metrics:
        with self._dumping("evaluation", step, state):
            trees, values = self.trainer.evaluate(state)
        self.trainer.save_evaluation(self.folder, step, trees)
        tasks = round(values["eval/tasks"])
        self.display.note(f"step {step}: held-out success {values['eval/success']:.1%} of {tasks}")
        return values

    def _save(self, state: TrainState, step: int) -> None:
        if self.saved is None or step > self.saved:
            metadata = {
                "seed": self.config.seed,
                "data_order": self.order,
                "data_files": self.trainer.components.data_digests,
                "policy_files": self.trainer.components.policy_digests,
                "policy_weights": self.weights,
                "sandbox_tier": self.trainer.components.sandboxes.start(),
            }
            self._prune_evaluations()
            self.checkpoints.save(step, parts_of(state), metadata)
            self.saved = step

    def _cut_trees(self, last_step: int | None) -> None:
        """Removes what was written after the checkpoint that the run goes on from."""
        for _, step, file in self.folder.saved_trees():
            if last_step is None or step > last_step:
                file.unlink()

    def _prune_evaluations(self) -> None:
        """Keeps the first evaluation's trees, and of those up to a checkpoint the newest's."""
        last_step = self.checkpoints.latest_step()
        if last_step is not None:
            saved = self.folder.saved_trees()
            covered = [file for kind, step, file in saved if kind == "eval" and step <= last_step]
            for file in covered[1:-1]:
                file.unlink()

    @contextmanager
    def _dumping(self, phase: str, step: int | None, state: TrainState | None) -> Iterator[None]:
        """Turns a number that isn't finite into a dump `faults/<phase>_<step>` and a RunFault.

        Memory that is out becomes a RunFault too.

        Args:
          phase: what is going on.
          step: of RL, if any.
          state: before it; unused by an update, which knows its own.
        """
        place = phase.replace("_", " ") if step is None else f"{phase.replace('_', ' ')} {step}"
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            self._settle()
            _raise_if_memory(error, self.folder, f"{place}: ")
            raise
        except (NonFiniteSampleError, NonFiniteUpdateError) as error:
            dump = self.folder.faults / (phase if step is None else f"{phase}_{step:06d}")
            components = self.trainer.components
            fault = faults.describe(
                error, step or 0, self.config, components.chat.tokenizer.vocab_size
            )
            before = error.state if isinstance(error, NonFiniteUpdateError) else state
            assert before is not None
            told = f"`python -m elpo_jax.replay --dump {dump}` shows where it arises"
            try:
                faults.write(dump, fault, before)
            except (OSError, RunFault) as problem:
                told = f"the dump {dump} can't be written: {problem}"
            tasks = _tasks_of(error)
            self._settle()
            line = f"{self.folder.path}: {place}: {error}{tasks}; {_standing(self.folder)}; {told}"
            raise RunFault([line]) from error

    def _settle(self) -> None:
        """Lets the save under way end, whatever becomes of it, before it is told what stands."""
        with suppress(SaveFault, MemoryError, RuntimeError):
            self.checkpoints.wait()

    def _export(self, state: TrainState | None) -> None:
        """Writes the policy for others, unless that is done.

        Args:
          state: after the last step; None where an earlier process made it.
        """
        if not self.config.train.export or self.folder.export.exists():
            return
        components = self.trainer.components
        if state is None:
            shapes = {"params": components.param_shapes}
            params = self.checkpoints.restore(shapes).parts["params"]
        else:
            self.checkpoints.wait()  # what stands is on the disk, whatever becomes of this
            params = state.params
        policy = self.config.policy
        for line in export_policy(self.folder.export, params, components.model, policy):
            self.display.note(line)
        self.display.note(f"the policy for others: {self.folder.export}")

    def _show_summary(self) -> None:
        rows = [row for row in read(self.folder.metrics) if "eval/success" in row]
        if not rows:
            return
        before, after = (held_out_counts(row) for row in (rows[0], rows[-1]))
        steps = rows[-1]["step"]
        self.display.show(summary(before, after, f"Held-out success, {steps} steps of RL"))
        self.display.note(f"metrics, checkpoints and trees: {self.folder.path}")

    def _report(self) -> None:
        """Writes the report; where that fails the run stands all the same."""
        try:
            self.display.note(f"report: {write_report(self.folder)}")
        except Exception as error:
            # Whatever it is, the run is done and saved: a mistake in the report mustn't end it with
            # a traceback. The command below shows that.
            what = str(error) if isinstance(error, UsageError) else repr(error)
            again = f"python -m elpo_jax.report --workdir {self.folder.path}"
            self.display.note(f"no report: {short(what, 300)}; once that is mended: {again}")


def _tasks_of(error: NonFiniteSampleError | NonFiniteUpdateError) -> str:
    """' (tasks train/3, train/9 and 4 more)', or nothing where the message has them."""
    tasks = error.tasks if isinstance(error, NonFiniteUpdateError) else []
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return f" (tasks {', '.join(tasks[:3])}{more})" if tasks else ""


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens at this one; never for 0."""
    return every > 0 and step % every == 0
