"""Parameters to folders that others load: a Hugging Face checkpoint, or PEFT's adapter."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from elpo_jax.config import PolicyConfig
from elpo_jax.errors import UsageError
from elpo_jax.policy.architecture import Lora
from elpo_jax.policy.chat_files import make_chat
from elpo_jax.policy.checkpoint_folder import CONFIG
from elpo_jax.policy.export_tokenizer import (
    carry_generation,
    carry_tokenizer,
    with_ids,
    write_generation,
    write_json,
    write_tokenizer,
)
from elpo_jax.policy.families import describe, read_config
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.safetensors_files import INDEX, SINGLE
from elpo_jax.policy.tokenizer import tokenizer_file
from elpo_jax.policy.weight_names import ADAPTERS, WEIGHTS, Layout, Weight

Params = Any

SHARD_BYTES = 4 << 30

# Any: with tools a checkpoint may have another template.
_TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}

# The reader's hint that transformers looks for.
_METADATA = {"format": "pt"}


class _Tensor(NamedTuple):
    """A tensor that is to be written; `make` fetches it from the devices."""

    name: str
    size: int  # bytes
    make: Callable[[], np.ndarray]


def export_policy(folder: Path, params: Params, model: Decoder, policy: PolicyConfig) -> list[str]:
    """A run's policy as `save_checkpoint` writes it, with the tokenizer that the run used.

    Args:
      folder: new, or empty.
      params: of the run.
      model: of the run.
      policy: the section of the run's config.

    Returns:
      Lines for the user.
    """
    source = Path(policy.checkpoint) if policy.checkpoint else None
    if policy.tokenizer or source is None:
        return save_checkpoint(folder, params, model, source, tokenizer_file(policy.tokenizer))
    return save_checkpoint(folder, params, model, source, end_of_turn=_end_of_turn(policy))


def save_checkpoint(
    folder: Path,
    params: Params,
    model: Decoder,
    source: Path | None = None,
    tokenizer: Path | None = None,
    end_of_turn: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes a folder that `transformers.AutoModelForCausalLM` and `weights.load_params` load.

    Tensors have the parameters' dtype; adapters are merged in float32. The host holds one shard at
    a time.

    Args:
      folder: new, or empty.
      params: of `model`.
      model: whose parameters they are.
      source: the checkpoint that they come from, whose config.json, generation_config.json,
        tokenizer and chat template are carried over; see `carry_tokenizer`.
      tokenizer: a SentencePiece file instead of the source's tokenizer; the chat template is the
        source's then, or the embedded one where there is none.
      end_of_turn: the id at which the policy ends its turns with the source's tokenizer; it is
        added to those at which `generate` stops.
      shard_bytes: where the tensors have more, they are written to several files of at most this.

    Returns:
      Lines for the user.

    Raises:
      UsageError: the folder isn't empty, or the source's files can't be read.
      OSError: a file can't be written.
    """
    dtype = model.compute.param_dtype
    if source is None:
        config = describe(model.architecture, dtype)
    else:
        with _as_usage_errors():
            config = dict(read_config(source))
        config.pop("torch_dtype", None)  # the name that 'dtype' had
        config |= {"dtype": dtype, "vocab_size": model.architecture.vocab_size}
    notes: list[str] = []
    with _new_folder(folder) as temporary:
        if tokenizer is not None:
            with _as_usage_errors():
                written = write_tokenizer(temporary, tokenizer, source)
                write_generation(temporary, source, written.end_of_turn)
            notes += written.notes
            config = with_ids(config, written.end_of_turn)
        elif source is not None:
            with _as_usage_errors():
                notes += carry_tokenizer(temporary, source)
                notes += carry_generation(temporary, source, end_of_turn)
        write_json(temporary / CONFIG, config)
        _write_sharded(temporary, _merged(params, model.compute.lora), shard_bytes)
    return notes


def save_adapter(folder: Path, params: Params, model: Decoder, base_name: str) -> None:
    """Writes the adapters as `peft.PeftModel.from_pretrained` loads them.

    Args:
      folder: new, or empty.
      params: of `model`.
      model: with adapters.
      base_name: the checkpoint that they were trained beside; a folder, or a name on the hub.

    Raises:
      UsageError: the folder isn't empty, or the model has no adapters.
      OSError: a file can't be written.
    """
    lora = model.compute.lora
    if lora is None:
        raise UsageError(["adapter: expected a policy with policy.lora.rank > 0, got one without"])
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    flat = traverse_util.flatten_dict(params)
    tensors = [
        tensor
        for path, x in flat.items()
        if path in ADAPTERS
        for tensor in _layers(ADAPTERS[path], {path[-1]: x}, path[-1], None)
    ]
    with _new_folder(folder) as temporary:
        write_json(temporary / "adapter_config.json", config)
        _write(temporary / "adapter_model.safetensors", tensors)


def check_target(folder: Path) -> None:
    """Raises UsageError unless a folder can be made there, or is there and empty."""
    if folder.is_dir():
        found = sorted(path.name for path in folder.iterdir())
        if found:
            raise UsageError([f"{folder}: expected a new or empty folder, found {found[0]!r}"])
    elif folder.exists():
        raise UsageError([f"{folder}: expected a new or empty folder, found a file"])
    try:
        place = next(parent for parent in folder.absolute().parents if parent.exists())
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as error:
        words = f"expected a place for a new folder, got: {error.strerror}"
        raise UsageError([f"{folder}: {words}"]) from None


def _end_of_turn(policy: PolicyConfig) -> int:
    """The template's, as with tools; a template that there is for none only has its own."""
    try:
        return make_chat(policy, (_TOOL,)).end_of_turn
    except UsageError:
        return make_chat(policy, ()).end_of_turn


@contextmanager
def _as_usage_errors() -> Iterator[None]:
    """What a file of the user's holds is the user's to mend."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError([str(error)]) from None


def _merged(params: Params, lora: Lora | None) -> list[_Tensor]:
    """The checkpoint's tensors, adapters added to their products."""
    flat = traverse_util.flatten_dict(params)
    tensors: list[_Tensor] = []
    for path in sorted(flat.keys() & WEIGHTS.keys()):
        *module, name = path
        names = (name, "lora_a", "lora_b") if name == "kernel" else (name,)
        leaves = {name: flat[*module, name] for name in names if (*module, name) in flat}
        tensors += _layers(WEIGHTS[path], leaves, name, lora)
    return tensors


def _layers(
    weight: Weight, leaves: Mapping[str, jax.Array], name: str, lora: Lora | None
) -> Iterator[_Tensor]:
    """A tensor for each layer of a parameter, or one where it isn't stacked.

    Args:
      weight: its counterpart.
      leaves: the parameter under `name`, and the adapters beside it.
      name: 'kernel', 'scale', ....
      lora: the adapters' weight.
    """

    x = leaves[name]
    layers = x.shape[0] if weight.is_stacked else 1
    tensor = _program(weight.layout, weight.is_stacked, name, lora)
    for layer in range(layers):

        def make(layer: int = layer) -> np.ndarray:
            return np.ascontiguousarray(tensor(leaves, np.int32(layer)))

        yield _Tensor(weight.of_layer(layer), x.nbytes // layers, make)


@lru_cache(maxsize=16)
def _program(
    layout: Layout, is_stacked: bool, name: str, lora: Lora | None
) -> Callable[[Mapping[str, jax.Array], np.int32], jax.Array]:
    """(leaves, layer) -> tensor; see `_layers`."""

    @jax.jit
    def tensor(leaves: Mapping[str, jax.Array], layer: jax.Array) -> jax.Array:
        if is_stacked:
            leaves = {
                name: jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False)
                for name, x in leaves.items()
            }
        ours = leaves[name]
        if lora is not None and "lora_a" in leaves:
            down, up = (leaves[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
            product = jnp.tensordot(down, up, axes=1, precision="highest")
            scaled = product * (lora.alpha / lora.rank)
            ours = (ours.astype(jnp.float32) + scaled).astype(ours.dtype)
        return layout.to_theirs(ours)

    return tensor


def _write_sharded(folder: Path, tensors: list[_Tensor], shard_bytes: int) -> None:
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    total = sum(tensor.size for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def _write(path: Path, tensors: list[_Tensor]) -> None:
    """One file; the host holds its tensors meanwhile."""
    try:
        save_file({tensor.name: tensor.make() for tensor in tensors}, path, _METADATA)
    except SafetensorError as error:  # the system's, with its number in the words
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise OSError(errno.EIO, str(error), str(path)) from None


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its own once the block is through.

    Errors of the system name it by its own too.
    """
    check_target(folder)
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        os.rename(temporary, folder)
        _sync(folder.parent)
    except OSError as error:
        error.filename = str(error.filename or folder).replace(str(temporary), str(folder))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
