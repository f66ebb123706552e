"""transformers' torch models of the cases, and what is asked of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from parity.cases import Case
from parity.random_numbers import random_tensors

Rows = Sequence[np.ndarray]  # int [T] each, of any lengths


def make_model(case: Case) -> Any:
    """The case's `...ForCausalLM` in float32 with its random parameters."""
    model = transformers.AutoModelForCausalLM.from_config(case.config)
    tensors = random_tensors({name: tuple(x.shape) for name, x in model.named_parameters()})
    missing, extra = model.load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert not extra
    assert set(missing) <= {"lm_head.weight"}  # the embedding's, where it is tied
    return model.eval()


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The folder's model in another dtype; positions stay in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def load_rounded(folder: Path) -> Any:
    """The folder's model in float32, its parameters rounded to bfloat16."""
    model = load(folder, torch.float32)
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(x.bfloat16())
    return model


def _padded(rows: Rows, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask: int64 [B, T] each."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), None)
        tokens[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return tokens, mask


def _forward(model: Any, rows: Rows, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask, and logits in float32."""
    tokens, mask = _padded(rows, side)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return tokens, mask, logits.float()


@torch.inference_mode()
def logits(model: Any, rows: Rows, side: str = "right") -> list[np.ndarray]:
    """float32 [T, V] of each row, from one batch that is padded on that side."""
    _, mask, found = _forward(model, rows, side)
    return [row[kept.bool()].numpy() for row, kept in zip(found, mask, strict=True)]


@torch.inference_mode()
def greedy(model: Any, case: Case, rows: Rows, new: int) -> np.ndarray:
    """The most likely continuations by `generate`: int64 [B, new]."""
    tokens, mask = _padded(rows, "left")
    fillers = list(range(case.usable_vocab, model.config.vocab_size)) if case.usable_vocab else None
    drawn = model.generate(
        tokens,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
        suppress_tokens=fillers,
    )
    return drawn[:, tokens.shape[1] :].numpy()


def gradients(model: Any, case: Case, rows: Rows, masks: Rows) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of the tokens in the mask, by the parameters' names."""
    model.zero_grad()
    tokens, _, found = _forward(model, rows, "right")
    counted = torch.zeros(tokens.shape)
    for i, mask in enumerate(masks):
        counted[i, : len(mask)] = torch.tensor(mask)
    log_probs = found[:, :-1, : case.vocab_size].log_softmax(-1)
    picked = log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    loss = -(picked * counted[:, 1:]).sum() / counted[:, 1:].sum()
    loss.backward()
    return {name: x.grad.float().numpy() for name, x in model.named_parameters()}
