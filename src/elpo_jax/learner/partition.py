"""Which parameters are trained: the adapters where there are any, else all of them."""

from typing import Any

import jax

Params = Any  # a nested dict of arrays, or of anything with the same structure

ADAPTERS = ("lora_a", "lora_b")


def split(params: Params) -> tuple[Params, Params]:
    """(trained, frozen): `params` twice, each with None where the other has the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    has_adapters = any(_is_adapter(path) for path, _ in leaves)

    def chosen(wanted: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if (_is_adapter(path) or not has_adapters) == wanted else None,
            params,
        )

    return chosen(True), chosen(False)


def merge(trained: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def _is_adapter(path: tuple[Any, ...]) -> bool:
    return getattr(path[-1], "key", None) in ADAPTERS
