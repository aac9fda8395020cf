"""Rows of `vaat`, its ViT and its AST."""

import math

from tests.cases.case import INPUT, OBLONG, OBLONG_INPUT, Case, Inner, draw_blocks, draw_image
from tests.cases.vat import (
    CONDITIONS,
    DENSE,
    ENTRANCE,
    GIVEN,
    HIDDENS,
    IDLE,
    IDLE_HEAD,
    NORM,
    PLAIN,
    TOKENS,
    TRUNK,
    blocks_from,
    distinct,
    draw_actions,
    paths,
)
from tests.cases.vat import FROZEN as FROZEN_VIT
from tests.cases.vat import HEAD as VIT_HEAD
from tests.cases.vat import SMALL as VAT_SMALL


def channels_third(make):
    """Views (b, v, ..., h, w, c) in upstream's layout, (b, v, c, ..., h, w)."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda video, *args, **kwargs: forward(video.movedim(-1, 2), *args, **kwargs)
        return module

    return repaired


def without_views(make):
    """Images and sound without an axis of views, with which upstream crashes: an axis of length 1 is added."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda video, sound, **kwargs: forward(video[:, None], sound[:, None], **kwargs)
        return module

    return repaired


def audio_views(make):
    """Embeddings of audio views: upstream adds the first one to the first sample, and so on."""
    from unittest import mock

    from einops import rearrange

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward

        def by_view(x, pattern, **sizes):
            return x[:, None] if x is module.audio_view_emb else rearrange(x, pattern, **sizes)

        def with_views(*args, **kwargs):
            with mock.patch("vit_pytorch.vaat.rearrange", by_view):
                return forward(*args, **kwargs)

        module.forward = with_views
        return module

    return repaired


def frequency_first(make):
    """`accept_spec_time_first=False`, which upstream ignores."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda spec: forward(spec.mT)
        return module

    return repaired


def cut(video: tuple[int, ...], sound: tuple[int, ...]):
    """A call with video and sound of these shapes, cut from one array, and the shape of that array."""
    pixels, samples = math.prod(video), math.prod(sound)

    def call(forward, x, **kwargs):
        batch = x.shape[0]
        return forward(x[:, :pixels].reshape(batch, *video), x[:, pixels:].reshape(batch, *sound), **kwargs)

    return (2, pixels + samples), call


VAAT, VIT, AST = (("vaat", "vaat:VAAT"), ("vaat:ViT", "vaat:ViT"), ("vaat:AST", "vaat:AST"))
LISTENER = dict(dim=16, depth=2, heads=2, dim_head=6, mlp_dim=30)
HEARD = LISTENER | dict(num_classes=5)
SPEC = LISTENER | dict(accept_spec=True, patch_size=(3, 4), heads=1, dim_head=16)
FREQUENCY_FIRST = SPEC | dict(accept_spec_time_first=False)
WINDOW = HEARD | dict(spec_n_fft=17, spec_win_length=9, spec_hop_length=4, spec_pad=3, spec_power=1, patch_size=(4, 8))
UNCENTRED = WINDOW | dict(spec_center=False, num_register_tokens=0)
REPLICATED = HEARD | dict(spec_win_length=None, spec_n_fft=20, spec_power=0.5, spec_pad_mode="replicate", patch_size=5)
OBLONG_VIT = PLAIN | OBLONG | dict(num_classes=0)

SMALL = VAT_SMALL | dict(vit=Inner(*VIT, TRUNK), ast=Inner(*AST, HEARD))
LAYERS = dict(depth=3, vit_layer_indices=(2, 0, 1), ast_layer_indices=(1, 1, 2))
VIDEO = SMALL | LAYERS | dict(time_seq_len=3, num_image_views=2, num_audio_views=3, ast=HEARD)
SPECS = SMALL | CONDITIONS | dict(vit=TRUNK, ast=SPEC | dict(num_classes=3))

AST_HEAD = paths("ast", mlp_head=DENSE)
BLOCK_1 = VIT_HEAD + blocks_from(1, "vit") + AST_HEAD + paths("ast", final_norm=NORM) + blocks_from(1, "ast")
FROZEN = (*paths("ast/to_patch_tokens", **ENTRANCE), "ast/register_tokens", *blocks_from(0, "ast"))
FROZEN += AST_HEAD + paths("ast", final_norm=NORM) + FROZEN_VIT
ONE_HEAD = tuple(path for path in BLOCK_1 if not path.startswith("ast/transformer/attn_1/to_out/"))
IMAGES, MOVIE = (2, 8, 8, 3), (2, 3, 8, 8, 3)
FREEZE = dict(freeze_vit=True, freeze_ast=True)


def vaat(parameters, kwargs, video, sound, note="", **others):
    """A row; its attention maps are those of two blocks of each encoder and three of each of two layers."""
    shape, call = cut(video, sound)
    usual = dict(maps=10, unused=BLOCK_1, repairs=(distinct, audio_views, channels_third))
    return Case(*VAAT, shape, parameters, kwargs, note, call=call, **usual | others)


CASES = [
    vaat(29878, SMALL, IMAGES, (1, 400)),
    vaat(35183, VIDEO, MOVIE, (3, 400), "video", maps=13, unused=VIT_HEAD + AST_HEAD),
    vaat(27346, SPECS, IMAGES, (2, 9, 8), "conditions", keyword_inputs=GIVEN, unused=ONE_HEAD, **HIDDENS),
    vaat(27346, SPECS, IMAGES, (2, 9, 8), "no-conditions", unused=ONE_HEAD + IDLE),
    vaat(29878, SMALL, IMAGES, (2, 400), "loss", keyword_inputs=dict(actions=(2, 7, 6))),
    vaat(29878, SMALL, (8, 8, 3), (400,), "one-view", repairs=(distinct, channels_third, without_views)),
    vaat(29878, SMALL, IMAGES, (1, 400), "frozen", options=FREEZE, unused=FROZEN),
    Case(*VIT, INPUT, 10867, PLAIN, maps=2),
    Case(*VIT, OBLONG_INPUT, 9606, OBLONG_VIT, "oblong-tokens", **TOKENS),
    Case(*AST, (2, 400), 8645, HEARD, maps=2),
    Case(*AST, (2, 20, 9), 4102, SPEC, "spectrogram", maps=2),
    Case(*AST, (2, 9, 20), 4102, FREQUENCY_FIRST, "frequency-first", maps=2, repairs=(frequency_first,)),
    Case(*AST, (2, 100), 4613, WINDOW, "window", maps=2),
    Case(*AST, (2, 100), 4549, UNCENTRED, "uncentred", maps=2),
    Case(*AST, (2, 100), 4487, REPLICATED, "replicated", maps=2),
    Case(*AST, (2, 400), 8645, HEARD, "hiddens", maps=2, unused=IDLE_HEAD, **HIDDENS),
]

PUBLISHED = {}  # the sizes of upstream's example are not published


def example(model) -> tuple[int, int]:
    """Shape of a quarter of a second of sound."""
    return (1, 4000)


def draw_ast(rng):
    """Randomly drawn arguments of an AST, and a number of samples for it."""
    n_fft, patch = rng.randint(10, 40), (rng.randint(1, 5), rng.randint(1, 9))
    kwargs = dict(spec_n_fft=n_fft, spec_win_length=rng.randint(6, n_fft), spec_hop_length=rng.randint(2, 9))
    kwargs |= dict(spec_pad=rng.randint(0, 3), spec_center=rng.random() < 0.5, spec_power=rng.choice((1, 2, 3)))
    kwargs |= draw_blocks(rng) | dict(patch_size=patch, num_register_tokens=rng.randint(0, 4))
    return kwargs | dict(num_classes=rng.randint(2, 9)), rng.randint(150, 300)


def draw(rng):
    image, shape = draw_image(rng)
    trunk = image | draw_blocks(rng) | dict(num_register_tokens=rng.randint(0, 3))
    yield Case(*VIT, shape, 0, trunk | dict(pool=rng.choice(("cls", "mean"))))
    ast, samples = draw_ast(rng)
    yield Case(*AST, (2, samples), 0, ast)
    depths = dict(vit_layer_indices=trunk["depth"], ast_layer_indices=ast["depth"])
    sizes, given = draw_actions(rng, depths)
    views, sounds = rng.randint(1, 2), rng.randint(1, 2)
    sizes |= dict(vit=Inner(*VIT, trunk), ast=ast, num_image_views=views, num_audio_views=sounds)
    flat, call = cut((views, *shape[1:]), (sounds, samples))
    yield Case(*VAAT, flat, 0, sizes, keyword_inputs=given, call=call, repairs=(distinct, audio_views, channels_third))
