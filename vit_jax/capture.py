"""Attention maps, attention rollout, features and block outputs of any model.

Rollout: Abnar and Zuidema 2020, arXiv:2005.00928. Upstream: vit_pytorch/recorder.py and vit_pytorch/extractor.py.
Differs from upstream: the model is neither wrapped nor changed; layers are the first axis (upstream: the second); maps
come from every model with attention (upstream: from models with `vit.Attention`, and None from others).
Axes: l layers, b batch, h heads, i query, j key, n tokens.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

COLLECTION = "intermediates"  # the collection in which modules sow, under these names:
MAP, BLOCK = "attn", "block"  # attention maps, and the outputs of blocks (`vit_jax.layers.sow_block`)


def attention(
    model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any
) -> Float[Array, "l b ..."] | OrderedDict[str, Float[Array, "b ..."]]:
    """Return the attention maps that `model.apply(variables, *inputs, **kwargs)` computes, in order of computation.

    A map holds the weights of the values. Each row sums to one over the keys, unless the model changes its maps after
    the softmax; the docstring of its file then says so.

    Returns:
        An array (l, b, h, i, j) if all maps have the same shape; models with windowed attention have axes for the
            windows before h, or count windows as part of b. Otherwise an OrderedDict from the path of each layer
            ("transformer/attn_0"; "looped/attn_0/1" for the second of several maps of one layer) to its map. It is
            ordered because `jax.jit` sorts the keys of a plain dict, "attn_10" before "attn_2".

    Raises:
        ValueError: if the model computes no attention maps.
    """
    order, counts = [], {}  # (path, number) of every map, and the number of maps of each layer

    def watch(call, args, kwargs, context):
        out, module = call(*args, **kwargs), context.module
        sown = module.get_variable(COLLECTION, MAP) if module.scope is not None else None
        if isinstance(sown, tuple):  # otherwise a dict: the variables of a submodule that is called "attn" too
            order.extend((module.path, i) for i in range(counts.get(module.path, 0), len(sown)))
            counts[module.path] = len(sown)
        return out

    variables = {name: tree for name, tree in variables.items() if name != COLLECTION}  # `sow` would append to old maps
    with nn.intercept_methods(watch):
        _, collected = model.apply(variables, *inputs, mutable=[COLLECTION], **kwargs)
    if not order:
        raise ValueError(f"{type(model).__name__} makes no attention maps: expected a model with attention")
    sown = flatten_dict(collected[COLLECTION])
    maps = OrderedDict(
        ("/".join([*path, str(i)] if counts[path] > 1 else path), sown[*path, MAP][i]) for path, i in order
    )
    same_shape = len({attn.shape for attn in maps.values()}) == 1
    return jnp.stack(list(maps.values())) if same_shape else maps


def embeddings(model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Any:
    """Return the input of the head of `model`: its output with `num_classes=0` and the same variables.

    Most models have tokens (b, n, d), models with stages a last feature map (b, h, w, d), and a few have pooled
    features (b, d) or several outputs. The docstring of each model says which.

    Raises:
        ValueError: if the model has no argument `num_classes`. It then has no head, and `model.apply` gives features.
    """
    if not hasattr(model, "num_classes"):
        raise ValueError(
            f"{type(model).__name__} has no num_classes: expected a classifier, a model with the argument num_classes"
        )
    return model.clone(num_classes=0).apply(variables, *inputs, **kwargs)


class Features(NamedTuple):
    """The features of a classifier, from tokens to logits.

    Attributes:
        tokens: tokens (b, n, d) or, for models in stages, a map (b, h, w, d): the model's output with `num_classes=0`.
        pooled: the input of the last linear layer, (b, d). With several heads, their inputs are concatenated. For
            packed images (rows, images of a row, d).
        logits: the model's output with its head, usually (b, k); None for a model with `num_classes=0`.
        layers: the outputs of the requested blocks, in the order of the request.
    """

    tokens: Any
    pooled: Float[Array, "*b d"]
    logits: Any
    layers: tuple[Any, ...]


def features(
    model: nn.Module, variables: Mapping[str, Any], *inputs: Any, layers: Sequence[int] = (), **kwargs: Any
) -> Features:
    """Return tokens, pooled features, logits and block outputs of a classifier.

    The model runs twice, without and with its head. Under `jax.jit` the compiler merges the common part.

    Args:
        model: a classifier. If it has `num_classes=0`, and thus no head, `pooled` is the input of the linear layer of a
            new head, whose norm has a scale of one.
        variables: the variables of `model`.
        *inputs: the inputs of `model.apply`, usually images (b, H, W, c).
        layers: indices of blocks, in the order in which they run; negative indices count from the end.
        **kwargs: further arguments of `model.apply`.

    Raises:
        ValueError: for a model without `num_classes`, and for a block that does not exist.
    """
    if not hasattr(model, "num_classes"):
        raise ValueError(f"{type(model).__name__} has no num_classes: expected a classifier")
    tokens, blocks, trunk = _run(model.clone(num_classes=0), variables, inputs, kwargs)
    if any(not -len(blocks) <= number < len(blocks) for number in layers):
        raise ValueError(
            f"layers={tuple(layers)}: expected numbers from {-len(blocks)} to {len(blocks) - 1}, "
            f"as {type(model).__name__} has {len(blocks)} blocks"
        )
    classes = model.num_classes or 1
    headed = model.clone(num_classes=classes)
    if not model.num_classes:
        variables = _with_new_head(headed, variables, inputs, kwargs)
    logits, _, calls = _run(headed, variables, inputs, kwargs)
    heads = {path: made for path, made in calls.items() if path not in trunk and _is_linear(made, classes)}
    shape = jax.tree.leaves(logits)[0].shape
    pooled = [
        _pooled([x for x, out in made], shape)
        for path, made in heads.items()
        if not any(path == other[: len(path)] for other in heads if other != path)
    ]
    pooled = jnp.concatenate(pooled, axis=-1)
    return Features(tokens, pooled, logits if model.num_classes else None, tuple(blocks[number] for number in layers))


def _run(model: nn.Module, variables: Mapping[str, Any], inputs: tuple, kwargs: Mapping[str, Any]) -> tuple:
    """Return the output of `model`, the outputs of its blocks, and inputs and outputs of all modules by path."""
    blocks, counts, calls = [], {}, {}

    def watch(call, args, kwargs, context):
        out, module = call(*args, **kwargs), context.module
        outputs = module.get_variable(COLLECTION, BLOCK) if module.scope is not None else None
        if isinstance(outputs, tuple):
            blocks.extend(outputs[counts.get(module.path, 0) :])
            counts[module.path] = len(outputs)
        if args and isinstance(args[0], jax.Array) and isinstance(out, jax.Array):
            calls.setdefault(module.path, []).append((args[0], out))
        return out

    variables = {name: tree for name, tree in variables.items() if name != COLLECTION}
    with nn.intercept_methods(watch):
        out, _ = model.apply(variables, *inputs, mutable=[COLLECTION], **kwargs)
    return out, blocks, calls


def _is_linear(calls: list[tuple[Array, Array]], classes: int) -> bool:
    """Whether every call of a module changes only the last axis, to `classes`."""
    return all(out.shape == (*x.shape[:-1], classes) for x, out in calls)


def _pooled(inputs: list[Array], shape: tuple[int, ...]) -> Array:
    """Average the inputs of a linear layer over its calls, and over tokens if logits are averaged after the layer."""
    means = [x if x.shape[:-1] == shape[:-1] else x.mean(axis=tuple(range(1, x.ndim - 1))) for x in inputs]
    return sum(means) / len(means)


def _with_new_head(model: nn.Module, variables: Mapping[str, Any], inputs: tuple, kwargs: Mapping[str, Any]) -> dict:
    """Add the variables of a head to `variables`: ones for scales, zeros for others."""
    needed = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **kwargs))
    given = flatten_dict(dict(variables))
    new = lambda path, leaf: jnp.full(leaf.shape, 1.0 if path[-1] == "scale" else 0.0, leaf.dtype)
    return unflatten_dict(
        {path: given[path] if path in given else new(path, leaf) for path, leaf in flatten_dict(needed).items()}
    )


def rollout(maps: Array | Mapping[str, Array]) -> Float[Array, "b n n"]:
    """Return the attention rollout: how much of each input token attention carries to each output token.

    Maps are averaged over heads, the identity is added for the residual connection, rows are normalised, and the
    matrices of all layers are multiplied, in float32.

    Args:
        maps: the output of `attention`, (l, b, h, n, n). Rollout is meaningful only if its rows sum to one.

    Returns:
        Matrices (b, n, n) whose rows sum to one.

    Raises:
        ValueError: unless `maps` is one array with maps from all tokens to all tokens.
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
