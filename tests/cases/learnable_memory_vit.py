"""Rows of `learnable_memory_vit`."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, Inner, build, draw_blocks, draw_image
from tests.cases.repairs import tokens


def adapter_tokens(make):
    """`num_classes=0`: the model returns all tokens, the one that reads the memories first."""
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(**kwargs)
        module.mlp_head = nn.Identity()
        encoded, forward = [], module.forward
        module.vit.transformer.register_forward_hook(lambda module, args, output: encoded.append(output))
        module.forward = lambda images: (forward(images), encoded.pop())[1]
        return module

    return repaired


MEMORY = ("learnable_memory_vit", "learnable_memory_vit:ViT")
ADAPTER = ("learnable_memory_vit:Adapter", "learnable_memory_vit:Adapter")
PLAIN = IMAGE | BLOCKS
MEAN = PLAIN | dict(pool="mean", heads=1, dim_head=24)
TOKENS = PLAIN | OBLONG | dict(num_classes=0)
TRUNK, OBLONG_TRUNK = Inner(*MEMORY, PLAIN), Inner(*MEMORY, PLAIN | OBLONG)
ADAPTED, ADAPTED_TOKENS = dict(vit=TRUNK), dict(vit=OBLONG_TRUNK, num_memories_per_layer=3, num_classes=0)

_trunk = jax.eval_shape(build(TRUNK).init, jax.random.key(0), jnp.zeros(INPUT))
FROZEN = tuple("/".join(("vit", *path)) for path in flatten_dict(_trunk["params"]))

CASES = [
    Case(*MEMORY, INPUT, 10741, PLAIN, maps=2),
    Case(*MEMORY, INPUT, 10741, MEAN, "mean-one-head", maps=2),
    Case(*MEMORY, OBLONG_INPUT, 9432, TOKENS, "oblong-tokens", maps=2, repairs=(tokens,)),
    Case(*ADAPTER, INPUT, 11343, ADAPTED, maps=2, unused=FROZEN),
    Case(*ADAPTER, OBLONG_INPUT, 9773, ADAPTED_TOKENS, "tokens", maps=2, unused=FROZEN, repairs=(adapter_tokens,)),
]


def _published(count: int, patch: int) -> tuple[int, float]:
    """Count of the authors' ViT, plus two norms around the patch projection, minus the biases of q, k and v."""
    return count + 2 * 3 * patch**2 + 2 * 768 - 12 * 3 * 768, 0.0


PUBLISHED = {
    "learnable_memory_vit/b16": _published(86_567_656, 16),
    "learnable_memory_vit/b32": _published(88_224_232, 32),
}


def draw(rng):
    image, shape = draw_image(rng)
    trunk = image | draw_blocks(rng)
    yield Case(*MEMORY, shape, 0, trunk | dict(pool=rng.choice(("cls", "mean"))))
    adapter = dict(num_memories_per_layer=rng.randint(1, 12), num_classes=rng.randint(2, 9))
    yield Case(*ADAPTER, shape, 0, dict(vit=Inner(*MEMORY, trunk)) | adapter)
