"""Tokens through the sampler's cache: prefilled in pieces, decoded at different offsets."""

import jax
import numpy as np
import pytest

from parity import jax_side, torch_side
from parity.random_numbers import random_rows

PROMPTS = (3, 30, 9, 18)
RESULTS = ((5, 1, 20, 8), (2, 17, 4, 1))  # of tools, after the first and second turn
NEW = 12
BLOCK = 16  # a cache of several blocks


@pytest.fixture(scope="module")
def prompts(case):
    return random_rows(f"{case.name}: prompts", PROMPTS, case.vocab_size)


@pytest.fixture(scope="module")
def results(case):
    return [
        random_rows(f"{case.name}: results {lengths}", lengths, case.vocab_size)
        for lengths in RESULTS
    ]


@pytest.fixture(scope="module")
def samplers(decoder, params):
    """By how many positions of the cache are attended to at once: all of them, or a block."""
    return {
        block: jax_side.Sampler(decoder(attention_block=block), params) for block in (512, BLOCK)
    }


def difference(drawn, logits):
    """The largest between the sampler's log-probabilities and entropies and a full pass's."""
    found = []
    for one, of_row in zip(drawn, logits, strict=True):
        log_probs = np.asarray(jax.nn.log_softmax(of_row[one.places - 1]))
        picked = log_probs[np.arange(len(one.places)), one.row[one.places]]
        entropies = -(np.exp(log_probs) * log_probs).sum(-1)
        found += [np.abs(one.log_probs - picked).max(), np.abs(one.entropies - entropies).max()]
    return max(found)


def usable(case, logits):
    return [row[:, : case.vocab_size] for row in logits]


@pytest.mark.parametrize(("block", "name"), [(512, "decode"), (BLOCK, "decode, blocks")])
def test_decoding_is_the_full_pass(
    case, peer, decoder, params, samplers, prompts, results, block, name, check_difference
):
    drawn = samplers[block].draw(prompts, results, NEW, 1.0)
    rows = [one.row for one in drawn]
    assert all((row < case.vocab_size).all() for row in rows)
    ours = usable(case, jax_side.logits(decoder(attention_block=block), params, rows))
    theirs = usable(case, torch_side.logits(peer, rows))
    check_difference(name, max(difference(drawn, ours), difference(drawn, theirs)))


def test_greedy_tokens_are_those_of_generate(case, peer, samplers, prompts, check_tokens):
    new = 40
    theirs = torch_side.greedy(peer, case, prompts, new)
    assert len({tuple(row) for row in theirs}) == len(prompts)  # they don't all say the same
    equal = []
    for sampler in samplers.values():
        drawn = sampler.draw(prompts, [], new, 0.0)
        equal.append(sum((a.row[-new:] == b).sum() for a, b in zip(drawn, theirs, strict=True)))
    check_tokens(min(equal), theirs.size)


def test_decoding_in_bfloat16(case, folder, decoder, prompts, results, check_difference):
    """Beside our own full pass in bfloat16."""
    model = decoder(dtype="bfloat16", param_dtype="bfloat16", attention_block=BLOCK)
    params = jax_side.import_params(model, folder)
    drawn = jax_side.Sampler(model, params).draw(prompts, results, NEW, 1.0)
    full = jax_side.logits(model, params, [one.row for one in drawn])
    check_difference("bfloat16, decode", difference(drawn, usable(case, full)))
