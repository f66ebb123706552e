"""What checkpoints call our parameters, and how they lay them out; import and export read it here.

Checkpoints have a tensor a layer, where ours are stacked along a leading axis L, and keep a product
as [out, in] with the heads in one axis, where ours is [D, H, C] and the like.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ParamPath = tuple[str, ...]  # of a parameter in the tree that `Decoder.init` returns

EMBEDDING: ParamPath = ("embedding", "embedding")
HEAD: ParamPath = ("head", "kernel")


@dataclass(frozen=True)
class Layout:
    """How a tensor lies beside ours.

    Attributes:
      axes: for each axis of the tensor which axes of ours (L not counted) it is made of, the slow
        one first.
    """

    axes: tuple[tuple[int, ...], ...]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's, from that of a layer of ours."""
        return tuple(math.prod(shape[axis] for axis in group) for group in self.axes)

    def to_theirs(self, x: Any) -> Any:
        """A layer of ours, an array of NumPy's or JAX's, as the tensor."""
        return x.transpose(self._order).reshape(self.their_shape(x.shape))

    def to_ours(self, tensor: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `to_theirs`, for a layer of this shape."""
        split = tensor.reshape([shape[axis] for axis in self._order])
        return split.transpose(sorted(range(len(shape)), key=lambda axis: self._order[axis]))

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(axis for group in self.axes for axis in group)


@dataclass(frozen=True)
class Weight:
    """A parameter's counterpart.

    Attributes:
      name: the tensor's, with '{layer}' where each layer has its own.
      layout: of the tensor, or of each layer's.
    """

    name: str
    layout: Layout

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.name

    def of_layer(self, layer: int) -> str:
        return self.name.format(layer=layer)


# Of a layer: our name, theirs, and how many of our axes are contracted and how many result.
_PRODUCTS = {
    "query": ("self_attn.q_proj", 1, 2),
    "key": ("self_attn.k_proj", 1, 2),
    "value": ("self_attn.v_proj", 1, 2),
    "output": ("self_attn.o_proj", 2, 1),
    "gate": ("mlp.gate_proj", 1, 1),
    "up": ("mlp.up_proj", 1, 1),
    "down": ("mlp.down_proj", 1, 1),
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}
_VECTOR = Layout(((0,),))
_LAYER = "model.layers.{layer}."


def _product(inputs: int, outputs: int) -> Layout:
    return Layout((tuple(range(inputs, inputs + outputs)), tuple(range(inputs))))


def _weights() -> dict[ParamPath, Weight]:
    table: dict[ParamPath, Weight] = {
        EMBEDDING: Weight("model.embed_tokens.weight", Layout(((0,), (1,)))),
        ("final_norm", "scale"): Weight("model.norm.weight", _VECTOR),
        HEAD: Weight("lm_head.weight", _product(1, 1)),
    }
    for ours, name in _NORMS.items():
        table["layers", ours, "scale"] = Weight(f"{_LAYER}{name}.weight", _VECTOR)
    for ours, (name, inputs, outputs) in _PRODUCTS.items():
        kernel = Weight(f"{_LAYER}{name}.weight", _product(inputs, outputs))
        table["layers", ours, "kernel"] = kernel
        bias = Layout((tuple(range(outputs)),))
        table["layers", ours, "bias"] = Weight(f"{_LAYER}{name}.bias", bias)
    return table


def _adapters() -> dict[ParamPath, Weight]:
    table: dict[ParamPath, Weight] = {}
    for ours, (name, inputs, outputs) in _PRODUCTS.items():
        prefix = f"base_model.model.{_LAYER}{name}"
        table["layers", ours, "lora_a"] = Weight(f"{prefix}.lora_A.weight", _product(inputs, 1))
        table["layers", ours, "lora_b"] = Weight(f"{prefix}.lora_B.weight", _product(1, outputs))
    return table


WEIGHTS: Mapping[ParamPath, Weight] = _weights()
ADAPTERS: Mapping[ParamPath, Weight] = _adapters()  # by their names in PEFT's files
