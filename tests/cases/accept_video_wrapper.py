"""Rows of `accept_video_wrapper`."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from tests.cases import wwt
from tests.cases.case import BLOCKS, IMAGE, OBLONG, OBLONG_INPUT, Case, Inner, build, draw_blocks, draw_image


def encode_forward(make):
    """`forward_function="encode"`: the tokens of the last block, which upstream's `Extractor` returns beside logits."""

    def repaired(*, image_net, **kwargs):
        def encode(images):
            encoded = []
            hook = image_net.transformer.register_forward_hook(lambda module, args, output: encoded.append(output))
            image_net(images)
            hook.remove()
            return encoded.pop()

        image_net.encode = encode
        return make(image_net=image_net, **kwargs)

    return repaired


def flat(path: str, inner: Inner, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Paths of the parameters of the module at `path`."""
    params = jax.eval_shape(build(inner).init, jax.random.key(0), jnp.zeros(shape))["params"]
    return tuple("/".join((path, *names)) for names in flatten_dict(params))


WRAPPER = ("accept_video_wrapper", "accept_video_wrapper:AcceptVideoWrapper")
INPUT = (2, 3, 16, 16, 3)
VIT = Inner("vit", "vit:ViT", IMAGE | BLOCKS | dict(depth=1))
PLAIN = dict(image_net=VIT)
PLACED = PLAIN | dict(add_time_pos_emb=True, dim_emb=5, time_seq_len=4)
# As in upstream's example: tokens that are projected, get temporal positions and go through MOSS.
JOINED = PLAIN | dict(
    forward_function="encode", dim_emb=24, proj_embed_to_dim=12, add_time_pos_emb=True, time_seq_len=3
)
JOINED |= dict(moss=dict(dim=12, hidden_dim=8, causal=True))
HEAD = tuple(f"image_net/mlp_head/{leaf}" for leaf in ("kernel", "bias"))
# Logits, and a channels-first map with 24 channels.
MAPS = Inner(*wwt.HEAD, dict(image_size=16, patch_size=4, channel_first=True))
PAIR = Inner(*wwt.WWT, IMAGE | BLOCKS | dict(depth=1, num_slots=3, task_heads=MAPS))
FIRST = dict(image_net=PAIR, output_pos_add_pos_emb=1, embed_is_channel_first=True, dim_emb=24)
FIRST |= dict(add_time_pos_emb=True, time_seq_len=3)
OBLONG_VIT = Inner("vit", "vit:ViT", VIT.kwargs | OBLONG | dict(num_classes=0))
MOSS = Inner("vivit_with_moss:MOSS", "vivit_with_moss:MOSS", dict(dim=24, hidden_dim=8))
FROZEN = dict(image_net=OBLONG_VIT, dim_emb=24, proj_embed_to_dim=24, moss=MOSS)
OF_VIT = flat("image_net", OBLONG_VIT, OBLONG_INPUT)
NO_GRAD = dict(eval_with_no_grad=True)

CASES = [
    Case(*WRAPPER, INPUT, 6333, PLAIN, maps=1),
    Case(*WRAPPER, INPUT, 6353, PLACED, "placed", maps=1),
    Case(*WRAPPER, INPUT, 10265, JOINED, "joined", maps=1, repairs=(encode_forward,), unused=HEAD),
    Case(*WRAPPER, INPUT, 11399, FIRST, "channels-first", maps=2, unused=wwt.unread("image_net/layer_0_mlp_0")),
    Case(*WRAPPER, (2, 3, 8, 12, 1), 11200, FROZEN, "frozen", maps=1, options=NO_GRAD, unused=OF_VIT),
]

PUBLISHED = {}


def draw(rng):
    image, (batch, *shape) = draw_image(rng)
    time, blocks = rng.randint(1, 4), draw_blocks(rng)
    net = Inner("vit", "vit:ViT", image | blocks | dict(num_classes=0))
    kwargs = dict(image_net=net, dim_emb=blocks["dim"], add_time_pos_emb=rng.random() < 0.5, time_seq_len=4)
    kwargs |= dict(moss=dict(dim=9, hidden_dim=7, causal=rng.random() < 0.5), proj_embed_to_dim=9)
    yield Case(*WRAPPER, (batch, time, *shape), 0, kwargs)
