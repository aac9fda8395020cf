"""torchvision's published weights, fetched once and kept."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import rich.progress

from train.config import UserError
from vit_jax.teachers.weights import URL, WEIGHTS, Weights, published_weights

CACHE = Path(os.environ.get("VIT_JAX_CACHE", Path.home() / ".cache" / "vit_jax"))


def published_file(teacher: str, name: str, cache: Path = CACHE) -> Path:
    """The file of the weights `name` of a torchvision `teacher`, from `cache` or else from the network.

    Raises UserError for weights that do not exist, without a network, and for a file that is not the published one.
    """
    try:
        weights = published_weights(teacher, name)
    except ValueError as error:
        raise UserError(str(error)) from error
    path = cache / weights.file
    if not path.exists():
        fetch(weights, path)
    elif not is_published(path, weights):
        raise UserError(f"{path} is not what torchvision published: delete it, and it is fetched again")
    return path


def weights_file(network: str, source: str) -> str:
    """The path of `source`: a file, or the name of published weights of the torchvision `network`, then fetched.

    Raises UserError when it is neither.
    """
    if network in WEIGHTS and source in WEIGHTS[network]:
        return str(published_file(network, source))
    if not os.path.exists(source):
        names = f", or one of {', '.join(WEIGHTS[network])}" if network in WEIGHTS else ""
        raise UserError(f"{source} does not exist: expected a .pth, .pt or .safetensors file{names}")
    return source


def fetch(weights: Weights, path: Path) -> None:
    """Write the file of `weights` to `path`, which appears complete and checked or not at all."""
    url = URL + weights.file
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as response, open(part, "wb") as file:
            total = int(response.headers.get("Content-Length", 0)) or None
            with rich.progress.wrap_file(response, total or 0, description=f"fetching {weights.file}") as source:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
        if not is_published(part, weights):
            raise UserError(f"{url} did not give the published file: its SHA-256 does not begin with {weights.sha256}")
        part.replace(path)
    except (OSError, urllib.error.URLError) as error:
        raise UserError(f"{url} cannot be fetched ({error}): fetch it elsewhere, and put it at {path}") from error
    finally:
        part.unlink(missing_ok=True)


def is_published(path: Path, weights: Weights) -> bool:
    """Whether the SHA-256 of `path` begins as the file's published name says."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(weights.sha256)
