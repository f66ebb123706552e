"""Dumps of numbers that weren't finite, for `elpo_jax.replay`.

A dump is a folder: `fault.json` (what, where, which tasks, the config), `micro_batches.npz` (the
update's arrays, or the token rows that were being sampled) and `checkpoints/` (the state before).
`fault.json` is written last, so a dump that has it is whole.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from elpo_jax.checkpoint import Checkpoints, load, parts_of, state_of
from elpo_jax.config import Config, from_dict, to_dict
from elpo_jax.errors import UsageError
from elpo_jax.learner.base import MicroBatch
from elpo_jax.learner.run import NonFiniteUpdateError
from elpo_jax.learner.update import TrainState
from elpo_jax.sampler.engine import NonFiniteSampleError
from elpo_jax.workdir import write_json

FORMAT = "elpo_jax.fault/1"
SAMPLE = "sample"

Labels = Sequence[Sequence[tuple[str, int]]]


@dataclass(frozen=True, eq=False)
class Fault:
    """What is dumped.

    Attributes:
      kind: POLICY or SUPERVISED, of `learner.run`, or SAMPLE.
      step: of the run.
      message: the error's.
      found: numbers that were met; see `NonFiniteUpdateError`.
      where: the place within the step.
      tasks: ids.
      labels: for each micro-batch (task id, rollout ordinal) of its rows.
      micro_batches: the update's; of a SAMPLE only tokens and mask say anything.
      config: the run's.
      vocab_size: the tokenizer's.
    """

    kind: str
    step: int
    message: str
    found: Mapping[str, Any]
    where: Mapping[str, int]
    tasks: Sequence[str]
    labels: Labels
    micro_batches: Sequence[MicroBatch]
    config: Config
    vocab_size: int


def describe(
    error: NonFiniteUpdateError | NonFiniteSampleError, step: int, config: Config, vocab_size: int
) -> Fault:
    """The fault of an update, or of the rollouts whose lanes were broken."""
    if isinstance(error, NonFiniteUpdateError):
        return Fault(
            kind=error.kind,
            step=step,
            message=str(error),
            found=error.found,
            where=error.where,
            tasks=error.tasks,
            labels=error.labels,
            micro_batches=error.micro_batches,
            config=config,
            vocab_size=vocab_size,
        )
    return Fault(
        kind=SAMPLE,
        step=step,
        message=str(error),
        found={},
        where={},
        tasks=sorted({task for task, _ in error.rows}),
        labels=[[label] for label in error.rows],
        micro_batches=[_sampled(tokens, config) for tokens in error.rows.values()],
        config=config,
        vocab_size=vocab_size,
    )


def _sampled(tokens: np.ndarray, config: Config) -> MicroBatch:
    """A micro-batch of one row; only its tokens and mask say anything."""
    length = next(size for size in config.train.length_buckets if size >= len(tokens))
    shape = (config.train.micro_batch_rows, length)
    batch = MicroBatch(np.zeros(shape, np.int32), *(np.zeros(shape, np.float32) for _ in range(5)))
    batch.tokens[0, : len(tokens)] = tokens
    batch.mask[0, 1 : len(tokens)] = 1
    return batch


def write(folder: Path, fault: Fault, state: TrainState) -> None:
    """Writes the dump; one that is there is replaced.

    Raises:
      OSError, RunFault: it can't be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arrays = {
        f"{number:04d}.{name}": array
        for number, batch in enumerate(fault.micro_batches)
        for name, array in batch._asdict().items()
    }
    np.savez(folder / "micro_batches.npz", **arrays)
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(int(state.step), parts_of(state), {})
    document = {
        "format": FORMAT,
        "kind": fault.kind,
        "step": fault.step,
        "update": int(state.step),
        "message": fault.message,
        "found": {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fault.found.items()
        },
        "where": dict(fault.where),
        "tasks": list(fault.tasks),
        "rows": [[{"task": t, "rollout": o} for t, o in rows] for rows in fault.labels],
        "vocab_size": fault.vocab_size,
        "config": to_dict(fault.config),
    }
    write_json(folder / "fault.json", document)


def read(folder: Path) -> Fault:
    """Reads a dump, but for the state.

    Raises:
      UsageError: it isn't one, or isn't whole.
    """
    try:
        document = json.loads((folder / "fault.json").read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        with open(folder / "micro_batches.npz", "rb") as file, np.load(file) as arrays:
            columns = dict(arrays)
        return Fault(
            kind=document["kind"],
            step=document["step"],
            message=document["message"],
            found=document["found"],
            where=document["where"],
            tasks=document["tasks"],
            labels=[[(row["task"], row["rollout"]) for row in rows] for rows in document["rows"]],
            micro_batches=[
                MicroBatch(**{name: columns[f"{i:04d}.{name}"] for name in MicroBatch._fields})
                for i in range(len(columns) // len(MicroBatch._fields))
            ],
            config=from_dict(document["config"]),
            vocab_size=document["vocab_size"],
        )
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
        words = f"{type(error).__name__}: {error}"
        raise UsageError([f"{folder}: expected a dump of a fault, {FORMAT}, got {words}"]) from None


def read_state(folder: Path, like: TrainState) -> TrainState:
    """The state before the fault; `like` gives structure, shapes and shardings."""
    return state_of(load(folder, parts_of(like)).parts)
