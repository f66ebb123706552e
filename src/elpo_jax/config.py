"""The configuration: frozen dataclasses, one a section. Fields and defaults are defined here only.

An experiment file edits the `ConfigDict` of `default_config`, `from_dict` turns that into a typed
`Config`, and `elpo_jax.validation` judges its values. A key is dotted: `optimizer.learning_rate`.
"""

import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from elpo_jax.errors import UsageError, suggestion


@dataclass(frozen=True)
class SuiteConfig:
    """Which tasks. `length` is 'short' (2-5 calls) or 'long' (up to 8)."""

    name: str = "science"
    length: str = "short"
    search: bool = False  # science: facts are searched, not looked up; questions: `corpus` is
    corpus: str = ""  # rows {title?, text} to search; empty: the science suite's own facts


@dataclass(frozen=True)
class RewardConfig:
    """A sum of terms (see `tasks.rewards`). Success is the verifier's, whatever the reward."""

    terms: tuple[str, ...] = ("plus_minus_one",)
    overlong_buffer: int = 4096  # tokens before the end of an episode in which 'overlong' grows


@dataclass(frozen=True)
class DataConfig:
    """Files of questions, for suites that read them. A split without one is generated."""

    train: str = ""
    eval: str = ""  # held-out questions
    format: str = "gsm8k"  # of both, a key of `tasks.formats.FORMATS`; 'auto': by columns


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen parameters (https://arxiv.org/abs/2106.09685)."""

    rank: int = 0  # 0: no adapters, all parameters are trained
    alpha: float = 16.0  # adapters weigh alpha / rank
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True)
class PolicyConfig:
    """A checkpoint, or a decoder of the Qwen3 shape that starts from scratch, about a million
    parameters by default."""

    checkpoint: str = ""  # a Hugging Face folder; decides the sizes from here to tie_embeddings
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    mlp_dim: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    tokenizer: str = ""  # a SentencePiece .model file, 'embedded:code' or 'embedded:search'; empty:
    # the checkpoint's, or the embedded one
    thinking: bool | None = None  # the chat template's enable_thinking; none: the template decides
    earlier_turns: str = "as_rendered"  # or 'as_sampled', where the template rewrites earlier turns
    dtype: str = "float32"  # of activations and the KV cache: 'float32' or 'bfloat16'
    param_dtype: str = "float32"  # with 'bfloat16' the optimiser keeps them in float32 as well
    scan_unroll: int = 1  # layers a scan step of the learner: more compile longer and run faster
    remat: str = "none"  # what the backward pass computes again: 'none', 'dots' (all but products)
    # or 'full' (all but each layer's input)
    attention_block: int = 512  # longer rows and caches are attended to in blocks of this length
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; the product must be the number of devices. One may be
    0: all that the others leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


STOP_TOKENS = 8  # ids that may end a turn, at most: a shape of the sampler too


@dataclass(frozen=True)
class SamplerConfig:
    """Every shape of the sampler's programs is fixed here."""

    lanes: int = 64  # rollouts that decode together
    rows: int = 64  # KV rows kept on the device for later forks; more are swapped to the host
    decode_block: int = 16  # tokens a decode call, at most
    prefill_rows: int = 16
    prefill_chunks: tuple[int, ...] = (16, 64)  # chunk lengths, ascending
    fork_rows: int = 16  # rows copied a call
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    tool_workers: int = 4


@dataclass(frozen=True)
class SandboxConfig:
    """Where the policy's code runs, and what a snippet may use.

    Tests have limits per test of their own (`tasks.code_judge`), whatever `cpu_seconds` and
    `wall_seconds` say.
    """

    workers: int = 0  # snippets at once; 0: as many as sampler.tool_workers
    cpu_seconds: float = 10.0
    wall_seconds: float = 20.0
    tests_seconds: float = 60.0  # of an answer's tests together; those left then have failed
    memory_mb: int = 1024  # beyond what the loaded modules take
    output_kb: int = 1024  # of each of stdout and stderr
    disk_mb: int = 64
    files: int = 1000
    session: bool = False  # code_interpreter keeps variables from call to call
    tier: str = "auto"  # the strongest that holds, or a certain one: 'T1', 'T2' or 'T3'
    allow_unsafe: bool = False  # run code even where nothing keeps it from this machine


@dataclass(frozen=True)
class EpisodeConfig:
    """Caps of an episode. Lengths are tokens; `max_length` includes the prompt."""

    max_turns: int = 7
    max_calls: int = 6
    spare_calls: int | None = None  # calls beyond those that the suite's solver makes; none: any
    max_length: int = 384
    max_turn_tokens: int = 128
    max_observation_chars: int = 1024
    calls_in_turn: str = "first"  # of a turn with several: 'first' or 'all', which are run
    tool_retries: int = 2  # of a call whose tool broke, before the rollout is dropped
    tool_seconds: float = 30.0  # a call's time by the clock, its retries included
    verify_seconds: float = 120.0  # the same for the verifier, in case that it hangs
    max_drops: int = 3  # dropped rollouts after which a task leaves the batch


@dataclass(frozen=True)
class RolloutConfig:
    """How trees grow (ELPO 4.1, Table 2)."""

    budget: int = 16  # N_total: rollouts a task, every branch counted
    max_failed: int = 3  # B_max
    min_suffixes: int = 1  # X_min
    max_suffixes: int = 3  # X_max
    beta: float = 5.0
    search: str = "confirm"  # or 'algorithm1'
    gap: str = "call_mean"  # H_tool: 'call_mean' or 'token_mean'
    widen_unprobed: bool = False  # ELC also where the search spent no probe, as the paper prints it


@dataclass(frozen=True)
class CreditConfig:
    """Hierarchical advantages (ELPO 4.2)."""

    lambda_tree: float = 0.5
    eps: float = 1e-6


@dataclass(frozen=True)
class LossConfig:
    """Overrides of the algorithm's row; None leaves the row's value."""

    eps_low: float | None = None
    eps_high: float | None = None
    eps_elc: float | None = None
    aggregation: str | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a schedule and global-norm clipping."""

    learning_rate: float = 1e-6
    schedule: str = "constant"  # or 'cosine', 'linear' (both to 0)
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class SFTConfig:
    """The cold start, on the suite's demonstrations or a file's conversations."""

    data: str = ""  # conversations in columns messages and tools; empty: demonstrations
    steps: int = 0  # updates; 0: no cold start
    batch: int = 32
    detours: float = 0.0  # share of the demonstrations' calls that a needless one comes before
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-5, schedule="cosine", warmup_steps=0, b2=0.95
        )
    )
    cache_dir: str = ""  # empty: $XDG_CACHE_HOME/elpo_jax or ~/.cache/elpo_jax


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop. Batches count prompts (ELPO Table 2: 128 and 16)."""

    steps: int = 100
    batch_prompts: int = 128
    mini_batch_prompts: int = 16
    epochs: int = 1  # passes over a rollout batch
    micro_batch_rows: int = 16  # trajectories a forward-backward pass
    length_buckets: tuple[int, ...] = (128, 256, 384)  # row lengths, ascending
    logprob_chunk: int = 128  # time steps whose logits exist at once
    export: bool = False  # DIR/export at the end: a Hugging Face folder with the policy
    save_trees: int = 4  # trees of each step that are written to DIR/trees


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation; `every` 0 means only at the start and the end."""

    tasks: int = 256
    samples: int = 1  # independent trajectories a task
    every: int = 0
    save_trees: int = 256  # tasks of the first and the newest evaluation written to DIR/trees
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 10
    keep: int = 2


@dataclass(frozen=True)
class Config:
    seed: int = 0
    algorithm: str = "elpo"
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    data: DataConfig = field(default_factory=DataConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


def field_types() -> dict[str, Any]:
    """Every dotted key with its type, in the order of the dataclasses."""
    return dict(_leaves(Config, ""))


def default_config() -> ConfigDict:
    """The defaults, for an experiment file to edit. Its structure is locked, its types are not:
    `from_dict` reports all wrong types together."""
    return ConfigDict(asdict(Config()), type_safe=False).lock()


def from_dict(tree: Mapping[str, Any] | ConfigDict) -> Config:
    """A typed config from nested mappings; what is missing keeps its default.

    Integers pass as floats and lists as tuples, as JSON needs; nothing else is converted.

    Raises:
      UsageError: with every unknown key and every value of a wrong type.
    """
    config, problems = read(tree)
    if problems:
        raise UsageError(problems)
    return config


def read(tree: Mapping[str, Any] | ConfigDict) -> tuple[Config, list[str]]:
    """As `from_dict`, but gives the problems back; what is wrong keeps its default too."""
    problems: list[str] = []
    tree = tree.to_dict() if isinstance(tree, ConfigDict) else tree
    return _build(Config(), tree, "", problems), problems


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts that JSON gives back unchanged; the inverse of `from_dict`."""
    return json.loads(json.dumps(asdict(config)))


def digest(config: Config) -> str:
    """A short name of the config's values (16 hexadecimal digits)."""
    text = json.dumps(asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, with both values."""
    pairs = {key: (get(ours, key), get(theirs, key)) for key in field_types()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def get(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def unknown_key(key: str) -> str:
    """The line for a dotted key that doesn't exist."""
    below = [known for known in field_types() if known.startswith(key + ".")]
    if below:
        return f"{key}: is a section; set one of {', '.join(below)}"
    sections = {known.rpartition(".")[0] for known in field_types()} - {""}
    shown = key if key.isprintable() else repr(key)
    (nearest,) = difflib.get_close_matches(key, field_types(), 1, cutoff=0)
    did_you_mean = suggestion(key, [*field_types(), *sorted(sections)])
    return f"{shown}: no such key{did_you_mean or f'; the nearest is {nearest}'}"


def _leaves(section: type, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def _build(defaults: Any, tree: Any, prefix: str, problems: list[str]) -> Any:
    """`defaults` with the values of `tree`; what is wrong is left out and noted."""
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.')}: expected a section, got {tree!r}")
        return defaults
    kinds = typing.get_type_hints(type(defaults))
    problems += [unknown_key(f"{prefix}{name}") for name in tree if name not in kinds]
    values = {}
    for name, value in tree.items():
        kind = kinds.get(name)
        if is_dataclass(kind):
            values[name] = _build(getattr(defaults, name), value, f"{prefix}{name}.", problems)
        elif kind is not None:
            try:
                values[name] = _convert(value, kind)
            except TypeError:
                problems.append(f"{prefix}{name}: expected {_words(kind)}, got {value!r}")
    return replace(defaults, **values)


def _convert(value: Any, kind: Any) -> Any:
    """`value` as `kind`, one of the field types used above.

    Raises:
      TypeError: it is something else.
    """
    if isinstance(kind, types.UnionType):
        inner = typing.get_args(kind)[0]
        return None if value is None else _convert(value, inner)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, typing.get_args(kind)[0]) for item in value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise TypeError


def _words(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return f"{_words(typing.get_args(kind)[0])} or none"
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_words(typing.get_args(kind)[0])}"
    return {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}[
        kind
    ]
