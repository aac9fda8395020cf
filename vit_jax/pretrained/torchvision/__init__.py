"""torchvision's classification networks, as models to train or as teachers with published weights.

`vit_jax.create_model("resnet50", num_classes=10)` builds any of them by torchvision's name. Their interface is that of
the other models: images (b, H, W, c) to logits (b, k), or with `num_classes=0` to pooled features. `vit_jax.convert`
converts torchvision's state dicts from and to their variables.
"""
