"""The decoder beside transformers' torch models, by numbers that `make parity` wrote down."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import shapes_of, write

from elpo_jax.config import MeshConfig
from elpo_jax.policy.architecture import Compute
from elpo_jax.policy.families import architecture_of
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.sharding import make_mesh
from elpo_jax.policy.weights import load_params
from parity.random_numbers import random_tensors

GOLDEN = Path(__file__).parent / "golden" / "families.json"
ENTRIES = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_logits_and_greedy_tokens_are_those_of_torch(entry, tmp_path):
    mesh = make_mesh(MeshConfig())
    architecture = architecture_of(entry["config"], entry["usable_vocab"])
    model = Decoder(architecture, Compute(), mesh)
    heads = {"head_dim": architecture.head_dim, "num_key_value_heads": architecture.num_kv_heads}
    tensors = random_tensors(shapes_of({**entry["config"], **heads}))
    params = load_params(write(tmp_path, entry["config"], tensors), model, mesh)

    prompts = [len(row) for row in entry["rows"]]
    tokens = np.zeros((len(prompts), 64), np.int32)
    for i, row in enumerate(entry["rows"]):
        whole = row + entry["greedy"][i]
        tokens[i, : len(whole)] = whole
    logits = np.asarray(jax.jit(model.apply)({"params": params}, tokens))

    usable = entry["usable_vocab"] or architecture.vocab_size
    found = [logits[row, position, :usable] for row, position in entry["places"]]
    np.testing.assert_allclose(found, entry["logits"], atol=1e-4)
    assert (logits[..., usable:] == np.finfo(np.float32).min).all()
    for i, greedy in enumerate(entry["greedy"]):
        drawn_at = slice(prompts[i] - 1, prompts[i] - 1 + len(greedy))
        assert logits[i, drawn_at].argmax(-1).tolist() == greedy
