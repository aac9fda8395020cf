"""Rows of `ats_vit`."""

from unittest import mock

from tests.cases.case import BLOCKS, IMAGE, INPUT, OBLONG, OBLONG_INPUT, Case, draw_blocks, draw_image


def fixed_draws(make):
    """Noise with which upstream's Gumbel draws are the paper's quantiles; images are sampled one at a time.

    Outputs are padded to the largest length after the tokens that are left: with zeros, ids with -1.
    """
    import torch
    from torch.nn import functional
    from vit_pytorch import ats_vit

    def repaired(*, num_classes, **kwargs):
        module = make(num_classes=max(num_classes, 1), **kwargs)
        encoded, forward = [], module.forward
        module.transformer.register_forward_hook(lambda module, args, output: encoded.append(output))
        if num_classes == 0:
            module.mlp_head = torch.nn.Identity()

        def one(image, longest):
            with mock.patch.multiple(ats_vit, log=remember, sample_gumbel=noise_of_quantiles):
                logits = forward(image)
            tokens, ids = encoded.pop()
            behind = 1 + longest - ids.shape[1]
            out = logits if num_classes else functional.pad(tokens, (0, 0, 0, behind))
            return out, functional.pad(ids[:, 1:] - 1, (0, behind), value=-1)

        def all_of(images, return_sampled_token_ids=False):
            longest = min(kwargs["max_tokens_per_depth"][-1], module.pos_embedding.shape[1] - 1)
            outputs = [one(image[None], longest) for image in images]
            out, ids = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            return (out, ids) if return_sampled_token_ids else out

        module.forward = all_of
        return module

    seen = []
    log = ats_vit.log

    def remember(values, *args):
        seen.append(values)
        return log(values, *args)

    def noise_of_quantiles(shape, device, dtype):
        weights = seen.pop() + 1e-6
        cumulative = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
        quantiles = (torch.arange(shape[1]) + 0.5) / shape[1]
        drawn = (cumulative[:, None] <= quantiles[None, :, None]).sum(-1)
        return 1e9 * functional.one_hot(drawn, shape[2]).to(dtype)

    return repaired


ATS = ("ats_vit", "ats_vit:ViT")
EVERY = IMAGE | BLOCKS | dict(max_tokens_per_depth=(16, 16))
SAMPLED = IMAGE | BLOCKS | dict(depth=3, max_tokens_per_depth=(15, 14, 13), heads=1, dim_head=24)
TOKENS = IMAGE | BLOCKS | OBLONG | dict(num_classes=0, max_tokens_per_depth=(8, 5))

CASES = [
    Case(*ATS, INPUT, 10741, EVERY, maps=2, repairs=(fixed_draws,)),
    Case(*ATS, INPUT, 15149, SAMPLED, "sampled-one-head", maps=3, repairs=(fixed_draws,)),
    Case(*ATS, OBLONG_INPUT, 9432, TOKENS, "oblong-tokens", maps=2, repairs=(fixed_draws,)),
]

# DeiT-S, plus two norms around the patch projection, minus the biases of q, k and v; sampling has no parameters.
PUBLISHED = {"ats_vit/s16": (22_050_664 + 2 * 3 * 16**2 + 2 * 384 - 12 * 3 * 384, 0.0)}


def draw(rng):
    image, shape = draw_image(rng)
    blocks = draw_blocks(rng)
    keep = sorted((rng.randint(1, 16) for _ in range(blocks["depth"])), reverse=True)
    yield Case(*ATS, shape, 0, image | blocks | dict(max_tokens_per_depth=tuple(keep)), repairs=(fixed_draws,))
