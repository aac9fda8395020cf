"""Rows of `cct_3d`."""

from tests.cases.case import Case
from tests.cases.cct import POOLED, SIZES, tokens


def once(make):
    """`seq_pool`, `dropout_rate` and `attention_dropout`, which upstream passes twice: the classifier is made again."""
    from vit_pytorch.cct_3d import TransformerClassifier

    def repaired(*, seq_pool=True, dropout_rate=0.0, attention_dropout=0.1, **kwargs):
        module = make(**kwargs)
        given = dict(seq_pool=seq_pool, dropout_rate=dropout_rate, attention_dropout=attention_dropout)
        module.classifier = TransformerClassifier(**kwargs, **given, sequence_length=module.classifier.sequence_length)
        return module

    return repaired


CCT = ("cct_3d", "cct_3d:CCT")
CONV = dict(kernel_size=3, stride=1, padding=1, stochastic_depth_rate=0.0)
PLAIN = SIZES | CONV | dict(img_size=8, num_frames=4)
LEARNED = PLAIN | dict(img_size=(6, 10), n_input_channels=1, n_conv_layers=2, positional_embedding="learnable")
UNEVEN = PLAIN | dict(kernel_size=4, stride=2, padding=2, positional_embedding="none", embedding_dim=27, mlp_ratio=1.3)
POOL = dict(pooling_kernel_size=2, pooling_stride=1, pooling_padding=0, num_heads=1)
FRAMES = dict(num_frames=9, frame_kernel_size=4, frame_stride=2, frame_padding=1)
FRAME_POOL = dict(frame_pooling_kernel_size=3, frame_pooling_stride=2, frame_pooling_padding=0)
HALF = dict(num_frames=5, frame_kernel_size=5, frame_pooling_kernel_size=3)

CASES = [
    Case(*CCT, (2, 4, 8, 8, 3), 11742, PLAIN, repairs=(once,), **POOLED),
    Case(*CCT, (2, 4, 6, 10, 1), 53574, LEARNED, "oblong-learned", **POOLED),
    Case(*CCT, (2, 9, 8, 8, 3), 15412, UNEVEN | POOL | FRAMES | FRAME_POOL, "uneven-no-positions", **POOLED),
    Case(*CCT, (2, 5, 8, 8, 3), 13038, PLAIN | HALF, "half-padding", **POOLED),
    Case(*CCT, (2, 4, 8, 8, 3), 11741, PLAIN | dict(seq_pool=False), "class-token", maps=2, repairs=(once,)),
    Case(*CCT, (2, 4, 8, 8, 3), 11592, PLAIN | dict(num_classes=0), "tokens", maps=2, repairs=(tokens,)),
]

# Counts of upstream's functions, which do not depend on the size of the video.
_FUNCTIONS = {2: 338153, 4: 536553, 6: 3436521, 7: 3962857, 8: 4489193, 14: 21109481, 16: 24065513}
PUBLISHED = {f"cct_3d/cct_{layers}": (count, 0) for layers, count in _FUNCTIONS.items()}


def example(model):
    return (1, model.num_frames, model.image_size, model.image_size, model.channels)


def draw(rng):
    kernel, frame_kernel = rng.randint(2, 5), rng.randint(1, 4)
    conv = dict(kernel_size=kernel, stride=rng.randint(1, 2), padding=rng.randint(0, kernel // 2))
    conv |= dict(frame_kernel_size=frame_kernel, frame_stride=rng.randint(1, 2))
    conv |= dict(frame_padding=rng.choice((None, rng.randint(0, frame_kernel // 2))))
    pool = dict(pooling_kernel_size=rng.randint(2, 3), pooling_stride=2, pooling_padding=rng.randint(0, 1))
    frame_pool = rng.randint(1, 3)
    pool |= dict(frame_pooling_kernel_size=frame_pool, frame_pooling_stride=rng.randint(1, 2))
    pool |= dict(frame_pooling_padding=rng.choice((None, rng.randint(0, frame_pool // 2))))
    heads = rng.randint(1, 4)
    sizes = dict(num_heads=heads, embedding_dim=heads * rng.randint(5, 9), num_layers=rng.randint(0, 2))
    frames, height, width, channels = rng.randint(6, 9), rng.randint(9, 14), rng.randint(9, 14), rng.randint(1, 3)
    video = dict(num_frames=frames, img_size=(height, width), n_input_channels=channels, num_classes=rng.randint(2, 12))
    positions = rng.choice(("sine", "learnable", "none"))
    rest = dict(mlp_ratio=rng.choice((0.5, 1.7, 3.0)), positional_embedding=positions)
    yield Case(*CCT, (2, frames, height, width, channels), 0, video | conv | pool | sizes | rest, **POOLED)
