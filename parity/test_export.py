"""What we write is loaded by transformers and PEFT, and is the same policy there."""

import jax
import numpy as np
import peft
import pytest
import torch

from elpo_jax.config import MeshConfig
from elpo_jax.policy.architecture import LORA_TARGETS, Architecture, Compute, Lora
from elpo_jax.policy.export import save_adapter, save_checkpoint
from elpo_jax.policy.model import Decoder
from elpo_jax.policy.rope import Rope
from elpo_jax.policy.sharding import init_params, make_mesh
from elpo_jax.policy.weights import load_params
from parity import jax_side, torch_side
from parity.cases import Case
from parity.random_numbers import random_rows

NEW = 12
LORA = Lora(3, 6.0, tuple(LORA_TARGETS))
ATOL = 1e-4


@pytest.fixture(scope="module")
def rows(case):
    return random_rows(f"{case.name}: export", (5, 21, 13), case.vocab_size)


def assert_close(case, ours, theirs):
    usable = case.vocab_size
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a[:, :usable], b[:, :usable], atol=ATOL)


def test_an_exported_checkpoint_is_the_one_that_was_imported(
    case, peer, folder, decoder, params, rows, tmp_path
):
    # Small shards, so that the index is read too.
    save_checkpoint(tmp_path / "export", params, decoder(), folder, shard_bytes=10_000)
    again = torch_side.load(tmp_path / "export", torch.float32)
    theirs, ours = peer.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert torch.equal(ours[name], x), name
    for a, b in zip(torch_side.logits(again, rows), torch_side.logits(peer, rows), strict=True):
        np.testing.assert_array_equal(a, b)
    drawn = torch_side.greedy(again, case, rows, NEW)
    np.testing.assert_array_equal(drawn, torch_side.greedy(peer, case, rows, NEW))


@pytest.mark.parametrize("tied", [False, True])
def test_a_policy_from_scratch_is_the_same_in_transformers(tied, tmp_path):
    case = Case("from scratch", "qwen3")
    mesh = make_mesh(MeshConfig())
    architecture = Architecture(
        40, 24, 2, 6, 3, 10, 36, norm_eps=1e-5, tie_embeddings=tied, rope=Rope(300.0)
    )
    model = Decoder(architecture, Compute(), mesh)
    params = init_params(model, jax.random.key(0), mesh)
    save_checkpoint(tmp_path / "export", params, model)
    peer = torch_side.load(tmp_path / "export", torch.float32)
    rows = random_rows("from scratch", (5, 21, 13), 40)
    assert_close(case, jax_side.logits(model, params, rows), torch_side.logits(peer, rows))
    sampler = jax_side.Sampler(model, params, 40)
    ours = [one.row[-NEW:] for one in sampler.draw(rows, (), NEW, 0.0)]
    np.testing.assert_array_equal(ours, torch_side.greedy(peer, case, rows, NEW))


# PEFT asks transformers for something under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_the_same_in_peft_and_merged(case, folder, decoder, rows, tmp_path):
    model = decoder(lora=LORA)
    params = load_params(folder, model, make_mesh(MeshConfig()), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            0.15 * rng.normal(size=x.shape).astype(x.dtype)
            if path[-1].key.startswith("lora_")
            else x
        ),
        params,
    )
    ours = jax_side.logits(model, params, rows)
    save_checkpoint(tmp_path / "merged", params, model, folder)
    assert_close(
        case, ours, torch_side.logits(torch_side.load(tmp_path / "merged", torch.float32), rows)
    )
    save_adapter(tmp_path / "adapter", params, model, str(folder))
    base = torch_side.load(folder, torch.float32)
    plain = torch_side.logits(base, rows)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(case, ours, torch_side.logits(adapted, rows))
    assert max(np.abs(a - b).max() for a, b in zip(ours, plain, strict=True)) > 0.1
