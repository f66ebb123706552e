"""Whole rows: logits and gradients, in all the ways in which they are computed."""

import numpy as np
import pytest
import torch

from parity import jax_side, torch_side
from parity.random_numbers import random_rows

LENGTHS = (3, 40, 17, 25)
BLOCK = 16  # rows of a batch are longer: they attend block by block


@pytest.fixture(scope="module")
def rows(case):
    return random_rows(f"{case.name}: rows", LENGTHS, case.vocab_size)


@pytest.fixture(scope="module")
def masks(rows):
    """Which tokens the loss counts: runs of them, and none of the first row's."""
    masks = [(np.arange(len(row)) // 5 % 2).astype(np.int32) for row in rows]
    masks[0][:] = 0
    return masks


def farthest(case, ours, theirs):
    """The largest difference of logits; ids that only fill the vocabulary up are never likely."""
    usable = case.vocab_size
    for row in ours:
        assert (row[:, usable:] == np.finfo(np.float32).min).all()
    return max(
        np.abs(a[:, :usable] - b[:, :usable]).max() for a, b in zip(ours, theirs, strict=True)
    )


def test_logits(case, peer, decoder, params, rows, check_difference):
    right, left = (torch_side.logits(peer, rows, side) for side in ("right", "left"))
    ours = jax_side.logits(decoder(), params, rows)
    check_difference("logits", max(farthest(case, ours, right), farthest(case, ours, left)))


def test_logits_block_by_block(case, peer, decoder, params, rows, check_difference):
    ours = jax_side.logits(decoder(attention_block=BLOCK), params, rows)
    theirs = torch_side.logits(peer, rows)
    check_difference("logits, blocks", farthest(case, ours, theirs))


def test_logits_of_a_long_row(case, peer, decoder, params, check_difference):
    """Well beyond the original context of positions that are stretched."""
    rows = random_rows(f"{case.name}: long", (600,), case.vocab_size)
    ours = jax_side.logits(decoder(attention_block=128), params, rows, 600)
    theirs = torch_side.logits(peer, rows)
    check_difference("logits, 600 tokens", farthest(case, ours, theirs))


def relative(ours, theirs):
    """The largest difference of a parameter's gradients, over the largest of its gradients."""
    assert ours.keys() == theirs.keys()
    return max(np.abs(ours[name] - x).max() / np.abs(x).max() for name, x in theirs.items())


@pytest.fixture(scope="module")
def their_gradients(case, peer, rows, masks):
    return torch_side.gradients(peer, case, rows, masks)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("gradients", {}),
        ("gradients, dots", {"remat": "dots"}),
        ("gradients, full, blocks", {"remat": "full", "attention_block": BLOCK}),
    ],
)
def test_gradients(
    case, decoder, params, rows, masks, their_gradients, name, compute, check_difference
):
    ours = jax_side.gradients(decoder(**compute), params, rows, masks)
    check_difference(name, relative(ours, their_gradients))


def distance(rows, others, usable):
    """The root mean square of the differences of logits, over that of the others."""
    a, b = (np.concatenate([row[:, :usable] for row in x]) for x in (rows, others))
    return np.sqrt(((a - b) ** 2).mean() / (b**2).mean())


def test_logits_in_bfloat16(case, folder, decoder, rows, check_difference):
    """Beside float32 with the same, rounded parameters; torch's own bfloat16 is as far from it."""
    model = decoder(dtype="bfloat16", param_dtype="bfloat16")
    ours = jax_side.logits(model, jax_side.import_params(model, folder), rows)
    exact = torch_side.logits(torch_side.load_rounded(folder), rows)
    theirs = torch_side.logits(torch_side.load(folder, torch.bfloat16), rows)
    found = distance(ours, exact, case.vocab_size)
    assert found <= 1.5 * distance(theirs, exact, case.vocab_size)
    check_difference("bfloat16", found)
