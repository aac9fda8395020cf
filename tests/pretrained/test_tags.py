"""The table of published weights agrees with timm, and is searched by name."""

import pytest

from vit_jax import create_model
from vit_jax.layers.check import pair
from vit_jax.pretrained.networks import NETWORKS
from vit_jax.pretrained.preprocessing import Preprocessing
from vit_jax.pretrained.tags import find_tag, list_pretrained, tags
from vit_jax.pretrained.vision_transformer import VisionTransformer


def test_the_table_is_timms():
    pytest.importorskip("torch")
    from tests.pretrained.make_tags import published, timm

    theirs = published()
    assert list(tags()) == list(theirs)
    for name, cfg in theirs.items():
        tag, data = tags()[name], timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
        assert tag.preprocessing.to_config() == {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}
        assert (tag.num_classes, tag.license or None) == (cfg.num_classes, cfg.license)
        assert tag.hub_id == (cfg.hf_hub_id or "")
        assert tag.url == ("" if cfg.hf_hub_id else cfg.url)


def test_tags_are_listed_by_pattern():
    """Four I-JEPA tags are not on the hub."""
    vision_transformers = [name for name in tags() if NETWORKS[name.partition(".")[0]][0] is VisionTransformer]
    assert len(vision_transformers) == 406
    assert len(list_pretrained()) == len(tags()) - 4
    assert len(list_pretrained("*swin*")) == 19
    assert len(list_pretrained("convnext*")) == 51
    assert len(list_pretrained("levit*")) == 10
    assert len(list_pretrained("pit*")) == 8
    assert (
        list_pretrained("*dinov2*")
        == list_pretrained("timm/*dinov2*")
        == [
            f"timm/vit_{size}_patch14_{reg}dinov2.lvd142m"
            for size in ("base", "giant", "large", "small")
            for reg in ("", "reg4_")
        ]
    )
    assert list_pretrained("vit_tiny_patch16_384*") == ["timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k"]
    assert list_pretrained("vit_huge_patch14_gap_224.*") == []


def test_every_tag_is_of_a_network_for_its_images():
    for name, tag in tags().items():
        model = create_model(f"timm/{name}")
        own = getattr(model, "image_size", tag.preprocessing.image_size)
        assert pair("image_size", own) == tag.preprocessing.image_size, name


def test_a_tag_is_found_by_its_name():
    tag = find_tag("timm/vit_base_patch16_clip_quickgelu_224.openai")
    assert tag.hub_id == "timm/vit_base_patch16_clip_224.openai"
    assert (tag.num_classes, tag.license, tag.url) == (512, "apache-2.0", "")
    assert find_tag("vit_base_patch16_sapiens2.fb").preprocessing.image_size == (1024, 768)
    tag = find_tag("timm/vit_huge_patch14_gap_224.in1k_ijepa")
    assert (tag.hub_id, tag.url) == ("", "https://dl.fbaipublicfiles.com/ijepa/IN1K-vit.h.14-300e.pth.tar")
    assert tag.preprocessing == Preprocessing(crop_pct=0.9)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=r"has no tag: expected one of timm/vit_tiny_patch16_224\.augreg_in21k, timm/"):
        find_tag("timm/vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"did you mean timm/vit_tiny_patch16_224\.augreg_in21k"):
        find_tag("timm/vit_tiny_patch16_224.augreg_in22k")
