"""Preprocessing equals timm's, torchvision's and transformers' in every pixel, and is read from their files."""

import io
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.image_files import exif, with_exif
from vit_jax.images import MAX_PIXELS, Unreadable
from vit_jax.pretrained.preprocessing import CLIP, CROP_MODES, HALF, IMAGENET, INTERPOLATIONS, Preprocessing, fraction
from vit_jax.pretrained.preprocessing_files import PROCESSORS, from_timm, from_transformers, read_preprocessing
from vit_jax.pretrained.torchvision.weights import WEIGHTS

SHAPES = [(75, 100), (100, 75), (64, 64), (65, 64), (20, 31), (9, 5), (1, 30), (30, 1), (200, 13), (97, 130)]


def noise(height, width, *channels):
    """Random pixels, which show a shift or a wrong rounding anywhere."""
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, *channels), np.uint8)


def pictures():
    """Images of many shapes, and one of each mode of Pillow."""
    images = [Image.fromarray(noise(*shape, 3)) for shape in SHAPES]
    images += [Image.fromarray(noise(40, 50)), Image.fromarray(noise(40, 50, 4)), Image.fromarray(noise(40, 50, 2))]
    palette = images[0].quantize(16)
    palette.info["transparency"] = 3
    return [*images, palette, images[0].convert("1"), images[0].convert("CMYK"), images[0].convert("YCbCr")]


def timm_transform(preprocess):
    """timm's transform for evaluation, from the config that we write."""
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable

    data = pytest.importorskip("timm.data")
    transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=preprocess.to_config()))
    return lambda image: transform(image).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_pixel_equals_timms(mode, interpolation):
    for size, share in (((56, 56), 0.875), ((56, 56), 1.0), ((48, 81), 0.9), ((33, 33), 0.95), ((40, 24), 1.1)):
        preprocess = Preprocessing(size, share, mode, interpolation, *(CLIP if share == 1 else IMAGENET))
        expected = timm_transform(preprocess)
        for image in pictures():
            np.testing.assert_array_equal(preprocess(image), expected(image.convert("RGB")))


def test_every_pixel_equals_torchvisions():
    """With torchvision's own transform of some weights: the sides differ by 32, 8, 44 and 0 pixels."""
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable

    models = pytest.importorskip("torchvision.models")
    chosen = dict(resnet50="IMAGENET1K_V1", mobilenet_v2="IMAGENET1K_V2", vit_l_16="IMAGENET1K_V1")
    chosen |= dict(vit_b_16="IMAGENET1K_SWAG_E2E_V1")
    for network, weights in chosen.items():
        preprocess = WEIGHTS[network][weights].preprocessing
        theirs = models.get_model_weights(network)[weights].transforms()
        for height, width in ((75, 100), (300, 225), (256, 256), (500, 333)):
            image = Image.fromarray(noise(height, width, 3))
            np.testing.assert_array_equal(preprocess(image), theirs(image).numpy().transpose(1, 2, 0))


def test_files_are_read_upright_and_arrays_as_they_are(tmp_path):
    preprocess = Preprocessing(24, interpolation="bilinear")
    picture = Image.fromarray(noise(30, 40, 3))
    file = io.BytesIO()
    picture.save(file, "JPEG")
    for orientation in (1, 6, 7):
        path = tmp_path / f"{orientation}.jpg"
        path.write_bytes(with_exif(file.getvalue(), exif(orientation)))
        with Image.open(path) as image:
            upright = preprocess(ImageOps.exif_transpose(image))
            as_stored = preprocess(image)
        np.testing.assert_array_equal(preprocess(path), upright)
        np.testing.assert_array_equal(preprocess(str(path)), upright)
        assert np.array_equal(upright, as_stored) == (orientation == 1)
    np.testing.assert_array_equal(preprocess(np.asarray(picture)), preprocess(picture))
    np.testing.assert_array_equal(preprocess(np.asarray(picture)[:, ::-1]), preprocess(ImageOps.mirror(picture)))
    pixels = preprocess.pixels(picture)
    assert (pixels.shape, pixels.dtype, preprocess(picture).dtype) == ((24, 24, 3), np.uint8, np.float32)
    np.testing.assert_array_equal(preprocess.normalize(np.stack([pixels] * 2))[1], preprocess(picture))


@pytest.mark.parametrize("name", ["grey", "alpha", "palette"])
def test_files_have_the_colours_that_timm_sees(tmp_path, name):
    picture = Image.fromarray(noise(30, 40, 4))
    picture = {"grey": picture.convert("L"), "alpha": picture, "palette": picture.convert("RGB").quantize(8)}[name]
    picture.save(path := tmp_path / "image.png")
    preprocess = Preprocessing(24)
    np.testing.assert_array_equal(preprocess(path), preprocess(picture.convert("RGB")))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "image", [noise(5, 5), noise(5, 5, 4), noise(5, 5, 3)[:0], noise(5, 5, 3).astype(np.float32), b"photo", 3]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\)"):
        Preprocessing()(image)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(Unreadable, match=r"cannot read the image .*photo\.jpg: it is none of JPEG"):
        Preprocessing()(tmp_path / "photo.jpg")
    with pytest.raises(Unreadable, match="No such file"):
        Preprocessing()(tmp_path / "none.jpg")


def test_extreme_images_take_no_memory():
    with pytest.raises(ValueError, match=rf"30000 x 1 pixels .* 7680000 x 256, more than the limit of {MAX_PIXELS:,}"):
        Preprocessing()(noise(1, 30_000, 3))
    assert Preprocessing(crop_mode="border")(noise(1, 30_000, 3)).shape == (224, 224, 3)


def test_without_pillow_the_error_names_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "vit_jax.images")
    monkeypatch.delattr("vit_jax.images")
    monkeypatch.setitem(sys.modules, "PIL", None)
    preprocess = Preprocessing()
    with pytest.raises(ImportError, match="pip install pillow"):
        preprocess(noise(5, 5, 3))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("image_size", value) for value in (0, -1, (224,), (224, 2.5), 2**15)],
        *[("crop_pct", value) for value in (0, -0.5, float("nan"), float("inf"), "0.9", True, 10**400)],
        *[("crop_mode", value) for value in ("centre", 3)],
        *[("interpolation", value) for value in ("cubic", "random", 3)],
        *[("mean", value) for value in ((0.5, 0.5), (0.5, 0.5, "0.5"), 0.5, (0, 0, float("nan")))],
        *[("std", value) for value in ((0.5,), (0.5,) * 4, (0.5, 0.5, 0), (1, 1, -1))],
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}="):
        Preprocessing(**{argument: value})


def test_every_fraction_gives_the_size_before_the_crop():
    """`math.floor(160 / (160 / 212))` is 211."""
    for crop, full in [(side, side + more) for side in range(1, 400, 5) for more in range(0, 99, 7)]:
        assert Preprocessing(crop, fraction((crop, crop), (full, full))).resized(999, 999) == (full, full)
    assert math.floor(160 / (160 / 212)) == 211
    assert fraction((224, 160), (256, 182)) == 0.875
    with pytest.raises(ValueError, match="expected sizes with the same aspect ratio"):
        fraction((224, 224), (256, 288))


def test_timms_config_round_trips():
    preprocess = Preprocessing((160, 256), 0.95, "squash", "bilinear", *CLIP)
    config = json.loads(json.dumps(preprocess.to_config()))
    assert from_timm(config) == from_timm({"architecture": "vit", "pretrained_cfg": config}) == preprocess
    assert from_timm({}) == from_timm({"pretrained_cfg": {"crop_pct": None, "num_classes": 3}}) == Preprocessing()


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_pixel_equals_transformers(kind, tmp_path):
    """Even numbers of pixels are cropped. DINOv3's processor does not round to 8 bits, as Pillow does twice."""
    pytest.importorskip("torch")
    import tests.upstream  # noqa: F401, which makes torchvision importable

    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessor{'' if kind == 'DINOv3ViT' else 'Pil'}")()
    processor.save_pretrained(tmp_path)
    preprocess = read_preprocessing(tmp_path)
    assert from_transformers({"image_processor_type": f"{kind}ImageProcessorFast"}) == preprocess  # the defaults
    within = 1.01 / 255 / min(preprocess.std) if kind == "DINOv3ViT" else 1e-6
    for height, width in ((75, 100), (300, 225), (256, 256)):
        image = Image.fromarray(noise(height, width, 3))
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        np.testing.assert_allclose(preprocess(image), expected, rtol=0, atol=within)


VIT, DEIT, CLIPS = (dict(feature_extractor_type=f"{kind}FeatureExtractor") for kind in ("ViT", "DeiT", "CLIP"))
BIT = dict(image_processor_type="BitImageProcessor", image_mean=list(IMAGENET[0]), image_std=list(IMAGENET[1]))
BIT |= dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_pad=None)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VIT | dict(size=224), Preprocessing(224, 1.0, "squash", "bilinear", *HALF)),
        (VIT | dict(size=[224, 256], resample=3), Preprocessing((224, 256), 1.0, "squash", "bicubic", *HALF)),
        (DEIT | dict(size=256, crop_size=224), Preprocessing(224, 0.875, "squash", "bicubic", *HALF)),
        (DEIT | dict(size=224, do_center_crop=False), Preprocessing(224, 1.0, "squash", "bicubic", *HALF)),
        (CLIPS | dict(size=336, crop_size=336), Preprocessing(336, 1.0, "center", "bicubic", *CLIP)),
        (BIT, Preprocessing(224, 0.875, "center", "bicubic", *IMAGENET)),
        (BIT | dict(do_normalize=False), Preprocessing(224, 0.875, "center", "bicubic", (0.0,) * 3, (1.0,) * 3)),
        (
            BIT | dict(do_rescale=False, image_mean=[127.5] * 3, image_std=[51] * 3),
            Preprocessing(224, 0.875, "center", "bicubic", (0.5,) * 3, (0.2,) * 3),
        ),
    ],
)
def test_files_of_transformers(config, expected):
    assert from_transformers(config) == expected


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"shortest_edge": 256, "longest_edge": 500}),
        ("size", {"height": 224, "width": "224"}),
        ("size", {"shortest_edge": 0}),
        ("size", {"height": 10**400, "width": 224}),
        ("size", "large"),
        ("crop_size", {"height": 224, "width": 192}),
        ("crop_size", {"height": 224}),
        ("do_center_crop", False),
        ("do_resize", False),
        ("do_pad", True),
        ("resample", 6),
        ("resample", "bicubic"),
        ("resample", [3]),
        ("rescale_factor", 0),
        ("image_mean", [0.5]),
        ("image_std", [0.5, 0.5, 0]),
        ("image_processor_type", "BlipImageProcessor"),
        ("image_processor_type", None),
    ],
)
def test_values_that_are_not_supported_name_file_and_key(tmp_path, key, value):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(BIT | {key: value}))
    with pytest.raises(ValueError, match=f"{path}: .*{key}"):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pretrained_cfg": {"crop_pct": "1"}}', "crop_pct='1'"),
        ('{"pretrained_cfg": {"crop_mode": "\\u001b[2J"}}', r"crop_mode='\\x1b\[2J'"),
        ('{"pretrained_cfg": {"input_size": [4, 28, 28]}}', r"input_size=\[4, 28, 28\]: expected \[3, height, width\]"),
        ('{"pretrained_cfg": {"input_size": [3, 28, 0]}}', "input_size="),
        ('{"pretrained_cfg": {"mean": [0.5, 0.5, NaN]}}', ".*NaN is not a number"),
        ('{"pretrained_cfg": 3}', "pretrained_cfg is 3, expected dict"),
        ("[]", "a list: expected a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_damaged_configs_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}:? .*?{message}") as caught:
        read_preprocessing(tmp_path)
    assert len(str(caught.value)) < 600


def test_the_files_of_a_folder_have_an_order(tmp_path):
    """timm's config.json first, then a processor of text and images, then one of images."""
    write = lambda name, config: (tmp_path / name).write_text(json.dumps(config))
    assert read_preprocessing(tmp_path) is None
    write("config.json", {"architectures": ["Dinov2Model"], "image_size": 518})
    assert read_preprocessing(tmp_path) is None
    write("preprocessor_config.json", BIT)
    assert read_preprocessing(tmp_path) == from_transformers(BIT)
    write("processor_config.json", {"processor_class": "CLIPProcessor"})
    assert read_preprocessing(tmp_path) == from_transformers(BIT)
    write("processor_config.json", {"image_processor": CLIPS | {"size": 336, "crop_size": 336}})
    assert read_preprocessing(tmp_path).image_size == (336, 336)
    write("config.json", {"architecture": "vit", "pretrained_cfg": {"input_size": [3, 160, 256]}})
    assert read_preprocessing(tmp_path) == Preprocessing((160, 256))
