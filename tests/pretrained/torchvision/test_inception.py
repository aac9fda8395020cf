"""GoogLeNet and Inception V3: optional auxiliary heads, and the least image size."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import create_model


@pytest.mark.parametrize(
    ("name", "heads", "least"), [("googlenet", {"aux1", "aux2"}, 15), ("inception_v3", {"AuxLogits"}, 75)]
)
def test_auxiliary_heads_and_the_least_image(name, heads, least):
    init = lambda side, **kwargs: jax.eval_shape(
        create_model(name, **kwargs).init_with_output, jax.random.key(0), jnp.zeros((1, side, 80, 3))
    )
    logits, variables = init(least, num_classes=5)
    assert logits.shape == (1, 5)
    _, without = init(least, num_classes=5, aux_logits=False)
    assert variables["params"].keys() - without["params"].keys() == heads
    with pytest.raises(ValueError, match=rf"image_size=\({least - 1}, 80\): expected sides such as {least}"):
        init(least - 1)
