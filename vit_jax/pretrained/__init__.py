"""Networks with published weights, and what is needed to use them."""

from vit_jax.pretrained.loading import Pretrained, load_pretrained, save_pretrained
from vit_jax.pretrained.tags import list_pretrained

__all__ = ["Pretrained", "list_pretrained", "load_pretrained", "save_pretrained"]
