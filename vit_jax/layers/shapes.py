"""Shapes that nearly every model speaks of, by name."""

from jaxtyping import Array, Float

Images = Float[Array, "b H W c"]
Inputs = Float[Array, "b *axes c"]  # of any kind: images, series, video
Videos = Float[Array, "b F H W c"]
Tokens = Float[Array, "b n d"]
Patches = Float[Array, "b p d"]  # tokens of the patches alone
Maps = Float[Array, "b h w d"]
ExtraTokens = Float[Array, "e d"]  # of a user, such as distillation's, the same for every image
Output = Float[Array, "b *out"]  # logits (b, k); with `num_classes=0` tokens or maps
