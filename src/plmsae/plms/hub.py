"""Checkpoints from the Hugging Face hub: pinned to a commit, only the files that are read, no remote code."""

from __future__ import annotations

from pathlib import Path

from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.plms.checkpoint import CONFIG, PICKLED_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, shards_of
from plmsae.plms.families import Family


def download(name: str, revision: str | None, family: Family, *, weights: bool = True) -> tuple[Path, str]:
    """Fetch a checkpoint, or find it in the local cache.

    Args:
        name: Repository, e.g. `facebook/esm2_t6_8M_UR50D`.
        revision: Branch, tag or commit hash; by default the main branch.
        family: Says which files are needed.
        weights: Whether the weights are.

    Returns:
        The folder that holds it, and the commit hash that the revision stands for.

    Raises:
        UserError: No such repository or revision, no access, or no weights in a form that is read.
        DataError: The index of its weights is malformed.
        TryAgainError: The hub cannot be reached and the cache does not hold the checkpoint.
    """
    from huggingface_hub import errors, hf_hub_download

    at = f"revision {revision}" if revision else "its main branch"

    def fetch(file: str, commit: str | None) -> Path:
        return Path(hf_hub_download(name, file, revision=commit))

    def fetch_weights(commit: str) -> None:
        try:
            fetch(WEIGHTS, commit)
            return
        except errors.EntryNotFoundError:
            pass
        try:
            index = fetch(WEIGHTS_INDEX, commit)
        except errors.RemoteEntryNotFoundError:
            if not family.pickled:
                raise
            fetch(PICKLED_WEIGHTS, commit)
            return
        for shard in shards_of(index):
            fetch(shard, commit)

    try:
        # The cache keeps each snapshot in a folder named by its commit: what the first file resolves to pins the rest.
        folder = fetch(CONFIG, revision).parent
        commit = folder.name
        for file in family.files:
            fetch(file, commit)
        if weights:
            fetch_weights(commit)
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"the hub has no {at} of '{name}', or it may not be read without a token",
            fix="correct the name or the revision, or log in with `hf auth login`",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(
            f"'{name}' has no {'weights that can be read' if family.pickled else 'safetensors'} at {at}",
            where=_first_line(error),
            fix="choose a revision that has them, or convert it into a local folder with save_pretrained",
        ) from error
    except DataError:
        raise
    except (OSError, errors.HfHubHTTPError) as error:
        raise TryAgainError(
            f"the hub cannot be reached and the local cache does not hold '{name}'",
            where=_first_line(error),
            fix="connect and run again, or name a local folder, or use plm: esm_small",
        ) from error
    return folder, commit


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
