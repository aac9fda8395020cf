"""Published weights from the Hugging Face hub, through the package huggingface_hub.

Only files that are needed are fetched: config.json, preprocessor_config.json and the weights. They go to the cache that
all tools of the hub share (HF_HOME), so that weights which timm or transformers fetched are not fetched again.
The client resumes broken transfers, shows progress, and reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

import contextlib
import errno
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vit_jax.pretrained.files import is_index, shard_names, weights_name
from vit_jax.pretrained.json_files import CONFIG, PREPROCESSOR
from vit_jax.printable import printable

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Snapshot(NamedTuple):
    """Files of one commit of a repository, in the cache.

    Attributes:
        folder: contains the files.
        weights: name in `folder` of the file with the weights, or of the index of several.
        repository: "ORG/REPO".
        commit: 40 hexadecimal digits.
        licence: as the repository's card states it; None if it states none, or if the hub was not asked.
    """

    folder: Path
    weights: str
    repository: str
    commit: str
    licence: str | None


def parse(name: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision that "timm/NAME.TAG", "hf:ORG/REPO" or "hf:ORG/REPO@REVISION" names.

    Returns:
        None if `name` has neither form. The revision is None if the name has none.

    Raises:
        ValueError: if `name` begins with "hf:", but what follows is not a repository.
    """
    if name.startswith("timm/") and _REPOSITORY.fullmatch(name):
        return name, None
    if not name.startswith("hf:"):
        return None
    repository, at, revision = name.removeprefix("hf:").partition("@")
    _check_names(repository, revision if at else None)
    return repository, revision or None


def fetch(
    repository: str,
    revision: str | None = None,
    *,
    weights: str | None = None,
    token: str | bool | None = None,
    cache: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Snapshot:
    """Return the files of `repository` that loading its weights needs, after fetching those that are not cached.

    The hub says which commit `revision` is; if it does not answer, or with HF_HUB_OFFLINE=1, the cache says it.
    Files are compared with the hashes that the hub lists, and removed from the cache if they differ.

    Args:
        repository: "ORG/REPO".
        revision: branch, tag or commit; default: "main".
        weights: name of the file with the weights; default: chosen from the files that the repository has.
        token: access token, needed for gated and private repositories; default: HF_TOKEN, or that of `hf auth login`.
        cache: folder of the cache; default: that of the hub's other tools.
        notify: called with one line when weights are fetched, with their size and licence; default: writes to stderr.

    Raises:
        ImportError: if huggingface_hub is not installed.
        ValueError: if the repository, the revision or weights in it do not exist.
        OSError: if files can be neither fetched nor found in the cache.
    """
    _check_names(repository, revision)
    hub = _client()
    place = Path(cache or hub.constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"
    request = _Request(hub, repository, revision, weights, token, place, notify or _to_stderr)
    if hub.constants.HF_HUB_OFFLINE:
        if snapshot := request.cached():
            return snapshot
        raise OSError(
            f"{request.name} is not in the cache {place.parent}, and HF_HUB_OFFLINE is set.\n"
            f"Unset HF_HUB_OFFLINE, or run `hf download {repository}` where there is a network and copy the cache."
        )
    try:
        info = request.info()
    except Exception as error:  # each version of the client raises the errors of another HTTP library
        if not (snapshot := request.cached()):
            raise request.explained(error) from error
        known = f"using commit {snapshot.commit[:7]}, which is in the cache"
        request.notify(f"{request.name}: cannot ask the hub for news ({_reason(error)}); {known}")
        return snapshot
    return request.fetched(info)


def _check_names(repository: str, revision: str | None) -> None:
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository or len(repository) > 200:
        raise ValueError(f"{printable(repository)!r} is not a repository on the hub: expected ORG/REPO")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > 200):
        raise ValueError(f"{printable(revision)!r} is not a revision: expected a branch, a tag or a commit")


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors  # neither is an attribute of the package before
    except ImportError:
        raise ImportError("weights on the hub need the huggingface_hub package: pip install huggingface_hub") from None
    return huggingface_hub


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class _Request(NamedTuple):
    hub: ModuleType
    repository: str
    revision: str | None
    weights: str | None
    token: str | bool | None
    place: Path  # the folder of the repository in the cache
    notify: Callable[[str], None]

    @property
    def name(self) -> str:
        return self.repository + (f" (revision {self.revision})" if self.revision else "")

    def info(self) -> Any:
        """Commit, licence and files of the revision, as the hub lists them."""
        api = self.hub.HfApi(library_name="vit-jax", token=self.token)
        timeout = self.hub.constants.HF_HUB_ETAG_TIMEOUT
        return api.model_info(self.repository, revision=self.revision, files_metadata=True, timeout=timeout)

    def cached(self) -> Snapshot | None:
        """The files of the revision in the cache, if these include the weights."""
        commit = self.revision or "main"
        if not _COMMIT.fullmatch(commit):
            ref = self.place / "refs" / commit
            commit = ref.read_text().strip() if ref.is_file() else ""
        folder = self.place / "snapshots" / commit
        if not _COMMIT.fullmatch(commit) or not folder.is_dir():
            return None
        try:
            weights = self.weights or weights_name(self.name, [path.name for path in folder.iterdir()])
            names = [weights, *(shard_names(folder / weights) if is_index(weights) else ())]
        except (OSError, ValueError):
            return None
        is_complete = all((folder / name).is_file() for name in names)
        return Snapshot(folder, weights, self.repository, commit, None) if is_complete else None

    def fetched(self, info: Any) -> Snapshot:
        """The files of the commit `info.sha`. Weights come last, so that the cache never has weights alone."""
        files = {file.rfilename: file for file in info.siblings or ()}
        weights = self.weights or weights_name(self.name, files)
        if weights not in files:
            raise ValueError(f"{self.name} has no file {printable(weights)!r}")
        folder = self.place / "snapshots" / info.sha
        small = [name for name in (CONFIG, PREPROCESSOR, weights) if name in files and name.endswith(".json")]
        for name in small:
            self._download(folder, files[name], info.sha)
        large = shard_names(folder / weights) if is_index(weights) else [weights]
        if absent := set(large) - files.keys():
            raise ValueError(f"{self.name} lacks {printable(min(absent))!r}, which {weights} lists")
        licence = _licence(info)
        size = sum(files[name].size or 0 for name in large if not (folder / name).exists())
        if size:
            self.notify(
                f"{self.name}: fetching {size / 1e6:,.1f} MB of commit {info.sha[:7]}, "
                f"licence: {licence or 'not stated'} ({self._page()})"
            )
        for name in large:
            self._download(folder, files[name], info.sha)
        self._remember(info.sha)
        return Snapshot(folder, weights, self.repository, info.sha, licence)

    def _download(self, folder: Path, file: Any, commit: str) -> None:
        path = folder / file.rfilename
        if path.exists():
            return
        options = dict(revision=commit, token=self.token, cache_dir=self.place.parent, library_name="vit-jax")
        try:
            self.hub.hf_hub_download(self.repository, file.rfilename, **options)
        except Exception as error:
            raise self.explained(error) from error
        if not _is_intact(path, file):  # the client compares only the size
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise OSError(
                f"{self.name}: {printable(file.rfilename)} is not the file that the hub lists, and was removed.\n"
                "Try again; a proxy or a mirror (HF_ENDPOINT) may have changed it."
            )

    def _remember(self, commit: str) -> None:
        """Write which commit the revision is, which hf_hub_download does only if it asks the hub for each file."""
        ref = self.place / "refs" / (self.revision or "main")
        if self.revision == commit or (ref.is_file() and ref.read_text() == commit):
            return
        with contextlib.suppress(OSError):  # a cache that is complete may be read-only
            ref.parent.mkdir(parents=True, exist_ok=True)
            part = ref.with_name(f".{ref.name}.{commit}")
            part.write_text(commit)
            part.replace(ref)

    def _page(self) -> str:
        return f"{self.hub.constants.ENDPOINT}/{self.repository}"

    def explained(self, error: Exception) -> Exception:
        """A ValueError or an OSError of one to three lines for an error of the client."""
        errors, endpoint = self.hub.errors, self.hub.constants.ENDPOINT
        login = "run `hf auth login`, set HF_TOKEN, or pass token="
        if isinstance(error, errors.GatedRepoError):
            return PermissionError(
                f"{self.name} is gated: accept its terms at {self._page()},\n"
                f"then give an access token ({endpoint}/settings/tokens): {login}."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            commits = f"{self._page()}/commits/main"
            return ValueError(f"{self.repository} has no revision {self.revision or 'main'!r}: see {commits}")
        if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 404):
            return ValueError(
                f"{self.repository} was not found at {endpoint}: check the name.\n"
                f"If it is private or gated, give a valid access token: {login}."
            )
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full. Free space, or set HF_HOME to a folder on another disk"
            return OSError(number, f"{self.name}: {advice}", str(self.place.parent))
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "the cache cannot be written. Set HF_HOME to a folder that can be"
            return OSError(number, f"{self.name}: {advice}", str(self.place.parent))
        if isinstance(error, errors.LocalEntryNotFoundError):  # the client looked for the file after another error
            error = error.__cause__ or error
        return OSError(
            f"{self.name} could not be fetched from {endpoint} ({_reason(error)}).\n"
            "Check the connection and try again. Complete files stay in the cache and are not fetched again."
        )


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer that raised `error`."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception) -> str:
    status = _status(error)
    return f"it answered {status}" if status else f"{type(error).__name__}: {printable(error, 200)}"


def _licence(info: Any) -> str | None:
    """The licence on the repository's card."""
    card = info.card_data or {}
    licence = card.get("license")
    if licence in (None, "other", "unknown"):  # then the card gives its own name and link
        licence = " ".join(str(card[key]) for key in ("license_name", "license_link") if card.get(key)) or licence
    return licence if licence is None else printable(licence, 200)


def _is_intact(path: Path, file: Any) -> bool:
    """Whether a file has the size and the hash that the hub lists: SHA-256 of large files, git's SHA-1 of others."""
    size = path.stat().st_size
    if file.lfs:
        expected, digest = file.lfs.sha256, hashlib.sha256
    else:
        expected = file.blob_id
        digest = lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if file.size not in (None, size):
        return False
    with open(path, "rb") as content:
        return expected is None or hashlib.file_digest(content, digest).hexdigest() == expected
