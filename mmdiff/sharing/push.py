"""`mmdiff push`: a run, a saved model or an exported folder to a repository of the hub, in one commit.

The client is huggingface_hub's. The token comes from where it looks for one (`HF_TOKEN`, its own login), never from an
argument: these stand in the history of a shell and in the list of processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmdiff.errors import ConfigError, line_of, shown
from mmdiff.files import check_sums
from mmdiff.model.published.layout import is_exported
from mmdiff.session import find_model

from .export import export, in_doubt

WEIGHTS = (".safetensors", ".safetensors.index.json")


def push(
    path: str | Path,
    repo: str,
    *,
    private: bool = False,
    endpoint: str | None = None,
    merge: bool = False,
    force: bool = False,
    licence: str | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """Write the export of a model to a repository, which is made where there is none. Returns where it is.

    path: a run, a checkpoint, a saved model, or what `export` wrote, which is pushed as it is. private: of a new
    repository. endpoint: of another hub. force: also a run that is not finished, or diverged.
    Weight files of an earlier push that the new one does not have are deleted in the same commit; all else stays.
    Raises ConfigError for what the hub refuses, and for a hub that cannot be reached; the repository is then as it was.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    source = find_model(Path(path))
    if (note := in_doubt(source)) and not force:
        raise ConfigError(f"{note}; --force pushes it all the same")
    if endpoint is not None and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc):
        raise ConfigError(f"endpoint: {shown(endpoint)!r} is no address, expected https://...")
    api = HfApi(endpoint=endpoint.rstrip("/") if endpoint else None, library_name="mmdiff")
    with _one_line(api.endpoint):
        validate_repo_id(repo)
        if get_token() is None:
            raise ConfigError("push: no token; set HF_TOKEN, or log in with `hf auth login`")
    with tempfile.TemporaryDirectory(prefix="mmdiff-push-") as scratch:
        if is_exported(source):
            if merge or licence:
                raise ConfigError(f"{source}: is exported already and pushed as it is, without --merge and --licence")
            check_sums(folder := source)
        else:
            folder = Path(scratch) / repo.rpartition("/")[2]
            export(source, folder, merge=merge, licence=licence)
        with _one_line(api.endpoint):
            return _commit(api, folder, repo, private, message or "Model by mmdiff push")


def _commit(api: Any, folder: Path, repo: str, private: bool, message: str) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    url = api.create_repo(repo, private=private or None, exist_ok=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    names = [file.relative_to(folder).as_posix() for file in files]
    old = [name for name in api.list_repo_files(url.repo_id) if name.endswith(WEIGHTS) and name not in names]
    done = api.create_commit(
        url.repo_id,
        [
            *(CommitOperationDelete(name) for name in old),
            *(CommitOperationAdd(name, file) for name, file in zip(names, files, strict=True)),
        ],
        commit_message=message,
    )
    size = sum(file.stat().st_size for file in files)
    return {"repo": url.repo_id, "url": str(url), "commit": done.oid, "files": len(files), "bytes": size}


@contextmanager
def _one_line(endpoint: str) -> Iterator[None]:
    """Make one line of what the client raises."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    of_client: Any = HfHubHTTPError.__mro__[1]  # of requests, httpx or httpx2, by release

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"repo: {line_of(error)}") from None
    except HfHubHTTPError as error:
        answer = error.response
        line = error.server_message or {401: "the token is not valid there", 404: "no such repository"}.get(
            answer.status_code, answer.reason_phrase
        )
        raise ConfigError(f"push: {endpoint} answers {answer.status_code}: {line_of(line)}") from None
    except (of_client, OSError) as error:  # no connection, no name, a time-out, offline mode
        if "xet-write-token" in str(error):
            raise ConfigError(f"push: {endpoint} has no Xet storage, expected HF_HUB_DISABLE_XET=1: LFS then") from None
        raise ConfigError(f"push: {endpoint} cannot be reached: {line_of(error)}") from None
    except ValueError as error:  # an answer that is none, or a card that the hub refuses
        raise ConfigError(f"push: {endpoint}: {line_of(error)}") from None
