"""Download torchvision's published weights, once."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.response import addinfourl

import rich.progress

from train.errors import UserError, shortened
from vit_jax.pretrained.torchvision.weights import URL, WEIGHTS, Weights, published_weights
from vit_jax.printable import printable

CACHE = Path(os.environ.get("VIT_JAX_CACHE", "~/.cache/vit_jax")).expanduser()
LARGEST = 4 << 30  # bytes; torchvision's largest file has 2.6 GB


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to https addresses."""

    def redirect_request(self, request, response, code, message, headers, url):
        if not url.lower().startswith("https://"):
            raise OSError(f"it redirects to {url}, expected an https address")
        return super().redirect_request(request, response, code, message, headers, url)


# Only urllib's handlers for https; any other scheme is reported as unknown.
HANDLERS = (
    urllib.request.HTTPSHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    HttpsOnly,
)


def published_file(teacher: str, name: str, cache: Path = CACHE) -> Path:
    """The file of published weights, downloaded if it is not in the cache.

    Args:
        teacher: Name of the torchvision network.
        name: Name of its weights, such as IMAGENET1K_V1.
        cache: Folder of downloaded files.

    Raises:
        UserError: If there are no such weights, the download fails, or the file is not the published one.
    """
    try:
        weights = published_weights(teacher, name)
    except ValueError as error:
        raise UserError(str(error)) from error
    path = cache / weights.file
    if not path.exists():
        fetch(weights, path)
    elif not is_published(path, weights):
        raise UserError(f"{path} is not the file that torchvision published: delete it to download it again")
    return path


def weights_file(network: str, source: str, option: str) -> str:
    """The path of a file of weights.

    Args:
        network: Name of the network.
        source: A file, or the name of published weights of a torchvision network, which are downloaded.
        option: The command-line option that gave `source`, for messages.

    Raises:
        UserError: If `source` is neither, or the download fails.
    """
    check_weights(network, source, option)
    if source in WEIGHTS.get(network, ()):
        return str(published_file(network, source))
    return os.path.expanduser(source)


def check_weights(network: str, source: str, option: str) -> None:
    """Raises UserError unless `source` is a file, or the name of published weights of the torchvision `network`."""
    published = WEIGHTS.get(network, ())
    if source not in published and not os.path.exists(os.path.expanduser(source)):
        expected = "a .pth, .pt or .safetensors file" + (f", or one of {', '.join(published)}" if published else "")
        raise UserError(f"{option} {shortened(source)} does not exist: expected {expected}")


def fetch(weights: Weights, path: Path) -> None:
    """Download the file of `weights` to `path`, which appears only once the file is complete and verified."""
    url = URL + weights.file
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opener().open(url, timeout=30) as response, open(part, "wb") as file:
            copy(response, file, description=f"fetching {weights.file}")
        if not is_published(part, weights):
            raise UserError(f"{url} did not give the published file: its SHA-256 does not begin with {weights.sha256}")
        part.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a malformed address
        reason = printable(str(error) or type(error).__name__, 300)
        raise UserError(f"{url} cannot be fetched ({reason}): fetch it elsewhere, and put it at {path}") from error
    finally:
        part.unlink(missing_ok=True)


def opener() -> urllib.request.OpenerDirector:
    """An opener of https addresses, which uses the proxy that the environment names."""
    director = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        director.add_handler(handler())
    return director


def copy(response: http.client.HTTPResponse | addinfourl, file: BinaryIO, description: str) -> None:
    """Write the body of `response` to `file`, with a progress bar.

    Raises OSError if the body is incomplete or too large.
    """
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() and length.isascii() and len(length) < 20 else None
    if total is not None and total > LARGEST:
        raise OSError(f"it has {total:,} bytes, expected at most {LARGEST:,}")
    done = 0
    with rich.progress.wrap_file(response, total or 0, description=description) as source:
        while chunk := source.read(1 << 20):
            done += len(chunk)
            if done > LARGEST:
                raise OSError(f"it has more than {LARGEST:,} bytes")
            file.write(chunk)
    if total is not None and done != total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def is_published(path: Path, weights: Weights) -> bool:
    """Whether the SHA-256 of `path` begins with the digits in the file's published name."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(weights.sha256)
