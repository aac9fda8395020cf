"""Rows of `levjepa_nd:NDTransformer`."""

from tests.cases.case import Case

ND = ("levjepa_nd:NDTransformer", "levjepa_nd:NDTransformer")
SIZES = dict(dim=24, depth=2, heads=3, dim_head=10, mlp_dim=40)
PLAIN = SIZES | dict(ndim=2, input_shape=16, patch_size=4)
VOLUME = SIZES | dict(ndim=3, input_shape=(4, 6, 8), patch_size=(2, 3, 2), causal_dims=(0, 2), channels=2)
SERIES = SIZES | dict(ndim=1, input_shape=(24,), patch_size=3, causal_dims=0, channels=2)
OPEN = SIZES | dict(ndim=4, input_shape=4, patch_size=2, causal_dims=(), rotary_max_freq=6.0, channels=1, dim_head=8)


def dense(make):
    """Upstream's dense attention, in place of the compiled kernel that it prefers."""
    import vit_pytorch.levjepa_nd

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward

        def without_kernel(*args, **keywords):
            supported = vit_pytorch.levjepa_nd.flex_attention_supported
            vit_pytorch.levjepa_nd.flex_attention_supported = lambda device: False
            try:
                return forward(*args, **keywords)
            finally:
                vit_pytorch.levjepa_nd.flex_attention_supported = supported

        module.forward = without_kernel
        return module

    return repaired


def channels_last(make):
    """Sequences are (b, n, c) for both models."""

    def repaired(**kwargs):
        module = make(**kwargs)
        forward = module.forward
        module.forward = lambda x, **keywords: forward(x.mT, **keywords)
        return module

    return repaired


CASES = [
    Case(*ND, (2, 16, 16, 3), 11120, PLAIN, maps=2, repairs=(dense,)),
    Case(*ND, (2, 4, 6, 8, 2), 10520, VOLUME, "volume", maps=2, repairs=(dense,)),
    Case(*ND, (2, 24, 2), 10070, SERIES, "series", maps=2, repairs=(dense, channels_last)),
    Case(*ND, (2, 4, 4, 4, 4, 1), 9168, OPEN, "four-axes", maps=2, repairs=(dense,)),
]

PUBLISHED = {}


def draw(rng):
    ndim = rng.randint(1, 3)
    patch = [rng.randint(2, 3) for _ in range(ndim)]  # a norm of two or three numbers returns little more than signs
    shape = [side * rng.randint(1, 3) for side in patch]
    array = dict(ndim=ndim, input_shape=tuple(shape), patch_size=tuple(patch), channels=rng.randint(2, 3))
    causal = tuple(axis for axis in range(ndim) if rng.random() < 0.5)
    blocks = dict(dim=8 * rng.randint(2, 6), depth=rng.randint(1, 3), heads=rng.randint(1, 4))
    blocks |= dict(dim_head=rng.choice((6, 7, 16)), mlp_dim=rng.randint(5, 60), rotary_max_freq=rng.uniform(2, 12))
    repairs = (dense, channels_last) if ndim == 1 else (dense,)
    input_shape = (2, *shape, array["channels"])
    yield Case(*ND, input_shape, 0, array | blocks | dict(causal_dims=causal), repairs=repairs)


def example(model):
    return (1, *model.input_shape, model.channels)
