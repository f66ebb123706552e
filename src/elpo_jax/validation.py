"""What the values of a config must satisfy: ranges of single keys, and relations between keys."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from elpo_jax.config import Config, field_types, get
from elpo_jax.errors import UsageError, unknown_name
from elpo_jax.learner.base import AGGREGATIONS
from elpo_jax.policy.architecture import LORA_TARGETS, REMAT, Architecture
from elpo_jax.policy.tokenizer import EMBEDDED, tokenizer_file
from elpo_jax.rollout.bel import GAPS
from elpo_jax.rollout.searches import SEARCHES
from elpo_jax.rollout.tool_calls import ALL, FIRST
from elpo_jax.sandbox.base import Tier
from elpo_jax.tasks.formats import FORMATS
from elpo_jax.tasks.rewards import TERMS


class Range(NamedTuple):
    """A condition on one value, and its words after 'expected'."""

    holds: Callable[[Any], bool]
    expected: str


POSITIVE = Range(lambda x: x > 0, "more than 0")
NOT_NEGATIVE = Range(lambda x: x >= 0, "0 or more")
AT_LEAST_ONE = Range(lambda x: x >= 1, "1 or more")
FRACTION = Range(lambda x: 0 <= x <= 1, "a number from 0 to 1")
PROBABILITY = Range(lambda x: 0 < x <= 1, "a number above 0 and up to 1")
DECAY = Range(lambda x: 0 <= x < 1, "a number from 0 and below 1")
AT_LEAST_TWO = Range(lambda x: x >= 2, "2 or more")
EVEN = Range(lambda x: x >= 2 and x % 2 == 0, "an even number, 2 or more")
SOME = Range(lambda x: len(x) > 0, "at least one")
SEED = Range(lambda x: 0 <= x < 2**32, "an integer from 0 to 2**32 - 1")
ASCENDING = Range(
    lambda x: len(x) > 0 and x[0] >= 1 and all(a < b for a, b in pairwise(x)),
    "lengths of 1 or more in ascending order",
)
CHECKPOINT = Range(
    lambda x: not x or Path(x).is_dir(),
    "--config.policy.checkpoint=DIR with a checkpoint's folder",
)
TOKENIZER = Range(lambda x: tokenizer_file(x).is_file(), f"a file, {', '.join(EMBEDDED)}, or empty")
FILE = Range(lambda x: not x or Path(x).is_file(), "a file, or empty")

_OPTIMIZER = {
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": POSITIVE,
    "b1": DECAY,
    "b2": DECAY,
    "eps": POSITIVE,
}

RANGES = {
    "seed": SEED,
    "suite.corpus": FILE,
    "data.train": FILE,
    "data.eval": FILE,
    "policy.checkpoint": CHECKPOINT,
    "policy.d_model": AT_LEAST_ONE,
    "policy.num_layers": AT_LEAST_ONE,
    "policy.num_heads": AT_LEAST_ONE,
    "policy.num_kv_heads": AT_LEAST_ONE,
    "policy.head_dim": EVEN,  # rotary embeddings turn pairs
    "policy.mlp_dim": AT_LEAST_ONE,
    "policy.rope_theta": POSITIVE,
    "policy.norm_eps": POSITIVE,
    "policy.scan_unroll": AT_LEAST_ONE,
    "policy.tokenizer": TOKENIZER,
    "policy.attention_block": AT_LEAST_ONE,
    "policy.lora.rank": NOT_NEGATIVE,
    "policy.lora.alpha": POSITIVE,
    "policy.lora.targets": Range(
        lambda x: x and set(x) <= LORA_TARGETS.keys() and len(set(x)) == len(x),
        f"one or more of {', '.join(LORA_TARGETS)}, each once",
    ),
    "mesh.data": NOT_NEGATIVE,
    "mesh.fsdp": NOT_NEGATIVE,
    "mesh.tensor": NOT_NEGATIVE,
    "sampler.lanes": AT_LEAST_ONE,
    "sampler.rows": AT_LEAST_ONE,
    "sampler.decode_block": AT_LEAST_ONE,
    "sampler.prefill_rows": AT_LEAST_ONE,
    "sampler.prefill_chunks": ASCENDING,
    "sampler.fork_rows": AT_LEAST_ONE,
    "sampler.temperature": POSITIVE,
    "sampler.top_p": PROBABILITY,
    "sampler.top_k": NOT_NEGATIVE,
    "sampler.tool_workers": AT_LEAST_ONE,
    "reward.terms": SOME,
    "reward.overlong_buffer": AT_LEAST_ONE,
    "sandbox.workers": NOT_NEGATIVE,
    "sandbox.cpu_seconds": POSITIVE,
    "sandbox.wall_seconds": POSITIVE,
    "sandbox.tests_seconds": POSITIVE,
    "sandbox.memory_mb": AT_LEAST_ONE,
    "sandbox.output_kb": AT_LEAST_ONE,
    "sandbox.disk_mb": AT_LEAST_ONE,
    "sandbox.files": AT_LEAST_ONE,
    "episode.max_turns": AT_LEAST_ONE,
    "episode.max_calls": NOT_NEGATIVE,
    "episode.spare_calls": NOT_NEGATIVE,
    "episode.max_length": AT_LEAST_ONE,
    "episode.max_turn_tokens": AT_LEAST_ONE,
    "episode.max_observation_chars": AT_LEAST_TWO,  # a head and a tail
    "episode.tool_retries": NOT_NEGATIVE,
    "episode.tool_seconds": POSITIVE,
    "episode.verify_seconds": POSITIVE,
    "episode.max_drops": AT_LEAST_ONE,
    "rollout.budget": AT_LEAST_ONE,
    "rollout.max_failed": AT_LEAST_ONE,
    "rollout.min_suffixes": AT_LEAST_ONE,
    "rollout.max_suffixes": AT_LEAST_ONE,
    "rollout.beta": NOT_NEGATIVE,
    "credit.lambda_tree": FRACTION,
    "credit.eps": POSITIVE,
    "loss.eps_low": FRACTION,
    "loss.eps_high": NOT_NEGATIVE,
    "loss.eps_elc": FRACTION,
    **{f"optimizer.{name}": check for name, check in _OPTIMIZER.items()},
    "sft.data": FILE,
    "sft.steps": NOT_NEGATIVE,
    "sft.batch": AT_LEAST_ONE,
    "sft.detours": FRACTION,
    **{f"sft.optimizer.{name}": check for name, check in _OPTIMIZER.items()},
    "train.steps": NOT_NEGATIVE,
    "train.batch_prompts": AT_LEAST_ONE,
    "train.mini_batch_prompts": AT_LEAST_ONE,
    "train.epochs": AT_LEAST_ONE,
    "train.micro_batch_rows": AT_LEAST_ONE,
    "train.length_buckets": ASCENDING,
    "train.logprob_chunk": AT_LEAST_ONE,
    "train.save_trees": NOT_NEGATIVE,
    "eval.tasks": AT_LEAST_ONE,
    "eval.samples": AT_LEAST_ONE,
    "eval.every": NOT_NEGATIVE,
    "eval.save_trees": NOT_NEGATIVE,
    "eval.temperature": NOT_NEGATIVE,
    "eval.top_p": PROBABILITY,
    "eval.top_k": NOT_NEGATIVE,
    "checkpoint.every": AT_LEAST_ONE,
    "checkpoint.keep": AT_LEAST_ONE,
}

NAMES: Mapping[str, Collection[str]] = {
    "suite.length": ("short", "long"),
    "data.format": FORMATS,
    "sandbox.tier": ("auto", Tier.T1, Tier.T2, Tier.T3),
    "episode.calls_in_turn": (FIRST, ALL),
    "policy.dtype": ("float32", "bfloat16"),
    "policy.param_dtype": ("float32", "bfloat16"),
    "policy.remat": REMAT,
    "policy.earlier_turns": ("as_rendered", "as_sampled"),
    "rollout.search": SEARCHES,
    "rollout.gap": GAPS,
    "loss.aggregation": AGGREGATIONS,
    "optimizer.schedule": ("constant", "cosine", "linear"),
    "sft.optimizer.schedule": ("constant", "cosine", "linear"),
}


def validate(
    config: Config,
    known: Mapping[str, Collection[str]] | None = None,
    problems: Sequence[str] = (),
    unread: Collection[str] = (),
) -> None:
    """Checks every value.

    Args:
      config: of the right types, as `config.read` makes it.
      known: further names by key, of tables that this module doesn't import: 'algorithm', ....
      problems: lines on keys that are wrong in other ways, to be told together.
      unread: keys that the program doesn't read, and whose values aren't judged.

    Raises:
      UsageError: with one line for each problem.
    """
    problems = [
        *problems,
        *(
            f"{key}: expected {check.expected}, got {get(config, key)!r}"
            for key, check in RANGES.items()
            if key not in unread
            and get(config, key) is not None
            and not check.holds(get(config, key))
        ),
    ]
    if config.policy.checkpoint:
        problems += [
            f"{key}: expected none beside policy.checkpoint, which decides it, got "
            f"{get(config, key)!r}"
            for key in _OF_CHECKPOINT
            if get(config, key) != get(Config(), key)
        ]
    for key, names in {**NAMES, **(known or {})}.items():
        value = get(config, key)
        if value is not None and value not in names:
            problems.append(unknown_name(key, value, names))
    problems += [
        unknown_name("reward.terms", name, TERMS)
        for name in config.reward.terms
        if name not in TERMS
    ]
    # Relations between values that are wrong by themselves would only repeat the complaint.
    wrong = {problem.partition(":")[0] for problem in problems}
    problems += [line for line in _unread(config) if line.partition(":")[0] not in wrong]
    problems += _broken_relations(config, wrong)
    sizes = [get(config, key) for key in _MESH]
    if sizes.count(0) > 1:
        problems.append("mesh: expected at most one axis of 0, the devices that the others leave")
    elif wrong.isdisjoint(_MESH) and 0 not in sizes:  # else when the devices are known
        problems += _indivisible(config, wrong)
    if problems:
        order = {key: i for i, key in enumerate(field_types())}
        raise UsageError(sorted(problems, key=lambda line: order.get(line.partition(":")[0], -1)))


def validate_mesh(config: Config, architecture: Architecture) -> None:
    """Checks what can only be judged once devices, checkpoint and tokenizer are known.

    Args:
      config: with the mesh's sizes filled in.
      architecture: of the policy.

    Raises:
      UsageError: sizes can't be spread over the mesh.
    """
    problems = list(_indivisible(config, set()))
    a, mesh = architecture, config.mesh
    if not problems and a.d_model % mesh.fsdp:
        problems.append(
            _no_divisor("mesh.fsdp", mesh.fsdp, f"the policy's width={a.d_model}", a.d_model)
        )
    sizes = (a.num_heads, a.num_kv_heads, a.mlp_dim, a.vocab_size)
    if not problems and any(size % mesh.tensor for size in sizes):
        named = "the policy's heads={}, kv heads={}, MLP width={} and vocabulary={}".format(*sizes)
        problems.append(_no_divisor("mesh.tensor", mesh.tensor, named, *sizes))
    if problems:
        raise UsageError(problems)


def _unread(config: Config) -> Iterator[str]:
    """A line for each setting beside `sft.data` that would do nothing."""
    if config.sft.data and not config.sft.steps:
        yield f"sft.data: expected empty with sft.steps=0, got {config.sft.data!r}"
    if config.sft.data and config.sft.detours:
        yield f"sft.detours: expected 0 beside sft.data, got {config.sft.detours!r}"


def _broken_relations(config: Config, wrong: Set[str]) -> Iterator[str]:
    """A line for each relation that fails, leaving out those of keys that are wrong anyway."""
    for first, second, holds, expected in _RELATIONS:
        a, b = get(config, first), get(config, second)
        if wrong.isdisjoint((first, second)) and None not in (a, b) and not holds(a, b):
            yield f"{first}: expected {expected} {second}={b!r}, got {a!r}"
    buffer, length = config.reward.overlong_buffer, config.episode.max_length
    keys = ("reward.overlong_buffer", "episode.max_length")
    if "overlong" in config.reward.terms and wrong.isdisjoint(keys) and buffer > length:
        yield (
            f"reward.overlong_buffer: expected at most episode.max_length={length} where "
            f"reward.terms has overlong, got {buffer}"
        )
    updates = (
        config.train.steps
        * config.train.epochs
        * (config.train.batch_prompts // max(1, config.train.mini_batch_prompts))
    )
    for prefix, optimizer, count, about in (
        ("optimizer", config.optimizer, updates, "train.steps"),
        ("sft.optimizer", config.sft.optimizer, config.sft.steps, "sft.steps"),
    ):
        key, warmup = f"{prefix}.warmup_steps", optimizer.warmup_steps
        falls = optimizer.schedule != "constant"
        if wrong.isdisjoint((key, about)) and falls and 0 < count <= warmup:
            yield f"{key}: expected fewer than the {count} updates, got {warmup}"


def _indivisible(config: Config, wrong: Set[str]) -> Iterator[str]:
    """A line for each size that can't be spread evenly over the mesh, and what could."""
    mesh = config.mesh
    devices = mesh.data * mesh.fsdp
    for key in _OVER_DATA_AND_FSDP:
        value = get(config, key)
        if key not in wrong and value % devices:
            below = value // devices * devices
            near = [str(size) for size in (below, below + devices) if size]
            yield (
                f"{key}: expected a multiple of mesh.data * mesh.fsdp = {devices}, got {value}; "
                f"{' or '.join(near)} would do"
            )
    if config.policy.checkpoint:  # its sizes come later, see `validate_mesh`
        return
    for axis, count, keys in (
        ("mesh.fsdp", mesh.fsdp, _OVER_FSDP),
        ("mesh.tensor", mesh.tensor, _OVER_TENSOR),
    ):
        sizes = [get(config, key) for key in keys]
        if wrong.isdisjoint(keys) and any(size % count for size in sizes):
            named = " and ".join(f"{key}={size}" for key, size in zip(keys, sizes, strict=True))
            yield _no_divisor(axis, count, named, *sizes)


def _no_divisor(axis: str, count: int, named: str, *sizes: int) -> str:
    near = math.gcd(count, *sizes)
    return f"{axis}: expected a divisor of {named}, got {count}; {near} would do"


_OF_CHECKPOINT = tuple(
    f"policy.{name}"
    for name in (
        "d_model",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "rope_theta",
        "norm_eps",
        "tie_embeddings",
    )
)
_MESH = ("mesh.data", "mesh.fsdp", "mesh.tensor")
# What the rules of `policy.sharding` spread over which axes of the mesh.
_OVER_DATA_AND_FSDP = (
    "sampler.lanes",
    "sampler.rows",
    "sampler.prefill_rows",
    "train.micro_batch_rows",
)
_OVER_FSDP = ("policy.d_model",)
_OVER_TENSOR = ("policy.num_heads", "policy.num_kv_heads", "policy.mlp_dim")

_RELATIONS: tuple[tuple[str, str, Callable[[Any, Any], bool], str], ...] = (
    ("policy.num_heads", "policy.num_kv_heads", lambda a, b: a % b == 0, "a multiple of"),
    ("sampler.fork_rows", "sampler.rows", lambda a, b: a <= b, "at most"),
    ("sandbox.wall_seconds", "episode.tool_seconds", lambda a, b: a < b, "less than"),
    # Starting programs takes time too.
    ("sandbox.tests_seconds", "episode.verify_seconds", lambda a, b: 2 * a <= b, "at most half of"),
    ("episode.max_turn_tokens", "episode.max_length", lambda a, b: a <= b, "at most"),
    ("rollout.min_suffixes", "rollout.max_suffixes", lambda a, b: a <= b, "at most"),
    ("loss.eps_elc", "loss.eps_low", lambda a, b: a + b <= 1, "at most 1 together with"),
    ("train.batch_prompts", "train.mini_batch_prompts", lambda a, b: a % b == 0, "a multiple of"),
    (
        "train.length_buckets",
        "episode.max_length",
        lambda a, b: a[-1] >= b,
        "a last length of at least",
    ),
)
