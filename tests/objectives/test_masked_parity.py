"""MAE, SimMIM, MPP and MP3 against upstream's with the same weights, masks and images: values and gradients.

Upstream's MAE runs with encoders that pool the mean, its MP3 with all. For other encoders it is repaired here.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import CASES
from tests.cases.case import build, build_upstream
from vit_jax.convert import from_torch, to_torch
from vit_jax.objectives import create_objective

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.upstream import channels_first, shake  # noqa: E402

ROWS = {str(case): case for case in CASES}
PLAIN, SMALL = dict(class_token=False), dict(decoder_dim=16, decoder_depth=2, decoder_heads=2, decoder_dim_head=4)
COLOURS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))

# (objective, encoder, our arguments). Arguments that upstream has are passed to upstream as well.
TWINS = [
    ("mae", "vit", PLAIN | dict(norm_pixels=False)),
    ("mae", "vit", dict(norm_pixels=False)),
    ("mae", "vit", SMALL | dict(masking_ratio=0.4)),
    ("mae", "vit-mean", PLAIN | SMALL | dict(norm_pixels=False)),
    ("mae", "vit-mean", dict(masking_ratio=0.6)),
    ("mae", "simple_vit", dict(norm_pixels=False)),
    ("mae", "simple_vit", PLAIN | SMALL | dict(masking_ratio=0.5)),
    ("simmim", "vit", PLAIN),
    ("simmim", "vit", dict(masking_ratio=0.7)),
    ("simmim", "vit-mean", dict(masking_ratio=0.3)),
    ("simmim", "simple_vit", PLAIN),
    ("mpp", "vit", COLOURS),
    ("mpp", "vit", dict(mask_prob=0.6, replace_prob=0.3, random_patch_prob=0.3, max_pixel_val=0.8)),
    ("mpp", "vit", COLOURS | dict(mask_prob=0.9, replace_prob=1.0, random_patch_prob=0.0, output_channel_bits=2)),
    ("mpp", "vit-mean", COLOURS | dict(mask_prob=0.7, replace_prob=0.0, random_patch_prob=0.8)),
    ("mpp", "simple_vit", COLOURS | dict(mask_prob=0.5)),
    ("mp3", "mp3:ViT", dict(masking_ratio=0.75)),
    ("mp3", "mp3:ViT", dict(masking_ratio=0.2)),
]


# Repairs of upstream.


def repair_encoder(name: str, encoder) -> None:
    """Add a batch axis to positions and class token, which SimMIM, MPP, and MAE with a class token expect."""
    if name in ("mp3", "mae") and encoder_pools_mean(encoder):
        return
    positions = encoder.pos_embedding.detach()
    if name == "simmim" and encoder_pools_mean(encoder):  # reads positions from the second on
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    learned = isinstance(encoder.pos_embedding, nn.Parameter)
    encoder.pos_embedding = nn.Parameter(positions[None]) if learned else positions[None]
    if name == "mpp":
        if not hasattr(encoder, "cls_token"):
            encoder.cls_token, encoder.dropout = torch.zeros(1, 0, positions.shape[-1]), nn.Identity()
        else:
            encoder.cls_token = nn.Parameter(encoder.cls_token.detach()[None])


def encoder_pools_mean(encoder) -> bool:
    return getattr(encoder, "pool", "mean") == "mean"


def ours(name: str, state: dict) -> dict:
    """Undo the repair in a state dict of upstream, or in gradients with its names."""
    state = dict(state)
    for key in ("encoder.pos_embedding", "transformer.pos_embedding", "transformer.cls_token"):
        if key in state and state[key].ndim == 3:
            state[key] = state[key][0]
    if name == "simmim" and state.get("encoder.cls_token") is not None and not len(state["encoder.cls_token"]):
        state["encoder.pos_embedding"] = state["encoder.pos_embedding"][1:]
    return state


def with_class_token(name: str, module) -> None:
    """Pass the class token through upstream's encoder, and through MAE's decoder, as in the paper."""
    encoder, kept = module.encoder, []
    encode = encoder.transformer.forward

    def forward(tokens):
        token = (encoder.cls_token + encoder.pos_embedding[0, :1]).expand(len(tokens), 1, -1)
        tokens = encode(torch.cat([token, tokens], dim=1))
        kept.append(tokens[:, :1])
        return tokens[:, 1:]

    encoder.transformer.forward = forward
    if name == "mae":
        decode = module.decoder.forward

        def forward_decoder(tokens):
            token = module.enc_to_dec(kept.pop()) + module.decoder_pos_emb.weight[-1]
            return decode(torch.cat([tokens, token], dim=1))[:, :-1]

        module.decoder.forward = forward_decoder


def build_twin(name: str, row: str, kwargs: dict):
    """Upstream's objective, repaired, with the encoder of a row and perturbed parameters."""
    encoder = build_upstream(ROWS[row])
    pools_mean = encoder_pools_mean(encoder)
    repair_encoder(name, encoder)
    own = {key: value for key, value in kwargs.items() if key not in ("class_token", "norm_pixels")}
    if name == "mae":
        module = importlib.import_module("vit_pytorch.mae").MAE(encoder=encoder, **{"decoder_dim": 24, **own})
    elif name == "simmim":
        module = importlib.import_module("vit_pytorch.simmim").SimMIM(encoder=encoder, **own)
    elif name == "mpp":
        module = importlib.import_module("vit_pytorch.mpp").MPP(encoder, patch_size=4, dim=24, **own)
        if pools_mean:  # it drops the logits of a class token
            module.to_bits.register_forward_hook(lambda _, __, out: torch.cat([out[:, :1], out], dim=1))
    else:
        module = importlib.import_module("vit_pytorch.mp3").MP3(encoder, **own)
    if name in ("mae", "simmim") and kwargs.get("class_token", True) and not pools_mean:
        with_class_token(name, module)
    return shake(module)


def fix_chance(monkeypatch, name: str, drawn: dict[str, np.ndarray], exchanges: bool) -> None:
    """Make upstream draw what we drew for three images of 16 patches. MPP draws exchanges only if there are any."""
    patches, rows = 16, np.arange(3)[:, None]

    def spread(values):
        out = np.zeros((3, patches))
        out[rows, drawn["masked"]] = values
        return torch.from_numpy(out)

    if name == "simmim":  # what is largest is masked
        monkeypatch.setattr(torch, "rand", lambda *_, device: spread(1.0))
    elif name == "mpp":
        module = importlib.import_module("vit_pytorch.mpp")
        draws = [spread(drawn[what]).bool() for what in ("exchanged", "replaced") if what == "replaced" or exchanges]
        monkeypatch.setattr(module, "get_mask_subset_with_prob", lambda *_: spread(1.0).bool())
        monkeypatch.setattr(module, "prob_mask_like", lambda *_: draws.pop(0))
        monkeypatch.setattr(torch, "randint", lambda *_, device: spread(drawn["others"]).long())
    else:  # what is smallest is masked
        masked = np.stack([np.setdiff1d(np.arange(patches), seen) for seen in drawn["seen"]])
        order = np.concatenate([masked, drawn["seen"]], axis=1)
        monkeypatch.setattr(torch, "rand", lambda *_, device: torch.from_numpy(order.argsort(axis=1) / patches))


def normalized(targets: torch.Tensor) -> torch.Tensor:
    return (targets - targets.mean(-1, keepdim=True)) / (targets.var(-1, keepdim=True) + 1e-6) ** 0.5


@pytest.mark.parametrize(("name", "row", "kwargs"), TWINS, ids=str)
def test_losses_and_gradients_equal_upstreams(name, row, kwargs, monkeypatch):
    images = np.random.default_rng(1).standard_normal((3, 16, 16, 3), np.float32)
    objective = create_objective(name, build(ROWS[row]), **kwargs)
    drawn = objective.draw(jax.random.key(2), jnp.asarray(images))
    twin = build_twin(name, row, kwargs)
    state = ours(name, twin.state_dict())
    variables = from_torch(objective.model, state, images, **drawn)
    exported = to_torch(objective.model, variables)
    assert exported.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(exported[key], state[key], err_msg=key)

    fix_chance(monkeypatch, name, jax.tree.map(np.array, drawn), kwargs.get("random_patch_prob", 0.5) > 0)
    if kwargs.get("norm_pixels", name == "mae"):
        squared = nn.functional.mse_loss
        monkeypatch.setattr(nn.functional, "mse_loss", lambda predicted, true: squared(predicted, normalized(true)))
    torch_images = channels_first(images).requires_grad_()
    expected = twin(torch_images)
    expected.backward()

    loss = lambda params, images: objective.model.apply({"params": params}, images, **drawn).mean()
    value, (gradients, of_images) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables["params"], images)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    theirs = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in twin.named_parameters()}
    theirs = ours(name, theirs)
    if name != "mpp":  # upstream detaches the images
        theirs["images"] = torch_images.grad
    mine = to_torch(objective.model, {"params": gradients}) | {"images": np.moveaxis(np.array(of_images), -1, 1)}
    compared = 0
    for key, gradient in theirs.items():
        largest = np.abs(gradient.numpy()).max(initial=0.0)
        error = np.abs(mine[key] - gradient.numpy()).max(initial=0.0)
        assert error <= 1e-5 * largest, f"{key}: {error} of {largest}"
        compared += largest > 0
    assert compared > 20
