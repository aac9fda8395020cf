"""Rows of `cvt`."""

from tests.cases.case import Case
from tests.cases.repairs import feature_map, sized

CVT = ("cvt", "cvt:CvT")
S1 = dict(s1_emb_dim=16, s1_emb_kernel=5, s1_emb_stride=3, s1_proj_kernel=5, s1_kv_proj_stride=1, s1_mlp_mult=2)
S2 = dict(s2_emb_dim=24, s2_emb_kernel=4, s2_heads=1, s2_depth=2, s2_proj_kernel=1, s2_kv_proj_stride=3)
S3 = dict(s3_emb_dim=20, s3_emb_kernel=2, s3_heads=2, s3_depth=1, s3_mlp_mult=3)
PLAIN = dict(s1_emb_dim=16, s2_emb_dim=24, s2_heads=1, s2_depth=1, s3_emb_dim=32, s3_heads=2, s3_depth=1)
PLAIN |= dict(num_classes=5, s3_kv_proj_stride=1)
MAP = PLAIN | dict(num_classes=0, channels=2)
UNEVEN = S1 | S2 | S3 | dict(num_classes=5, image_size=(19, 26), channels=1)

CASES = [
    Case(*CVT, (2, 32, 32, 3), 56877, PLAIN, maps=3),
    Case(*CVT, (2, 19, 26, 1), 50393, UNEVEN, "uneven", maps=4, repairs=(sized,)),
    Case(
        *CVT,
        (2, 16, 24, 2),
        55928,
        MAP,
        "map",
        maps=3,
        repairs=(feature_map,),
    ),
]

# Tables 3 and 4 of the paper, in millions.
PUBLISHED = {"cvt/13": (20.0e6, 0.005), "cvt/21": (31.5e6, 0.005), "cvt/w24": (277e6, 0.005)}

EXEMPT = {
    "bad_sizes": "has no patches",
    "large_images": "takes images of any size",
    "unfilled_images": "has no patches",
}


def draw(rng):
    side, channels = rng.randint(24, 40), rng.randint(1, 3)
    kwargs = dict(num_classes=rng.randint(2, 12), channels=channels)
    for s in ("s1", "s2", "s3"):
        embed = dict(emb_dim=8 * rng.randint(2, 5), emb_kernel=rng.randint(2, 7), emb_stride=rng.randint(1, 3))
        proj = dict(proj_kernel=rng.choice((1, 3, 5)), kv_proj_stride=rng.randint(1, 3))
        blocks = dict(heads=rng.randint(1, 2), depth=rng.randint(0, 2), mlp_mult=rng.randint(1, 4))
        kwargs |= {f"{s}_{name}": value for name, value in (embed | proj | blocks).items()}
    kwargs["s1_emb_stride"] = rng.randint(2, 4)
    yield Case(*CVT, (2, side, side, channels), 0, kwargs)
