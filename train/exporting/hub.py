"""Upload an exported run to the Hugging Face hub."""

import tempfile
from pathlib import Path

from train import export
from train.errors import UserError, one_line
from train.exporting.card import Card
from train.exporting.folder import export as write_folder
from train.push import Options
from vit_jax.pretrained.hub import parse

LOGIN = "run `hf auth login`, or set HF_TOKEN, to a token that may write (https://huggingface.co/settings/tokens)"


def push(options: Options) -> None:
    """Export a run and upload it. With `options.dry_run`, nothing is uploaded.

    Raises:
        UserError: If there is no access token, the run cannot be exported, or the hub refuses it.
    """
    try:
        repository, revision = parse(f"hf:{options.repository}")
    except ValueError as error:
        raise UserError(str(error)) from error
    if revision is not None:
        raise UserError(f"{options.repository} names a revision: expected ORG/REPO")
    api = None if options.dry_run else _client(repository)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.out or f"{temporary}/exported")
        exported = export.Options(options.workdir, str(folder), options.formats)
        write_folder(exported, Card(repository, options.license))
        if api is None:
            print(f"nothing was uploaded (--dry-run); without it, {repository} would get these files")
            return
        try:
            api.create_repo(repository, private=options.private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by vit-jax push")
        except Exception as error:  # each version of the client raises the errors of another HTTP library
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = LOGIN if status in (401, 403) else one_line(error)
            raise UserError(f"{repository} cannot be written at {api.endpoint}: {reason}") from error
    print(f"published: {api.endpoint}/{repository}; load_pretrained('hf:{repository}') loads it")


def _client(repository: str):
    """The hub's client with an access token. Raises UserError if there is none."""
    from huggingface_hub import HfApi, get_token

    if (token := get_token()) is None:
        raise UserError(f"{repository} cannot be written without an access token: {LOGIN}")
    return HfApi(token=token, library_name="vit-jax")
