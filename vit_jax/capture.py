"""Looking inside: the attention maps and the embeddings of any model.

Rollout: Abnar and Zuidema 2020, arXiv:2005.00928. Upstream: vit_pytorch/recorder.py and vit_pytorch/extractor.py.
Differs from upstream: a model is neither wrapped nor changed; layers come first (upstream: second); every model that
attends has its maps (upstream: those with `vit.Attention`, and None for the rest).
Axes: l layers, b batch, h heads, i query, j key, n tokens.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

MAPS, NAME = "intermediates", "attn"  # where attention modules sow their maps, and as what


def attention(
    model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any
) -> Float[Array, "l b ..."] | OrderedDict[str, Float[Array, "b ..."]]:
    """The attention maps that `model.apply(variables, *inputs, **kwargs)` makes, in the order in which it makes them.

    Where all have one shape, an array (l, b, h, i, j); models that attend in windows have the windows' axes before h,
    or in b. Otherwise a dict from each layer's path ("transformer/attn_0"; "looped/attn_0/1" for the second of several
    maps of one layer) to its map. It is an OrderedDict because jit sorts the keys of others, "attn_10" before "attn_2".

    A map is what weighs the values: rows over keys that sum to one, unless a model has it otherwise after its softmax,
    as its file says. Raises ValueError for a model without maps.
    """
    order, counts = [], {}  # (path, number) of every map, and how many each layer has made

    def watch(call, args, kwargs, context):
        out, module = call(*args, **kwargs), context.module
        sown = module.get_variable(MAPS, NAME) if module.scope is not None else None
        if isinstance(sown, tuple):  # else a submodule's, that has the same name
            order.extend((module.path, i) for i in range(counts.get(module.path, 0), len(sown)))
            counts[module.path] = len(sown)
        return out

    variables = {name: tree for name, tree in variables.items() if name != MAPS}  # sown ones would stay in front
    with nn.intercept_methods(watch):
        _, collected = model.apply(variables, *inputs, mutable=[MAPS], **kwargs)
    if not order:
        raise ValueError(f"{type(model).__name__} makes no attention maps: expected a model that attends")
    sown = flatten_dict(collected[MAPS])
    maps = OrderedDict(
        ("/".join([*path, str(i)] if counts[path] > 1 else path), sown[*path, NAME][i]) for path, i in order
    )
    same_shape = len({attn.shape for attn in maps.values()}) == 1
    return jnp.stack(list(maps.values())) if same_shape else maps


def embeddings(model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Any:
    """The input of the head of `model`: its output with `num_classes=0` and the same variables.

    Tokens (b, n, d) for most models, the last map of features (b, h, w, d) for those that go through stages,
    and pooled features (b, d) or several outputs for a few: each model's docstring says which. Raises ValueError for a
    model that has no `num_classes`: what it returns is all that it has, and `apply` gives that.
    """
    if not hasattr(model, "num_classes"):
        raise ValueError(
            f"{type(model).__name__} has no num_classes: expected a classifier, whose head can be left out"
        )
    return model.clone(num_classes=0).apply(variables, *inputs, **kwargs)


def rollout(maps: Array | Mapping[str, Array]) -> Float[Array, "b n n"]:
    """How much of each input token is in each output token, as far as attention moves it: rows that sum to one.

    `maps` (l, b, h, n, n) is what `attention` gives: heads are averaged, the identity stands for the residual, rows are
    normalised, and layers multiplied, each counting as one after the other, in float32. It means something where the
    rows of `maps` sum to one. Raises ValueError unless all layers have maps of all tokens by all tokens.
    """
    shapes = sorted({m.shape for m in maps.values()}) if isinstance(maps, Mapping) else [maps.shape]
    if len(shapes) > 1 or len(shapes[0]) != 5 or shapes[0][3] != shapes[0][4]:
        raise ValueError(f"maps of shape {', '.join(map(str, shapes))}: expected one array (layers, b, heads, n, n)")
    identity = jnp.eye(maps.shape[-1], dtype=jnp.float32)[None]
    rolled = identity
    for attn in maps:
        mixed = attn.astype(jnp.float32).mean(axis=1) + identity
        rolled = jnp.einsum("bij,bjk->bik", mixed / mixed.sum(axis=-1, keepdims=True), rolled)
    return rolled
