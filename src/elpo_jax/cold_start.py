"""The cold start: fine-tuning on the suite's demonstrations or a file's conversations, cached by
what it depends on.

Deliberately short where RL is to have something to do: its length is `sft.steps`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elpo_jax.checkpoint import Checkpoints, load, newest_step, parts_of, state_of
from elpo_jax.components import Components
from elpo_jax.config import Config, to_dict
from elpo_jax.data_order import shuffled
from elpo_jax.errors import RunFault, UsageError, os_problem
from elpo_jax.interrupt import Interrupted
from elpo_jax.learner.optimizer import make_optimizer
from elpo_jax.learner.run import NonFiniteUpdateError
from elpo_jax.learner.sft import SupervisedLearner, sft_rows
from elpo_jax.learner.update import TrainState
from elpo_jax.policy.chat_files import chat_files
from elpo_jax.policy.checkpoint_folder import fingerprint
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import batch_sharding, param_shardings
from elpo_jax.tasks.base import TRAIN, Task
from elpo_jax.tasks.conversations import KEY
from elpo_jax.tasks.files import KEYS
from elpo_jax.workdir import cache_entry, cache_root

Params = Any
Metrics = dict[str, float]
Demonstration = tuple[np.ndarray, np.ndarray]  # tokens [T], and which are the policy's [T]
OnStep = Callable[[int, Mapping[str, float]], None]

# Of an endless split, demonstrations come from training tasks that no RL step gets to.
FIRST_DEMONSTRATION = 1 << 30

# How often the state on the way is saved.
_SAVES = 10

# Demonstrations that settings are judged by before the first update: a quarter of a second's.
_LOOKED_AT = 512

# Code that decides what a cold start comes to.
_SOURCES = (
    "cold_start.py",
    "components.py",
    "data_order.py",
    "learner",
    "policy",
    "tasks",
    "tools",
)
_PACKAGES = (
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "jinja2",
    "numpy",
    "optax",
    "sentencepiece",
    "tokenizers",
    "transformers",
)


def cache_folder(components: Components) -> Path:
    """Where this cold start's parameters are kept, by the hash of what they depend on.

    That is the settings it reads, the source and data files behind it, what the policy's checkpoint
    holds, the versions of the packages that decide on numbers and ids, and the kind and number of
    devices.
    """
    config = to_dict(components.config)
    root = Path(__file__).parent
    files = sorted(file for name in _SOURCES for file in _files(root / name))
    files += chat_files(components.config.policy)
    settings = {name: config[name] for name in ("seed", "suite", "policy", "mesh", "sft")}
    if components.config.policy.checkpoint:
        settings["policy"]["checkpoint"] = _fingerprint(components.config.policy.checkpoint)
    del settings["sft"]["cache_dir"]
    settings["suite"]["corpus"] = components.corpus.digest if components.corpus else ""
    for name in ("micro_batch_rows", "length_buckets", "logprob_chunk"):
        settings[name] = config["train"][name]
    # A file counts by its content, and its suffix, which decides how it is read; not by its path.
    suffix = Path(settings["sft"].pop("data")).suffix
    if components.conversations:
        settings["conversations"] = [suffix, components.conversations.digest]
    elif TRAIN in components.files.digests:
        suffix = Path(config["data"]["train"]).suffix
        settings["data"] = [config["data"]["format"], suffix, components.files.digests[TRAIN]]
        settings["max_length"] = config["episode"]["max_length"]  # decides which tasks fit
    depends_on = {
        "settings": settings,
        "sources": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        "packages": {name: version(name) for name in _PACKAGES},
        "devices": [(device.platform, device.device_kind) for device in jax.devices()],
    }
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:24]
    configured = components.config.sft.cache_dir
    return (Path(configured) if configured else cache_root()) / "cold_start" / name


def cold_start(
    components: Components, on_step: OnStep, partial: Path, warn: Callable[[str], None]
) -> tuple[Params, Metrics]:
    """The parameters that RL begins with: trained on demonstrations, or read from the cache.

    Returns:
      The parameters, and the metrics of the last update (under 'sft/').

    Args:
      components: of the run.
      on_step: called with the number of updates made and their metrics; where it raises
        `Interrupted` the state is saved first.
      partial: the run's own folder for the state on the way, removed once the cache has what it
        came to.
      warn: told, in a line, of a cache that can't be read or written, and of a state on the way
        that is broken: all is made anew then.

    Raises:
      NonFiniteUpdateError: a loss or gradient wasn't finite.
      RunFault: the state on the way can't be written.
    """
    if not components.config.sft.steps:
        return components.init_params(), {}
    folder = cache_folder(components)
    if folder.exists():
        try:
            cached = load(folder, {"params": components.param_shapes})
            shutil.rmtree(partial, ignore_errors=True)
            return cached.parts["params"], cached.metadata
        except RunFault as fault:
            warn(f"warning: {fault}; the cold start is made anew")
            shutil.rmtree(folder, ignore_errors=True)
    params, metrics = _train(components, on_step, partial / folder.name, warn)
    try:
        _store(folder, params, metrics)
    except (OSError, RunFault) as error:
        words = os_problem(error) if isinstance(error, OSError) else str(error)
        warn(f"warning: the cold start isn't cached: {words}")
    else:
        shutil.rmtree(partial, ignore_errors=True)
    return params, metrics


def notes(components: Components) -> list[str]:
    """Lines for the user on the file that the cold start learns from, if it is one."""
    conversations, config = components.conversations, components.config
    if conversations is None:
        return []
    epochs = config.sft.steps * config.sft.batch / len(conversations.pairs)
    lines = [
        *conversations.notes,
        f"{KEY}: sft.steps={config.sft.steps} of sft.batch={config.sft.batch} are {epochs:.2f} "
        "epochs",
    ]
    tools = sorted(tool.name for tool in components.suite.tools)
    if list(conversations.tools) != tools:
        there = ", ".join(conversations.tools) or "none"
        lines.append(
            f"warning: {KEY}: its tools are {there}, those of suite {config.suite.name} are "
            f"{', '.join(tools)}"
        )
    return lines


def make_supervised_learner(config: Config, model: Decoder, mesh: Mesh) -> SupervisedLearner:
    """The learner of a cold start."""
    return SupervisedLearner(
        model,
        make_optimizer(config.sft.optimizer, config.sft.steps),
        config.train,
        param_shardings(model, mesh),
        batch_sharding(mesh),
    )


def _train(
    components: Components, on_step: OnStep, partial: Path, warn: Callable[[str], None]
) -> tuple[Params, Metrics]:
    config = components.config
    steps, batch = config.sft.steps, config.sft.batch
    learner = make_supervised_learner(config, components.model, components.mesh)
    demonstration = demonstrations(components)
    done, state, metrics = _taken_up(partial, learner, warn) or (
        0,
        learner.init(components.init_params()),
        {},
    )
    with Checkpoints(partial, keep=1) as checkpoints:
        for step in range(done + 1, steps + 1):
            first = (step - 1) * batch
            rows = sft_rows([demonstration(i) for i in range(first, first + batch)])
            try:
                state, metrics = learner.update(state, rows)
            except NonFiniteUpdateError as error:
                numbers = [[first + row for row in rows] for rows in error.rows]
                error.labels = [[(f"demonstration {n}", 0) for n in rows] for rows in numbers]
                error.tasks = [name for rows in error.labels for name, _ in rows]
                raise
            is_saved = step % max(1, steps // _SAVES) == 0
            if is_saved:
                checkpoints.save(step, parts_of(state), metrics)
            try:
                on_step(step, metrics)
            except Interrupted:
                if not is_saved:
                    checkpoints.save(step, parts_of(state), metrics)
                checkpoints.wait()
                raise
    return state.params, {name: x for name, x in metrics.items() if name.startswith("sft/")}


def _taken_up(
    partial: Path, learner: SupervisedLearner, warn: Callable[[str], None]
) -> tuple[int, TrainState, Metrics] | None:
    """Updates made, the state after them and the last one's metrics, as saved; None: nothing is.

    A broken state is removed: the cold start costs minutes and its updates are the same again.
    """
    if not newest_step(partial):
        return None
    try:
        done, parts, metrics = load(partial, parts_of(learner.shapes()))
    except RunFault as fault:
        warn(f"warning: {fault}; the cold start is made anew")
        shutil.rmtree(partial)
        return None
    return done, state_of(parts), metrics


def demonstrations(components: Components) -> Callable[[int], Demonstration]:
    """The cold start's demonstrations by number.

    A file's conversations come in a new order each epoch. Without a file: those of an endless split
    are each of another task; of a finite one, the tasks that are used and have a solver come in a
    new order each epoch, as far as their demonstrations fit an episode.

    Raises:
      UsageError: the file or a finite split has none; or one of an endless split is longer than an
        episode may be. Here the first are looked at, the function looks at each.
    """
    limit = components.config.episode.max_length
    indices = components.indices[TRAIN]
    if components.conversations:
        return _in_epochs(components.conversations.pairs, components.config.seed)
    if indices is None:
        _check_first(components)
        return lambda number: _checked(components, FIRST_DEMONSTRATION + number)
    tasks = (components.suite.task(TRAIN, index) for index in indices)
    pairs = [_demonstration(components, task) for task in tasks if task.calls is not None]
    found = [pair for pair in pairs if len(pair[0]) <= limit]
    if not found:
        raise UsageError(
            [
                f"sft.steps: expected 0, since no question of {KEYS[TRAIN]} has a worked solution "
                f"that checks out and fits episode.max_length={limit}, got "
                f"{components.config.sft.steps}"
            ]
        )
    return _in_epochs(found, components.config.seed)


def _in_epochs(found: Sequence[Demonstration], seed: int) -> Callable[[int], Demonstration]:
    """Demonstrations by number: all of them in a new order of the seed, again and again."""
    order = shuffled(range(len(found)), seed)
    return lambda number: found[order[number]]


def _check_first(components: Components) -> None:
    """Raises UsageError where one of the first of an endless split is too long, for the longest."""
    limit = components.config.episode.max_length
    lengths = {}
    for number in range(_LOOKED_AT):
        task = components.suite.task(TRAIN, FIRST_DEMONSTRATION + number)
        lengths[task.id] = len(_demonstration(components, task)[0])
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] > limit:
        beyond = sum(length > limit for length in lengths.values())
        raise UsageError(
            [
                f"episode.max_length: expected at least {lengths[longest]}, the tokens of the "
                f"longest of the first {_LOOKED_AT} demonstrations, {longest}, got {limit}, which "
                f"{beyond} don't fit"
            ]
        )


def _checked(components: Components, index: int) -> Demonstration:
    limit = components.config.episode.max_length
    task = components.suite.task(TRAIN, index)
    pair = _demonstration(components, task)
    if len(pair[0]) > limit:
        raise UsageError(
            [
                f"episode.max_length: expected at least {len(pair[0])}, the tokens of the "
                f"demonstration of {task.id}, got {limit}"
            ]
        )
    return pair


def _demonstration(components: Components, task: Task) -> Demonstration:
    turns = components.suite.demonstration(task, components.config.sft.detours)
    return components.chat.demonstration([*components.environment.prompt(task), *turns])


def _store(folder: Path, params: Params, metrics: Metrics) -> None:
    """Makes the cache entry, all at once."""
    with (
        cache_entry(folder) as temporary,
        Checkpoints(temporary / "checkpoints", keep=1) as checkpoints,
    ):
        checkpoints.save(0, {"params": params}, metrics)


def _fingerprint(checkpoint: str) -> str:
    try:
        return fingerprint(Path(checkpoint))
    except ValueError as error:
        raise UsageError([f"policy.checkpoint: {error}"]) from None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc"]
