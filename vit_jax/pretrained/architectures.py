"""timm's names of vision transformers, and the arguments of `VisionTransformer` for each.

A family has a template of names, its members ("small/16 224 384" are two: size, patch size and image sizes), and the
facts that all members share. Sizes are (dim, depth, heads, mlp_dim). The reference is timm 1.0.31.
"""

from typing import Any, NamedTuple

from vit_jax.pretrained.rotary import Rotary

SIZES = {
    "tiny": (192, 12, 3, 768),
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "little": (320, 14, 5, 1792),
    "small": (384, 12, 6, 1536),
    "small_plus": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base": (768, 12, 12, 3072),
    "so150m": (896, 18, 14, 2304),
    "so150m2": (832, 21, 13, 2176),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "huge_plus": (1280, 32, 20, 5120),
    "giant": (1408, 40, 16, 6144),
    "giantopt": (1536, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
    "7b": (4096, 40, 32, 8192),
}


class Family(NamedTuple):
    """Architectures with names of one template and common facts; `sizes` are those that differ from `SIZES`."""

    template: str
    members: str
    facts: dict[str, Any]
    sizes: dict[str, tuple[int, int, int, int]] = SIZES

    def architectures(self) -> dict[str, dict[str, Any]]:
        """The arguments of each member by name."""
        made = {}
        for member in self.members.split(", "):
            first, *images = member.split()
            size, patch = first.split("/")
            dim, depth, heads, mlp_dim = (SIZES | self.sizes)[size]
            sizes = dict(patch_size=int(patch), dim=dim, depth=depth, heads=heads, mlp_dim=mlp_dim)
            for image in images:
                name = self.template.format(model=f"{size}_patch{patch}", size=size, patch=patch, image=image)
                made[name] = dict(image_size=int(image)) | sizes | self.facts
        return made


# In timm's files most tables of positions have rows for the class token and registers.
POSITIONS = dict(layout=("prefix_positions",))
MEAN = dict(class_token=False, pool="mean")  # of the tokens after the last norm
NORMED = dict(pool="mean", last_norm="pooled")  # the norm comes after the mean
NORMED_MEAN = MEAN | NORMED
MAP = dict(class_token=False, pool="map")
SCALE = dict(layer_scale=(1e-5, 1e-5))
NORMLESS = dict(last_norm="none")
SWIGLU = dict(activation="swiglu")
CLIP = POSITIONS | dict(epsilon=1e-5, pre_norm=True)

AIM = MEAN | SWIGLU | dict(rms_norm=True, epsilon=1e-5, patch_norm=True, qkv_bias="", proj_bias=False)
AIM |= dict(layout=("split_swiglu",))
EVA = POSITIONS | dict(qkv_bias="qv")
EVA02 = EVA | SWIGLU | dict(rotary=Rotary(reference=16))
EVA02_NORMED = EVA02 | dict(mlp_norm=True, layout=("prefix_positions", "split_qkv", "split_swiglu"))
GAMMA = SCALE | dict(layout=("gamma",))
ROTARY_MEAN = GAMMA | NORMED_MEAN | dict(positions=False, qkv_bias="qv", rotary=Rotary(reference=16))
AXIAL = GAMMA | dict(rotary=Rotary("axial", temperature=100.0, columns_first=True))
MIXED = SCALE | dict(rotary=Rotary("mixed", temperature=10.0, columns_first=True), layout=("gamma", "mixed_rotary"))
DINOV3 = GAMMA | dict(
    epsilon=1e-5, pool="mean", qkv_bias="qv", positions=False, registers=4, rotary=Rotary("dinov3", 100.0)
)
DINOV3_SWIGLU = DINOV3 | SWIGLU | dict(layout=("gamma", "split_swiglu"))


def _perception(reference: int) -> dict[str, Any]:
    """Facts of a Perception Encoder with a class token, whose first row and column are 1."""
    rotary = Rotary(columns_first=True, offset=1.0, reference=reference)
    return CLIP | dict(rotary=rotary)


THREE_SIZES = "small/16 224, base/16 224, large/16 224"
EVA02_SIZES = {"base": (768, 12, 12, 2048), "large": (1024, 24, 16, 2730)}
PE_CORE = dict(pool="map", pool_heads=8)
PE_NORMLESS = NORMLESS | dict(pool="mean")
PE_GIGANTIC = dict(class_token=False, epsilon=1e-5, pre_norm=True, rotary=Rotary(columns_first=True, reference=32))
PE_SCALE = dict(layer_scale=(0.1, 0.1), layout=("gamma",))
PE_SIZES = {"gigantic": (1536, 50, 16, 8960)}
GIANT = {"giant": (1536, 40, 24, 6144)}
GIANT_SWIGLU = {"giant": (1536, 40, 24, 4096)}

FAMILIES = (
    # ViT (arXiv:2010.11929, 2106.10270), DeiT (2012.12877), DeiT III (2204.07118), FlexiViT (2212.08013).
    Family(
        "vit_{model}_{image}",
        "tiny/16 224 384, small/8 224, small/16 224 384, small/32 224 384, base/8 224, base/16 224 384, "
        "base/32 224 384, large/16 224 384, large/32 224 384, huge/14 224",
        POSITIONS,
    ),
    Family("vit_{model}_224_miil", "base/16 224", POSITIONS | dict(qkv_bias="")),
    Family("deit_{model}_{image}", "tiny/16 224, small/16 224, base/16 224 384", POSITIONS),
    Family(
        "deit_{size}_distilled_patch{patch}_{image}",
        "tiny/16 224, small/16 224, base/16 224 384",
        POSITIONS | dict(distilled=True),
    ),
    Family(
        "deit3_{model}_{image}",
        "small/16 224 384, medium/16 224, base/16 224 384, large/16 224 384, huge/14 224",
        dict(layer_scale=(1e-6, 1e-6)),
    ),
    Family("flexivit_{size}", "small/16 240, base/16 240, large/16 240", {}),
    # DINOv2 (2304.07193) with and without registers (2309.16588), TIPSv2 (2604.12012).
    Family("vit_{model}_dinov2", "small/14 518, base/14 518, large/14 518", POSITIONS | SCALE),
    Family("vit_{model}_dinov2", "giant/14 518", POSITIONS | SCALE | SWIGLU, GIANT_SWIGLU),
    Family("vit_{model}_reg4_dinov2", "small/14 518, base/14 518, large/14 518", SCALE | dict(registers=4)),
    Family("vit_{model}_reg4_dinov2", "giant/14 518", SCALE | SWIGLU | dict(registers=4), GIANT_SWIGLU),
    Family(
        "vit_{model}_reg1_tipsv2", "base/14 448, large/14 448, so400m/14 448", dict(layer_scale=(1.0, 1.0), registers=1)
    ),
    Family("vit_{model}_reg1_tipsv2", "giant/14 448", dict(layer_scale=(1.0, 1.0), registers=1) | SWIGLU, GIANT_SWIGLU),
    # CLIP (2103.00020), OpenCLIP (2212.07143) and others; OpenAI's and some others' weights need the quick GELU.
    Family(
        "vit_{model}_clip_{image}",
        "xsmall/16 224, medium/16 224, medium/32 224, betwixt/32 224, base/16 224 384, base/32 224 256 384 448, "
        "large/14 224 336, huge/14 224 336 378, giant/14 224, gigantic/14 224 378",
        CLIP,
    ),
    Family("vit_{model}_plus_clip_{image}", "base/16 240", CLIP, {"base": (896, 12, 14, 3584)}),
    Family(
        "vit_{model}_clip_quickgelu_{image}",
        "base/16 224, base/32 224, large/14 224 336, huge/14 224 378, gigantic/14 224",
        CLIP | dict(activation="quick_gelu"),
    ),
    # SigLIP (2303.15343) and SigLIP 2 (2502.14786), with attention pooling and with the mean.
    Family("vit_{model}_siglip_{image}", "base/16 224 256 384 512, large/16 256 384, so400m/14 224 378 384", MAP),
    Family(
        "vit_{model}_siglip_{image}",
        "base/32 256, large/16 512, so400m/16 256 384 512, giantopt/16 256 384",
        MAP | dict(activation="gelu_tanh"),
    ),
    Family(
        "vit_{model}_siglip_gap_{image}",
        "base/16 224 256 384 512, large/16 256 384, so400m/14 224 378 384 448 896",
        MEAN,
    ),
    Family(
        "vit_{model}_siglip_gap_{image}",
        "base/32 256, large/16 512, so400m/16 256 384 512, giantopt/16 256 384",
        MEAN | dict(activation="gelu_tanh"),
    ),
    # I-JEPA (2301.08243), AIMv2 (2411.14402), BEiT-3 (2208.10442), InternViT (2410.16261), RADIO (2312.06709).
    Family("vit_{model}_gap_{image}", "huge/14 224, huge/16 448, giant/16 224", MEAN),
    Family(
        "aimv2_{model}_{image}",
        "large/14 224 336 448, huge/14 224 336 448, 1b/14 224 336 448, 3b/14 224 336 448",
        AIM,
        {
            "large": (1024, 24, 8, 2816),
            "huge": (1536, 24, 12, 4096),
            "1b": (2048, 24, 16, 5632),
            "3b": (3072, 24, 24, 8192),
        },
    ),
    Family(
        "beit3_{model}_{image}",
        "base/16 224, large/16 224",
        POSITIONS | NORMED | dict(epsilon=1e-5, attention_norm=True, mlp_norm=True),
    ),
    Family("vit_intern300m_patch{patch}_{image}", "large/14 448", POSITIONS | NORMLESS | dict(layer_scale=(0.1, 0.1))),
    Family("vit_{model}_radio_v3", "base/16 512, large/16 512", SCALE | NORMLESS | dict(registers=7)),
    Family("vit_{model}_radio_v3", "huge/16 512, giant/16 512", NORMLESS | dict(registers=7), GIANT),
    Family("vit_{model}_radio_v4", "so400m/16 512, huge/16 512", NORMLESS | dict(registers=9)),
    # Searched and compared by timm's author.
    Family("vit_{model}_gap_{image}", "medium/16 240 256 384", MEAN | dict(layer_scale=(1e-6, 1e-6), qkv_bias="")),
    Family(
        "vit_{model}_reg1_gap_{image}",
        "wee/16 256, little/16 256, medium/16 256, betwixt/16 256",
        NORMED_MEAN | SCALE | dict(registers=1),
    ),
    Family(
        "vit_{model}_reg4_gap_{image}",
        "little/16 256, medium/16 256, mediumd/16 256 384, betwixt/16 256 384",
        NORMED_MEAN | SCALE | dict(registers=4),
    ),
    Family("vit_{model}_reg4_gap_{image}", "so150m/16 256 384", MEAN | POSITIONS | dict(registers=4)),
    Family(
        "vit_{model}_reg1_gap_{image}",
        "so150m2/16 256 384 448",
        NORMED_MEAN | POSITIONS | SCALE | dict(registers=1, qkv_bias=""),
    ),
    Family("vit_{model}_rpn_{image}", "base/16 224", NORMED_MEAN | dict(post_norm=True, qkv_bias="")),
    Family("vit_{model}_rope_reg1_gap_{image}", "medium/16 256, base/16 256", ROTARY_MEAN | dict(registers=1)),
    Family("vit_{model}_rope_reg1_gap_{image}", "mediumd/16 256", ROTARY_MEAN | dict(registers=1, qkv_bias="")),
    Family("vit_{model}_rope_reg4_gap_{image}", "betwixt/16 256", ROTARY_MEAN | dict(registers=4)),
    # EVA (2211.07636) and EVA-02 (2303.11331), with their CLIP (2303.15389).
    Family("eva_{model}_{image}", "large/14 196 336", POSITIONS | NORMED),
    Family("eva_{model}_{image}", "giant/14 224 336 560", EVA | NORMED),
    Family("eva_{model}_clip_{image}", "giant/14 224", EVA),
    Family(
        "eva02_{model}_{image}",
        "tiny/14 224 336, small/14 224 336",
        EVA02 | NORMED,
        {"tiny": (192, 12, 3, 512), "small": (384, 12, 6, 1024)},
    ),
    Family("eva02_{model}_{image}", "base/14 224 448, large/14 224 448", EVA02_NORMED | NORMED, EVA02_SIZES),
    Family(
        "eva02_{model}_clip_{image}",
        "base/16 224, large/14 224 336",
        EVA02_NORMED | dict(attention_norm=True),
        EVA02_SIZES,
    ),
    Family(
        "eva02_{model}_clip_{image}", "enormous/14 224", EVA | dict(post_norm=True), {"enormous": (1792, 64, 16, 15360)}
    ),
    # Rotary positions along axes and learned ones (2403.13298), with and without other positions.
    Family("vit_{model}_rope_{image}", THREE_SIZES, AXIAL | dict(positions=False)),
    Family("vit_{model}_rope_ape_{image}", THREE_SIZES, AXIAL),
    Family("vit_{model}_rope_mixed_{image}", THREE_SIZES, MIXED | dict(positions=False)),
    Family("vit_{model}_rope_mixed_ape_{image}", THREE_SIZES, MIXED),
    # Perception Encoder (2504.13181).
    Family("vit_pe_core_{model}_{image}", "base/16 224", _perception(14) | PE_CORE),
    Family("vit_pe_core_{model}_{image}", "tiny/16 384, small/16 384, large/14 336", _perception(24) | PE_CORE),
    Family("vit_pe_core_{model}_{image}", "gigantic/14 448", PE_GIGANTIC | PE_CORE | dict(pool_mlp_dim=6144), PE_SIZES),
    Family(
        "vit_pe_spatial_{model}_{image}",
        "tiny/16 512, small/16 512, base/16 512, large/14 448",
        _perception(32) | PE_NORMLESS,
    ),
    Family("vit_pe_spatial_{model}_{image}", "gigantic/14 448", PE_GIGANTIC | PE_NORMLESS | PE_SCALE, PE_SIZES),
    Family(
        "vit_pe_lang_{model}_{image}",
        "large/14 448",
        _perception(32) | PE_NORMLESS | dict(layer_scale=(0.1, 0.1), layout=("prefix_positions", "gamma")),
        {"large": (1024, 23, 16, 4096)},
    ),
    Family(
        "vit_pe_lang_{model}_{image}",
        "gigantic/14 448",
        PE_GIGANTIC | PE_NORMLESS | PE_SCALE,
        {"gigantic": (1536, 47, 16, 8960)},
    ),
    # DINOv3 (2508.10104), LingBot-Vision (2607.05247), Sapiens2 (2604.21681).
    Family("vit_{model}_dinov3", "small/16 256, base/16 256, large/16 256", DINOV3 | dict(qkv_bias="")),
    Family("vit_{model}_dinov3", "small_plus/16 256, huge_plus/16 256, 7b/16 256", DINOV3_SWIGLU | dict(qkv_bias="")),
    Family("vit_{model}_dinov3_qkvb", "tiny/16 256, small/16 256, base/16 256, large/16 256", DINOV3),
    Family("vit_{model}_dinov3_qkvb", "small_plus/16 256, huge_plus/16 256", DINOV3_SWIGLU),
    Family("vit_{model}_lingbot", "small/16 512, base/16 512, large/16 512", DINOV3 | dict(pool="cls")),
    Family("vit_{model}_lingbot", "giant/16 512", DINOV3_SWIGLU | dict(pool="cls", qkv_bias=""), GIANT_SWIGLU),
    Family(
        "vit_{model}_sapiens2",
        "base/16 1024",
        SWIGLU
        | dict(image_size=(1024, 768), rms_norm=True, positions=False, registers=8, qk_norm=True)
        | dict(layer_scale=(1.0, None), rotary=Rotary("dinov3", 100.0), layout=("gamma", "split_qkv")),
    ),
)

# Small networks for timm's own tests.
TESTS = {
    "test_vit": dict(dim=64, depth=6, heads=2, mlp_dim=192) | POSITIONS,
    "test_vit2": dict(dim=64, depth=8, heads=2, mlp_dim=192, registers=1) | NORMED_MEAN | POSITIONS | SCALE,
    "test_vit3": dict(dim=96, depth=9, heads=3, mlp_dim=192, registers=1) | MAP | POSITIONS | SCALE,
}
ARCHITECTURES = {name: arguments for family in FAMILIES for name, arguments in family.architectures().items()}
for _name in ("vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"):
    ARCHITECTURES[_name] |= dict(any_size=True)
ARCHITECTURES |= {name: dict(image_size=160, patch_size=16) | facts for name, facts in TESTS.items()}

UNSUPPORTED = {
    "vit_dlittle_patch16_reg1_gap_256": "differential attention",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "vit_dpwee_patch16_reg1_gap_256": "differential attention in parallel with the feed-forward",
    "vit_pwee_patch16_reg1_gap_256": "attention in parallel with the feed-forward",
}
for _size in ("large", "huge", "giant", "5b"):
    UNSUPPORTED[f"vit_{_size}_patch16_sapiens2"] = "keys and values that several heads share"
