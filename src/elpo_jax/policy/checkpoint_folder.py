"""What lies in a checkpoint's folder beside its weights, and what tells two checkpoints apart."""

import hashlib
from pathlib import Path

from elpo_jax.policy.safetensors_files import open_tensors

CONFIG = "config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
SENTENCE_PIECE = "tokenizer.model"
TOKENIZER = (
    "added_tokens.json",
    MORE_TEMPLATES,
    "chat_template.json",
    TEMPLATE,
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    SENTENCE_PIECE,
    "tokenizer_config.json",
    "vocab.json",
)

# Rows of each tensor that its fingerprint is made of.
_ROWS = 8


def carry_over(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copies the files of these patterns, those that there are."""
    for pattern in patterns:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            copy_file(path, target)


def copy_file(source: Path, target: Path) -> None:
    """Copies a small file. `shutil` would name the source where the target's disk is full."""
    target.write_bytes(source.read_bytes())


def fingerprint(folder: Path) -> str:
    """A name of what the folder holds: 64 hexadecimal digits.

    Of the small files that decide what the policy is every byte counts, of the weights what
    `weights_fingerprint` takes.

    Raises:
      ValueError: the weights can't be read.
    """
    digest = hashlib.sha256()
    for pattern in (CONFIG, *TOKENIZER):
        for path in sorted(folder.glob(pattern)):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    digest.update(weights_fingerprint(folder).encode())
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """A name of the folder's weights: 64 hexadecimal digits.

    Of each tensor it is the name, dtype, shape and eight rows spread over it, because reading 15 GB
    takes minutes: training moves nearly every row of whatever it trains. Weights that were edited
    by hand, in single rows that aren't among these, aren't told apart.

    Raises:
      ValueError: they can't be read.
    """
    digest = hashlib.sha256()
    with open_tensors(folder) as tensors:
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            rows = tensor.shape[0] if tensor.shape else 0
            for number in range(_ROWS):
                row = number * rows // _ROWS
                index = slice(row, row + 1), *(slice(None) for _ in tensor.shape[1:])
                if rows:
                    digest.update(tensor[index].tobytes())
    return digest.hexdigest()
