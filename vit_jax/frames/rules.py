"""Conversion rules (Flax path pattern, torch key) that many models share. `vit_jax.convert` explains the rules."""

Rules = tuple[tuple[str, str], ...]


def sequential_rules(flax: str, torch: str, **numbers: int) -> Rules:
    """Rules for a module at `flax` that is a Sequential at `torch`. `numbers` has the index of each submodule there."""
    return tuple((f"{flax}/{part}", f"{torch}.{number}") for part, number in numbers.items())


def feed_forward_rules(flax: str, torch: str, *, fc2: int = 4) -> Rules:
    """Rules for a `FeedForward` at `flax`. Without dropout, the index of upstream's second linear layer is 3."""
    return sequential_rules(flax, torch, norm=0, fc1=1, fc2=fc2)


def attention_rules(flax: str, torch: str) -> Rules:
    """Rules for an attention at `flax` with upstream's names, where upstream's output projection is in a Sequential."""
    return ((f"{flax}/to_out", f"{torch}.to_out.0"), (flax, torch))


PATCH_EMBED_RULES = sequential_rules("to_patch_embedding", "to_patch_embedding", norm_in=1, proj=2, norm_out=3)
PATCH_PROJECTION_RULES = sequential_rules("to_patch_embedding", "to_patch_embedding", proj=1)
TRANSFORMER_RULES = (
    *attention_rules(r"attn_(\d+)", r"layers.\1.0"),
    *feed_forward_rules(r"ff_(\d+)", r"layers.\1.1.net"),
)
HEAD_RULES = sequential_rules("mlp_head", "mlp_head", norm=0, fc=1)
