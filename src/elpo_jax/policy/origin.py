"""What a run's policy comes from, told apart by content: its files may lie elsewhere by now."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from elpo_jax.config import Config, PolicyConfig, differences, from_dict
from elpo_jax.errors import UsageError
from elpo_jax.policy.chat_files import chat_files
from elpo_jax.policy.checkpoint_folder import CONFIG, GENERATION, weights_fingerprint
from elpo_jax.policy.tokenizer import tokenizer_file

# Settings that name them: a run goes on with other paths to the same content.
PATHS = ("policy.checkpoint", "policy.tokenizer")
# Settings of how the same is computed, and those two, whose content is compared.
_FREE = (
    "checkpoint", "tokenizer", "dtype", "param_dtype", "scan_unroll", "remat", "attention_block"
)  # fmt: skip


def digests_of(policy: PolicyConfig) -> dict[str, str]:
    """SHA-256 of the user's files that decide on ids, ends and what the parameters are of.

    The names are those of the settings, and below `policy.checkpoint/` of the files there.

    Raises:
      OSError: a file can't be read.
    """
    files = chat_files(policy)
    if policy.checkpoint:
        folder = Path(policy.checkpoint)
        files += [folder / CONFIG, *folder.glob(GENERATION)]
    return {_name(policy, file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def weights_of(policy: PolicyConfig) -> str:
    """The fingerprint of the checkpoint's weights; empty for a policy that starts from scratch.

    Raises:
      UsageError: they can't be read.
    """
    if not policy.checkpoint:
        return ""
    try:
        return weights_fingerprint(Path(policy.checkpoint))
    except ValueError as error:
        raise UsageError([f"policy.checkpoint: {error}"]) from None


def changed_files(
    policy: PolicyConfig, ours: Mapping[str, str], digests: Mapping[str, str]
) -> list[str]:
    """Those that aren't what they were, each with its setting and its path now.

    Args:
      policy: where they are now.
      ours: their digests now, and perhaps others' under names of their own.
      digests: what they were.
    """
    names = sorted(ours.keys() | digests.keys())
    return [_shown(policy, name) for name in names if ours.get(name) != digests.get(name)]


def run_policy(checkpoint: Path) -> PolicyConfig | None:
    """The policy section of the run that a checkpoint is of; None where its config.json is gone.

    Args:
      checkpoint: a run's folder, its `checkpoints`, or one of those.

    Raises:
      UsageError: that config.json is none of this version's.
    """
    folder = checkpoint.absolute()
    file = next(
        (up / CONFIG for up in (folder, *folder.parents[:2]) if (up / CONFIG).is_file()), None
    )
    if file is None:
        return None
    try:
        return from_dict(json.loads(file.read_text(encoding="utf-8"))).policy
    except (OSError, ValueError) as error:
        raise UsageError([f"{file}: expected a run's settings: {error}"]) from None


def other_policy(ours: PolicyConfig, theirs: PolicyConfig) -> list[str]:
    """A line for each setting by which two sections compute something else with the same
    parameters."""
    ours, theirs = (
        replace(policy, **{name: getattr(PolicyConfig(), name) for name in _FREE})
        for policy in (ours, theirs)
    )
    found = differences(Config(policy=ours), Config(policy=theirs))
    return [f"{key}: the run there has {then!r}, got {now!r}" for key, (now, then) in found.items()]


def _name(policy: PolicyConfig, file: Path) -> str:
    if policy.tokenizer and file == tokenizer_file(policy.tokenizer):
        return "policy.tokenizer"
    return f"policy.checkpoint/{file.relative_to(policy.checkpoint)}"


def _shown(policy: PolicyConfig, name: str) -> str:
    key, _, below = name.partition("/")
    if key not in PATHS:
        return name
    path = Path(policy.tokenizer if key == "policy.tokenizer" else policy.checkpoint)
    return f"{key}: {path / below if below else path}"
