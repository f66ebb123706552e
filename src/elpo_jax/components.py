"""Builds the parts of a run from its config: policy, suite, chat, environment, sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from elpo_jax.config import Config, SandboxConfig
from elpo_jax.data_order import first_tasks, fitting
from elpo_jax.errors import UsageError
from elpo_jax.policy.build import make_architecture, make_decoder
from elpo_jax.policy.chat import Chat
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.origin import digests_of
from elpo_jax.policy.sharding import (
    batch_sharding,
    filled,
    init_params,
    make_mesh,
    param_shardings,
    placed_shapes,
)
from elpo_jax.policy.weights import load_params
from elpo_jax.rollout.episode import Environment
from elpo_jax.sampler.engine import Engine
from elpo_jax.sampler.scheduler import Scheduler
from elpo_jax.sandbox import Sandboxes, described
from elpo_jax.tasks import make_suite
from elpo_jax.tasks.base import HELD_OUT, TRAIN, Suite
from elpo_jax.tasks.conversations import Conversations, read_conversations
from elpo_jax.tasks.files import KEYS, Files, read_files
from elpo_jax.tasks.rewards import looks_at_tests, reward
from elpo_jax.tools.corpus import Corpus, read_corpus
from elpo_jax.validation import validate_mesh

Params = Any

# Streams of randomness of a run; each has its own keys.
INIT, ROLLOUT, EVALUATION = range(3)


@dataclass(frozen=True, eq=False)
class Components:
    """What every entry point needs.

    Attributes:
      config: the config they were built from.
      mesh: of all devices.
      model: the policy's module.
      suite: tasks, tools and verifier.
      chat: messages to ids.
      environment: the rules of an episode.
      files: what was read of the data files.
      corpus: what was read of the file to search, if there is one.
      sandboxes: where the suite runs code, if it does.
      indices: by split, which tasks of a finite one are used; None: all.
    """

    config: Config
    mesh: Mesh
    model: Decoder
    suite: Suite
    chat: Chat
    environment: Environment
    files: Files
    corpus: Corpus | None
    sandboxes: Sandboxes
    indices: Mapping[str, Sequence[int] | None]

    @property
    def notes(self) -> list[str]:
        """Lines for the user: what was read, and what of it isn't used."""
        notes = [*self.files.notes, *(self.corpus.notes if self.corpus else ())]
        for split, indices in self.indices.items():
            left_out = (self.suite.size(split) or 0) - len(indices or ())
            if left_out:
                limit = f"episode.max_length={self.config.episode.max_length}"
                notes.append(f"{KEYS[split]}: left out, too long for {limit}: {left_out}")
        held_out, wanted = self.indices[HELD_OUT], self.config.eval.tasks
        if held_out is not None and len(held_out) < wanted:
            notes.append(f"{KEYS[HELD_OUT]}: fewer than eval.tasks={wanted}: {len(held_out)}")
        episode = self.config.episode
        calls = [task.calls or 0 for task in first_tasks(self.suite, HELD_OUT)]
        beyond = sum(count > min(episode.max_calls, episode.max_turns - 1) for count in calls)
        if beyond:
            notes.append(
                f"warning: {beyond} of {len(calls)} held-out tasks take the suite's solver more "
                f"calls than episode.max_calls={episode.max_calls} and "
                f"episode.max_turns={episode.max_turns} allow"
            )
        return notes

    def start_sandboxes(self) -> list[str]:
        """Starts what the suite runs code in; lines for the user.

        Raises:
          UsageError: nothing protects this machine, and `sandbox.allow_unsafe` is false.
        """
        tier = self.sandboxes.start()
        return [] if tier is None else [described(tier, self.sandboxes.failures)]

    @cached_property
    def conversations(self) -> Conversations | None:
        """What the cold start learns from where that is a file; read at first use, since only the
        beginning of a run needs it.

        Raises:
          UsageError: the file can't be read, or has no row that can be used.
        """
        path, buckets = self.config.sft.data, self.config.train.length_buckets
        return read_conversations(path, self.chat.conversation, buckets[-1]) if path else None

    @cached_property
    def policy_digests(self) -> Mapping[str, str]:
        """Of the user's files that the policy comes from, see `policy.origin`."""
        return digests_of(self.config.policy)

    @property
    def data_digests(self) -> Mapping[str, str]:
        """SHA-256 of the files of questions and passages, by the settings that name them."""
        digests = {KEYS[split]: digest for split, digest in self.files.digests.items()}
        return digests | ({"suite.corpus": self.corpus.digest} if self.corpus else {})

    @property
    def param_shardings(self) -> Any:
        return param_shardings(self.model, self.mesh)

    @property
    def batch_sharding(self) -> NamedSharding:
        return batch_sharding(self.mesh)

    def key(self, stream: int, step: int = 0) -> jax.Array:
        """The key of a stream at a training step."""
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(self.config.seed), stream), step
        )

    @property
    def param_shapes(self) -> Params:
        """A `jax.ShapeDtypeStruct` with its sharding for each parameter: what is restored to."""
        return placed_shapes(self.model, self.mesh)

    def init_params(self) -> Params:
        """What training begins with: the checkpoint's parameters, or fresh ones of the run's seed.

        Raises:
          UsageError: the checkpoint's files don't hold what its config.json promises.
        """
        checkpoint, key = self.config.policy.checkpoint, self.key(INIT)
        if not checkpoint:
            return init_params(self.model, key, self.mesh)
        try:
            return load_params(Path(checkpoint), self.model, self.mesh, key)
        except UsageError as error:
            raise UsageError(f"policy.checkpoint: {line}" for line in error.problems) from None

    def make_scheduler(self) -> Scheduler:
        """A sampler with its own caches on the device."""
        config = self.config
        engine = Engine(self.model, config.sampler, config.episode.max_length, self.mesh)
        return Scheduler(
            engine, self.environment, config.sampler, config.episode, self.chat.stop_tokens
        )


def _with_workers(config: Config) -> SandboxConfig:
    """The sandbox's settings with its workers filled in."""
    workers = config.sandbox.workers or config.sampler.tool_workers
    return replace(config.sandbox, workers=workers)


def build(config: Config) -> Components:
    """Builds the components.

    Raises:
      UsageError: the config doesn't fit the machine (the mesh), its files (the tokenizer, the
        questions) or the suite (the length of an episode).
    """
    mesh = make_mesh(config.mesh)
    files = read_files(config.data)
    corpus = read_corpus(config.suite.corpus, "suite.corpus") if config.suite.corpus else None
    sandboxes = Sandboxes(_with_workers(config))
    suite = make_suite(
        config.suite,
        files.questions,
        sandboxes,
        corpus.passages if corpus else None,
        fail_fast=not looks_at_tests(config.reward),
    )
    if config.policy.checkpoint:
        # First, since the tokenizer's loader reads config.json too and says less of a broken one.
        make_architecture(config.policy, 0)
    chat = make_chat(config.policy, [tool.schema for tool in suite.tools])
    model = make_decoder(config.policy, chat.tokenizer.vocab_size, mesh)
    validate_mesh(replace(config, mesh=filled(config.mesh, mesh.size)), model.architecture)
    environment = Environment(suite, chat, config.episode, partial(reward, config=config.reward))
    max_length = config.episode.max_length
    return Components(
        config=config,
        mesh=mesh,
        model=model,
        suite=suite,
        chat=chat,
        environment=environment,
        files=files,
        corpus=corpus,
        sandboxes=sandboxes,
        indices={s: fitting(suite, environment, s, max_length) for s in (TRAIN, HELD_OUT)},
    )
