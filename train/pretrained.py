"""torchvision's published weights, fetched once and kept."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.response import addinfourl

import rich.progress

from train.errors import UserError, shortened
from vit_jax.printable import printable
from vit_jax.teachers.weights import URL, WEIGHTS, Weights, published_weights

CACHE = Path(os.environ.get("VIT_JAX_CACHE", "~/.cache/vit_jax")).expanduser()
LARGEST = 4 << 30  # bytes; the largest of torchvision's files has 2.6 GB


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other https addresses alone."""

    def redirect_request(self, request, response, code, message, headers, url):
        if not url.lower().startswith("https://"):
            raise OSError(f"it redirects to {url}, expected an https address")
        return super().redirect_request(request, response, code, message, headers, url)


# Of urllib's handlers those for https: another scheme is "unknown".
HANDLERS = (
    urllib.request.HTTPSHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    HttpsOnly,
)


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


def weights_file(network: str, source: str, option: str) -> str:
    """The path of `source`: a file, or the name of published weights of the torchvision `network`, then fetched.

    Raises UserError, which names the `option` that gave it, when it is neither.
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
    """Write the file of `weights` to `path`, which appears complete and checked or not at all."""
    url = URL + weights.file
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opener().open(url, timeout=30) as response, open(part, "wb") as file:
            copy(response, file, description=f"fetching {weights.file}")
        if not is_published(part, weights):
            raise UserError(f"{url} did not give the published file: its SHA-256 does not begin with {weights.sha256}")
        part.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last from malformed addresses
        reason = printable(str(error) or type(error).__name__, 300)
        raise UserError(f"{url} cannot be fetched ({reason}): fetch it elsewhere, and put it at {path}") from error
    finally:
        part.unlink(missing_ok=True)


def opener() -> urllib.request.OpenerDirector:
    """Opens https addresses, through the proxy that the environment names."""
    director = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        director.add_handler(handler())
    return director


def copy(response: http.client.HTTPResponse | addinfourl, file: BinaryIO, description: str) -> None:
    """Write the body of `response` to `file` under a progress bar.

    Raises OSError unless the body is whole and not too large.
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
    """Whether the SHA-256 of `path` begins as the file's published name says."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(weights.sha256)
