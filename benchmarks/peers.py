"""The peers: transformers' Qwen3 on eager PyTorch, with a copy of our parameters.

The ordinary environment has no torch; `make bench` makes one that has.
"""

from typing import Any

import jax
import numpy as np
import torch
import transformers
from torch.nn import functional

from elpo_jax.config import OptimizerConfig, PolicyConfig
from elpo_jax.learner.base import LossSettings

Params = Any


def torch_device() -> str | None:
    """The torch device that matches JAX's; None where there is none."""
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    return "cuda" if backend == "gpu" and torch.cuda.is_available() else None


def make_model(policy: PolicyConfig, vocab_size: int, params: Params, device: str) -> Any:
    """A `Qwen3ForCausalLM` that computes what our decoder computes with `params`."""
    config = transformers.Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=policy.d_model,
        intermediate_size=policy.mlp_dim,
        num_hidden_layers=policy.num_layers,
        num_attention_heads=policy.num_heads,
        num_key_value_heads=policy.num_kv_heads,
        head_dim=policy.head_dim,
        rms_norm_eps=policy.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": policy.rope_theta},
        tie_word_embeddings=policy.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.Qwen3ForCausalLM(config).to(getattr(torch, policy.dtype))
    model.load_state_dict(state_dict(policy, params))
    return model.to(device)


def state_dict(policy: PolicyConfig, params: Params) -> dict[str, torch.Tensor]:
    """Our parameters under transformers' names; its kernels are [outputs, inputs]."""
    params = jax.device_get(params)
    layers = params["layers"]
    copied = {
        "model.embed_tokens.weight": params["embedding"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    head = params["embedding"]["embedding"].T if policy.tie_embeddings else params["head"]["kernel"]
    copied["lm_head.weight"] = head.T
    kernels = {
        "self_attn.q_proj": ("query", policy.d_model),
        "self_attn.k_proj": ("key", policy.d_model),
        "self_attn.v_proj": ("value", policy.d_model),
        "self_attn.o_proj": ("output", policy.num_heads * policy.head_dim),
        "mlp.gate_proj": ("gate", policy.d_model),
        "mlp.up_proj": ("up", policy.d_model),
        "mlp.down_proj": ("down", policy.mlp_dim),
    }
    norms = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
        "self_attn.q_norm": "query_norm",
        "self_attn.k_norm": "key_norm",
    }
    for i in range(policy.num_layers):
        for theirs, (ours, inputs) in kernels.items():
            kernel = layers[ours]["kernel"][i].reshape(inputs, -1)
            copied[f"model.layers.{i}.{theirs}.weight"] = kernel.T
        for theirs, ours in norms.items():
            copied[f"model.layers.{i}.{theirs}.weight"] = layers[ours]["scale"][i]
    return {name: torch.tensor(np.array(value)) for name, value in copied.items()}


def count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Generator:
    """transformers' `generate` on whole batches."""

    def __init__(self, model: Any):
        self._model = model.eval()

    def __call__(self, prompts: np.ndarray, new: int, temperature: float) -> np.ndarray:
        """Draws `new` tokens after each of int [B, P] prompts; temperature 0 is greedy."""
        draws: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            draws = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        tokens = torch.tensor(prompts, dtype=torch.long, device=self._model.device)
        with torch.inference_mode():
            drawn = self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                min_new_tokens=new,
                max_new_tokens=new,
                **draws,
            )
        return drawn[:, prompts.shape[1] :].cpu().numpy()

    def last_logits(self, tokens: np.ndarray) -> np.ndarray:
        """float [V] after int [T]."""
        with torch.inference_mode():
            rows = torch.tensor(tokens[None], dtype=torch.long, device=self._model.device)
            return self._model(rows).logits[0, -1].float().cpu().numpy()


class Training:
    """Eager training steps with AdamW, clipped by the global norm; our settings, their code."""

    def __init__(self, model: Any, optimizer: OptimizerConfig):
        self._model = model.train()
        self._clip_norm = optimizer.clip_norm
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def cross_entropy_step(self, tokens: np.ndarray) -> tuple[float, float]:
        """One step on int [B, T]; returns loss and gradient norm."""
        tokens = self._tensor(tokens)
        logits = self._model(tokens[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return self._step(loss)

    def policy_step(
        self, tokens: np.ndarray, advantages: np.ndarray, bounds: LossSettings
    ) -> tuple[float, float]:
        """One clipped-surrogate step on int [B, T] and float [B], old log-probs first."""
        tokens = self._tensor(tokens)
        advantage = torch.tensor(advantages, device=self._model.device)[:, None]
        with torch.no_grad():
            old = self._log_probs(tokens)
        ratio = torch.exp(self._log_probs(tokens) - old)
        clipped = torch.clamp(ratio, 1 - bounds.eps_low, 1 + bounds.eps_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        return self._step(loss)

    def _log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self._model(tokens[:, :-1]).logits
        picked = -functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        return picked.reshape(tokens.shape[0], -1)

    def _step(self, loss: torch.Tensor) -> tuple[float, float]:
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        return float(loss.detach()), float(norm)

    def _tensor(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self._model.device)
