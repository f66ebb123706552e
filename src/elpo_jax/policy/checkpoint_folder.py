"""What lies in a checkpoint's folder beside its weights, and what tells two checkpoints apart."""

import hashlib
import shutil
from pathlib import Path

from elpo_jax.policy.safetensors_files import open_tensors

CONFIG = "config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
SENTENCE_PIECE = "tokenizer.model"
TOKENIZER = (
    "added_tokens.json",
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


def carry_over(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copies those of the files that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def fingerprint(folder: Path) -> str:
    """A name of what the folder holds: 64 hexadecimal digits.

    Of the small files that decide what the policy is every byte counts. Of each tensor it is the
    name, dtype, shape and eight rows spread over it, because reading 15 GB takes minutes: training
    moves nearly every row of whatever it trains. Weights that were edited by hand, in single rows
    that aren't among these, aren't told apart.

    Raises:
      ValueError: the weights can't be read.
    """
    digest = hashlib.sha256()
    for name in (CONFIG, *TOKENIZER):
        if (folder / name).is_file():
            content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            digest.update(f"{name} {content}\n".encode())
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
