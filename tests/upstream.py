"""Import vit-pytorch with a CPU build of torch, and perturb the parameters of its models."""

import importlib.machinery
import importlib.util
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # pytest-xdist already keeps every core busy

# A CPU build of torch lacks torchvision's compiled operators; with their schemas, torchvision can be imported.
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Spectrogram(torch.nn.Module):
    """The class that vaat.py imports from torchaudio, by its formula: a power of the magnitudes of torch's STFT."""

    def __init__(self, *, n_fft, power, win_length, hop_length, pad, center, pad_mode):
        super().__init__()
        length = win_length or n_fft
        self.register_buffer("window", torch.hann_window(length))
        self.padding, self.power = (pad, pad), power
        self.options = dict(n_fft=n_fft, hop_length=hop_length or length // 2, win_length=length)
        self.options |= dict(center=center, pad_mode=pad_mode, return_complex=True)

    def forward(self, sound):
        sound = torch.nn.functional.pad(sound, self.padding)
        return torch.stft(sound, window=self.window, **self.options).abs().pow(self.power)


if importlib.util.find_spec("torchaudio") is None:
    spec = importlib.machinery.ModuleSpec("torchaudio", None)  # transformers asks for it
    sys.modules["torchaudio"] = importlib.util.module_from_spec(spec)
    sys.modules["torchaudio.transforms"] = types.ModuleType("torchaudio.transforms")
    sys.modules["torchaudio.transforms"].Spectrogram = Spectrogram


@torch.no_grad()
def shake(module, *, seed: int = 0, scale: float = 1.0):
    """Add noise to every parameter and running statistic, since defaults of one and zero hide swapped parameters.

    A `scale` below one makes activations small, so that a wrong epsilon of a norm changes results.
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = [(name, tensor) for name, tensor in module.named_buffers() if "running_" in name]
    for name, tensor in [*module.named_parameters(), *statistics]:
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.add_(noise.abs() if name.endswith("running_var") else noise, alpha=0.1).mul_(scale)
    return module.eval()


def channels_first(images: np.ndarray | list):
    """Images (b, h, w, c), or a list of images (h, w, c), with channels first; sequences (b, n, d) unchanged."""
    if isinstance(images, list):
        return [channels_first(image[None])[0] for image in images]
    # A copy, as torch warns of read-only arrays, such as JAX's.
    return torch.from_numpy((np.moveaxis(images, -1, 1) if images.ndim > 3 else images).copy())
