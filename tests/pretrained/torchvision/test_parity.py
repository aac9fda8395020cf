"""Every teacher against torchvision's network with the same weights and images."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from vit_jax import create_model
from vit_jax.convert import from_torch, to_torch, torch_key
from vit_jax.layers import BatchNorm, LayerNorm
from vit_jax.registry import FAMILIES
from vit_jax.teachers import list_teachers

torch = pytest.importorskip("torch")
from tests.upstream import channels_first  # noqa: E402, which makes torchvision importable

torchvision = pytest.importorskip("torchvision")

SLOW = {"alexnet", "vgg11_bn"}  # their linear layers are large
ALWAYS = {names.split()[0] for names in FAMILIES.values()} - SLOW | {"resnet50", "resnext50_32x4d"}
# Rounding errors grow in deep random networks: torch's own float32 logits differ from its float64 logits by 3e-4.
TOLERANCE = {"resnet152": 1e-3}
EVERY = [
    name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in torchvision.models.list_models(module=torchvision.models)
]


@torch.no_grad()
def settled(module, images):
    """Make `module` like a trained network: no parameter at its default, and running statistics of its activations.

    The statistics are exact: in deep networks small errors would add up, and hide the difference between images.
    """
    generator = torch.Generator().manual_seed(0)
    has = lambda *types: [m for m in module.modules() if isinstance(m, types)]
    batch_norms = has(torch.nn.BatchNorm2d)
    for parameter in module.parameters():
        if parameter.ndim < 2 or parameter.amin() == parameter.amax():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        elif not batch_norms and not has(torch.nn.LayerNorm):  # so that the difference does not fade
            torch.nn.init.kaiming_normal_(parameter)
    if batch_norms:
        for norm in batch_norms:
            norm.momentum = 1.0
        module.train()
        for dropout in has(torch.nn.Dropout, torchvision.ops.StochasticDepth):
            dropout.eval()
        module(images)
    return module.eval()


def converted(model, state_dict, images):
    """Variables; epsilon and momentum of every norm, which logits hardly show, by its name in torch."""
    found = {}

    def record(call, args, kwargs, context):
        if isinstance(module := context.module, BatchNorm | LayerNorm):
            key = torch_key(model, ("params", *module.path, "scale"))
            found[key.removesuffix(".weight")] = (module.epsilon, getattr(module, "momentum", None))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = from_torch(model, state_dict, images)
    return variables, found


def their_norms(module):
    return {
        name: (norm.eps, getattr(norm, "momentum", None))
        for name, norm in module.named_modules()
        if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.LayerNorm)
    }


def networks(name):
    """Arguments of each network to compare, and sizes of its images: those that take one alone are built twice.

    The last size of all is always compared, the others on request.
    """
    if name.startswith("vit_"):
        patch_size = int(name.rpartition("_")[2])
        return [(dict(image_size=size), [(size, size)]) for size in (224, 5 * patch_size)]
    if name.startswith("maxvit_"):
        return [(dict(input_size=(size, size)), [(size, size)]) for size in (224, 222)]
    largest = (299, 299) if name == "inception_v3" else (224, 224)  # as it is published
    return [({}, [largest, (96, 128)])]


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.usefixtures("unchecked_types")  # which compare sizes by numpy, where they may broadcast
@pytest.mark.parametrize("name", EVERY)
def test_logits_equal_torchvisions(name, pytestconfig):
    is_exhaustive = pytestconfig.getoption("--exhaustive")
    for arguments, sizes in networks(name)[0 if is_exhaustive else -1 :]:
        assert_logits_equal(name, arguments, sizes[0 if is_exhaustive else -1 :])


def assert_logits_equal(name, arguments, sizes):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None, **arguments)
    ours = create_model(name, **arguments)
    rng = np.random.default_rng(0)
    expected_norms = their_norms(theirs)  # before `settled` sets their momentum
    least = (299, 299) if name == "inception_v3" else sizes[0]  # its auxiliary head trains on no fewer pixels
    theirs = settled(theirs, channels_first(rng.standard_normal((4, *least, 3), np.float32)))
    variables = None
    for size in sizes:
        images = rng.standard_normal((2, *size, 3), np.float32)
        if variables is None:
            state_dict = {key: value.numpy() for key, value in theirs.state_dict().items()}
            variables, norms = converted(ours, state_dict, images)
            assert norms == expected_norms
            assert_same(to_torch(ours, variables), state_dict)
        with torch.no_grad():
            expected = theirs(channels_first(images)).numpy()
        logits = exported_for_any_batch(ours, variables, images)
        assert np.abs(logits - expected).max() <= TOLERANCE.get(name, 1e-4) * np.abs(expected).max()
        assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()  # logits depend on the image


def exported_for_any_batch(model, variables, images):
    """Logits by the exported program of `model`, whose batch has any size."""
    (batch,) = export.symbolic_shape("b")
    images_of_any_batch = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    return jax.jit(export.export(jax.jit(model.apply))(variables, images_of_any_batch).call)(variables, images)


def assert_same(ours: dict, theirs: dict):
    counters = {key for key in theirs if key.endswith("num_batches_tracked")}
    assert ours.keys() == theirs.keys() - (counters - ours.keys())
    for key, value in ours.items():
        if key not in counters:
            np.testing.assert_array_equal(value, theirs[key], err_msg=key)


def test_every_classifier_of_torchvision_is_here():
    assert list_teachers() == torchvision.models.list_models(module=torchvision.models)
