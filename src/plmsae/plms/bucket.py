"""Checkpoints from an S3 store, with what `save_pretrained` writes below a prefix."""

from __future__ import annotations

from pathlib import Path

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.s3 import S3, S3Uri, endpoint
from plmsae.errors import UserError
from plmsae.plms.checkpoint import CONFIG, PICKLED_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, read_config, shards_of
from plmsae.plms.families import family_of


def download(address: str, cache: Path, *, weights: bool = True) -> Path:
    """Bring a checkpoint to this disk, unless it is there already.

    Args:
        address: `s3://bucket/prefix`; credentials and endpoint come from the AWS_* variables.
        cache: Folder of fetched checkpoints.
        weights: Whether the weights are needed.

    Returns:
        `cache/<hash>/<last part of the prefix>`; the hash is of the address and of every object's entity tag below it,
        so that another content is another folder.

    Raises:
        UserError: No such bucket or checkpoint, or no permission.
        DataError: Its configuration or index is malformed.
        TryAgainError: The store cannot be reached.
    """
    source = S3Uri.parse(address, "plm")
    store = S3()
    sizes = {name: size for name, size in store.list(source) if "/" not in name}
    if CONFIG not in sizes:
        raise UserError(
            f"'{address}' holds no {CONFIG}",
            where=endpoint(),
            fix="name the prefix under which the files of save_pretrained lie",
        )
    tags = [f"{name} {info.etag}" for name in sorted(sizes) if (info := store.head(source / name)) is not None]
    folder = cache / sha256_bytes("\n".join([str(source), *tags]).encode())[:32] / source.name

    def fetch(name: str) -> Path:
        path = folder / name
        if name in sizes and not (path.is_file() and path.stat().st_size == sizes[name]):
            store.download(source / name, path)
        return path

    fetch(CONFIG)
    family = family_of(read_config(folder), address)
    for file in family.files:
        fetch(file)
    if weights:
        if WEIGHTS in sizes:
            fetch(WEIGHTS)
        elif WEIGHTS_INDEX in sizes:
            for shard in shards_of(fetch(WEIGHTS_INDEX)):
                fetch(shard)
        elif family.pickled:
            fetch(PICKLED_WEIGHTS)
    return folder
