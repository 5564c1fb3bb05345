"""Checkpoints from the Hugging Face hub: pinned to a commit, safetensors only, no remote code."""

from __future__ import annotations

import json
from pathlib import Path

from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.plms.esm2_weights import CONFIG, WEIGHTS, WEIGHTS_INDEX


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """Fetch a checkpoint, or find it in the local cache.

    Args:
        name: Repository, e.g. `facebook/esm2_t6_8M_UR50D`.
        revision: Branch, tag or commit hash; by default the main branch.

    Returns:
        The folder that holds it, and the commit hash that the revision stands for.

    Raises:
        UserError: No such repository or revision, no access, or no safetensors in it.
        TryAgainError: The hub cannot be reached and the cache does not hold the checkpoint.
    """
    from huggingface_hub import errors, hf_hub_download

    at = f"revision {revision}" if revision else "its main branch"

    def fetch(file: str, commit: str | None) -> Path:
        return Path(hf_hub_download(name, file, revision=commit))

    try:
        # The cache keeps each snapshot in a folder named by its commit: what the first file resolves to pins the rest.
        folder = fetch(CONFIG, revision).parent
        commit = folder.name
        try:
            fetch(WEIGHTS, commit)
        except errors.EntryNotFoundError:
            index = fetch(WEIGHTS_INDEX, commit)
            for shard in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
                fetch(shard, commit)
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"the hub has no {at} of '{name}', or it may not be read without a token",
            fix="correct the name or the revision, or log in with `hf auth login`",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(
            f"'{name}' has no safetensors at {at}",
            fix="choose a revision that has them, or convert it into a local folder; pickles are never loaded",
        ) from error
    except (ValueError, KeyError) as error:
        raise DataError(f"the index of '{name}' is not valid", where=WEIGHTS_INDEX, fix="choose a revision") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise TryAgainError(
            f"the hub cannot be reached and the local cache does not hold '{name}'",
            where=_first_line(error),
            fix="connect and run again, or name a local folder, or use plm: esm_small",
        ) from error
    return folder, commit


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
