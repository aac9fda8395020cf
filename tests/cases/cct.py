"""Rows of `cct`."""

from tests.cases.case import INPUT, Case


def class_token(make):
    """`seq_pool`, which upstream passes twice: its classifier is made again with the keyword once."""
    from vit_pytorch import cct

    def repaired(*, seq_pool, **kwargs):
        module = make(**kwargs)
        count = module.classifier.sequence_length
        module.classifier = cct.TransformerClassifier(**kwargs, seq_pool=seq_pool, sequence_length=count)
        return module

    return repaired


def tokens(make):
    """`num_classes=0`: without pooling and head, the model returns the output of the last norm."""
    from einops.layers.torch import Reduce
    from torch import nn

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=1, **kwargs)
        module.classifier.attention_pool, module.classifier.fc = Reduce("b n d -> b n 1", "mean"), nn.Identity()
        encoded, forward = [], module.forward
        module.classifier.norm.register_forward_hook(lambda module, args, output: encoded.append(output))
        module.forward = lambda *args: (forward(*args), encoded.pop())[1]
        return module

    return repaired


CCT = ("cct", "cct:CCT")
SINES = dict(unused=("positional_emb",))  # read, but not trained
POOLED = dict(maps=2, faint=("classifier.attention_pool.bias",))  # a bias that shifts all scores equally
SIZES = dict(embedding_dim=24, num_layers=2, num_heads=3, mlp_ratio=2.0, num_classes=5)
PLAIN = SIZES | dict(img_size=16, kernel_size=3, stride=1, padding=1, stochastic_depth_rate=0.0)
LEARNED = PLAIN | dict(img_size=(14, 20), n_input_channels=1, n_conv_layers=2, positional_embedding="learnable")
UNEVEN = PLAIN | dict(kernel_size=4, stride=2, padding=2, positional_embedding="none", embedding_dim=27, mlp_ratio=1.3)
POOL = dict(pooling_kernel_size=2, pooling_stride=1, pooling_padding=0, num_heads=1)

CASES = [
    Case(*CCT, INPUT, 11982, PLAIN, **POOLED, **SINES),
    Case(*CCT, (2, 14, 20, 1), 24678, LEARNED, "oblong-learned", **POOLED),
    Case(*CCT, INPUT, 11524, UNEVEN | POOL, "uneven-no-positions", **POOLED),
    Case(*CCT, INPUT, 12005, PLAIN | dict(seq_pool=False), "class-token", maps=2, repairs=(class_token,), **SINES),
    Case(*CCT, INPUT, 11832, PLAIN | dict(num_classes=0), "tokens", maps=2, repairs=(tokens,), **SINES),
]

# Counts of upstream's functions at 224 pixels, where they are not models of the paper.
_FUNCTIONS = {2: 1936873, 4: 2135273, 6: 6633961, 7: 7160297, 8: 7686633, 14: 25905641, 16: 28861673}
PUBLISHED = {f"cct/cct_{layers}": (count, 0) for layers, count in _FUNCTIONS.items()}

# Counts of the authors' repository (SHI-Labs/Compact-Transformers), in millions, with two or three digits. All but the
# last are for 10 classes there.
_MILLIONS = {"2_3x2": 0.284, "4_3x2": 0.482, "6_3x1": 3.168, "6_3x2": 3.327, "7_3x1": 3.760, "7_3x2": 3.853}
_WIDTHS = {"2_3x2": 128, "4_3x2": 128}
_MORE_CLASSES = {name: 990 * (_WIDTHS.get(name, 256) + 1) for name in _MILLIONS}
_LEFT_OUT = {"6_3x1": 256 * 256, "14_7x2": 196 * 384}  # learned positions, which the published counts omit
for _name, _count in (_MILLIONS | {"14_7x2": 22.29}).items():
    _rest = _MORE_CLASSES.get(_name, 0) + _LEFT_OUT.get(_name, 0)
    PUBLISHED[f"cct/{_name}"] = (_count * 1e6 + _rest, 0.0012 if _count < 1 else 0.0003)

EXEMPT = {"bad_sizes": "has no patches", "unfilled_images": "has no patches"}


def draw(rng):
    kernel, channels, layers = rng.randint(2, 5), rng.randint(1, 3), rng.randint(1, 2)
    conv = dict(kernel_size=kernel, stride=rng.randint(1, 2), padding=rng.randint(0, kernel // 2), n_conv_layers=layers)
    pool = dict(
        pooling_kernel_size=rng.randint(2, 3), pooling_stride=rng.randint(1, 2), pooling_padding=rng.randint(0, 1)
    )
    heads = rng.randint(1, 4)
    sizes = dict(num_heads=heads, embedding_dim=heads * rng.randint(5, 9), num_layers=rng.randint(0, 2))
    height, width = rng.randint(27, 34), rng.randint(27, 34)
    image = dict(img_size=(height, width), n_input_channels=channels, num_classes=rng.randint(2, 12))
    positions = rng.choice(("sine", "learnable", "none"))
    rest = dict(mlp_ratio=rng.choice((0.5, 1.7, 3.0)), positional_embedding=positions)
    yield Case(*CCT, (2, height, width, channels), 0, image | conv | pool | sizes | rest, **POOLED)
