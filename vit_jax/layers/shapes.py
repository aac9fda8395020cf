"""Names for the array shapes that nearly every model uses."""

from jaxtyping import Array, Float

Images = Float[Array, "b H W c"]
Inputs = Float[Array, "b *axes c"]  # images, series or video
Videos = Float[Array, "b F H W c"]
Tokens = Float[Array, "b n d"]
Patches = Float[Array, "b p d"]  # the tokens of the patches, without others
Maps = Float[Array, "b h w d"]
ExtraTokens = Float[Array, "e d"]  # such as a distillation token, the same for every image
Output = Float[Array, "b *out"]  # logits (b, k); with `num_classes=0` tokens or feature maps
