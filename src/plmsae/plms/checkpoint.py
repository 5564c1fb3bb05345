"""A checkpoint folder: `config.json` and weights, read one tensor at a time and checked.

A missing tensor, a wrong shape or a value that is not finite is an error, never a random initialisation. Nothing is
loaded through the classes of transformers, so no code of a checkpoint can run. Safetensors are what is read; a family
whose publisher offers `pytorch_model.bin` alone may allow that file, which is then unpickled with `weights_only=True`:
tensors and plain containers, nothing that can be called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plmsae.artifacts.checksums import sha256_bytes, sha256_file
from plmsae.errors import DataError, UserError
from plmsae.plms.controls import Control

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
CONFIG = "config.json"

Precision = Literal["float32", "bfloat16"]


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        UserError: There is none.
        DataError: It is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {CONFIG}", fix="name a folder written by save_pretrained")
    with reading_config(folder):
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise TypeError("not a JSON object")
    return raw


@contextmanager
def reading_config(folder: Path) -> Iterator[None]:
    """Turn a missing or malformed value of the configuration into a `DataError` that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "the PLM's config is not valid", where=f"{folder / CONFIG}: {error}", fix="restore the file"
        ) from error


def refuse_unless(folder: Path, raw: Mapping[str, Any], expected: Mapping[str, object], family: str) -> None:
    """Refuse a configuration with other values than the ones that a family's forward is written for.

    Args:
        folder: The checkpoint.
        raw: Its configuration.
        expected: Key -> the only value that is right.
        family: What it is not, for the message.

    Raises:
        UserError: Names each key that differs.
    """
    wrong = [f"{key} = {raw.get(key)!r}, not {value!r}" for key, value in expected.items() if raw.get(key) != value]
    if wrong:
        raise UserError(
            f"'{folder}' is not {family}: {'; '.join(wrong)}",
            where=str(folder / CONFIG),
            fix="use a checkpoint of a family that docs/how-to/plms.md lists",
        )


def weight_files(folder: Path, *, pickled: bool = False) -> list[Path]:
    """The weight files of a checkpoint: one, or the shards named by its index.

    Args:
        folder: The checkpoint.
        pickled: Also take `pytorch_model.bin` where there are no safetensors.

    Raises:
        UserError: There is none.
        DataError: The index is malformed or names a missing shard.
    """
    single, index = folder / WEIGHTS, folder / WEIGHTS_INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        shards = shards_of(index)
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise DataError(f"weight file '{shard}' is missing", where=str(folder), fix="download it again")
        return [folder / shard for shard in shards]
    if pickled and (folder / PICKLED_WEIGHTS).is_file():
        return [folder / PICKLED_WEIGHTS]
    raise UserError(
        f"'{folder}' holds no {WEIGHTS}{f' or {PICKLED_WEIGHTS}' if pickled else ''}",
        fix="convert the checkpoint with save_pretrained"
        + ("" if pickled else "; pickled weights are not loaded for this family"),
    )


def shards_of(index: Path) -> list[str]:
    """The file names in an index of weights.

    Raises:
        DataError: It is malformed.
    """
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError("the index of the weights is not valid", where=str(index), fix="download it again") from error


class Checkpoint:
    """The tensors of a checkpoint; use it in a `with` statement.

    Args:
        folder: The checkpoint.
        pickled: Whether `pytorch_model.bin` may stand in for missing safetensors.
        names: Name in the file -> name asked for, where a file may use others; several for a tensor that holds as many
            of equal numbers of rows, one above the other.
        control: Puts other values in place of the trained ones.
        precision: Type of the matrices of linear layers; norms, biases and embeddings stay fp32.
        device: Where the tensors go.

    Attributes:
        folder: The checkpoint.
        config: The contents of `config.json`.

    Raises:
        UserError: No configuration or no weights.
        DataError: A corrupted file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pickled: bool = False,
        names: Callable[[str], tuple[str, ...]] = lambda name: (name,),
        control: Control | None = None,
        precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self._control = control
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._device = device
        self._files: list[Path] = []
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self._stack = ExitStack()
        if control is None or control.needs_weights:
            self._files = weight_files(folder, pickled=pickled)
            for file in self._files:
                self._open(file, names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._readers.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def revision(self) -> str:
        """`sha256:<hex>` of the weight file, or of the list of their sums where there are several.

        A control that reads no weights has that of `config.json`.
        """
        sums = [sha256_file(file) for file in self._files or [self.folder / CONFIG]]
        return f"sha256:{sums[0] if len(sums) == 1 else sha256_bytes(' '.join(sums).encode())}"

    def tensor(self, name: str, *shape: int, std: float = 0.02) -> Tensor:
        """A parameter, fp32 on the CPU.

        Args:
            name: Its name in the class of transformers.
            shape: Its shape according to the configuration.
            std: Standard deviation of the model's own initialisation, for random weights.

        Raises:
            DataError: It is missing, of another shape, or not finite.
        """
        if self._control is not None and not self._control.needs_weights:
            return self._control.initial(name, shape, std)
        if name not in self._readers:
            raise DataError(f"the weights lack '{name}'", where=str(self.folder), fix="use a complete checkpoint")
        tensor = self._read(name)
        if tuple(tensor.shape) != shape:
            raise DataError(
                f"'{name}' has shape {list(tensor.shape)}, not {list(shape)} as {CONFIG} says",
                where=str(self.folder),
                fix="use the weights and the configuration of one checkpoint",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"'{name}' holds values that are not finite", where=str(self.folder), fix="restore the file"
            )
        return tensor if self._control is None else self._control.permuted(name, tensor)

    def buffer(self, name: str) -> Tensor | None:
        """A tensor that is not a parameter, fp32 on the CPU, or None; no control touches it.

        Raises:
            DataError: It cannot be read.
        """
        return self._read(name) if name in self._readers else None

    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix of a linear layer, in its type and place."""
        return weight.to(self._device, self._dtype).contiguous()

    def place(self, tensor: Tensor) -> Tensor:
        """Any other tensor, fp32 in its place."""
        return tensor.to(self._device).contiguous()

    def _read(self, name: str) -> Tensor:
        try:
            return self._readers[name]().float().contiguous()
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"'{name}' cannot be read", where=f"{self.folder}: {error}", fix="restore or download the weights again"
            ) from error

    def _add(self, names: tuple[str, ...], read: Callable[[], Tensor]) -> None:
        for index, name in enumerate(names):
            self._readers[name] = read if len(names) == 1 else partial(_share, read, index, len(names))

    def _open(self, file: Path, names: Callable[[str], tuple[str, ...]]) -> None:
        try:
            if file.name == PICKLED_WEIGHTS:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                for name, value in loaded.items():
                    if isinstance(value, Tensor):
                        self._add(names(name), value.detach)
                return
            handle = self._stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            for name in handle.keys():  # noqa: SIM118
                self._add(names(name), partial(handle.get_tensor, name))
        except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, EOFError, KeyError) as error:
            raise DataError(
                f"weight file '{file.name}' is corrupted", where=f"{file}: {error}", fix="restore or download it again"
            ) from error
        except Exception as error:
            # torch.load raises pickle.UnpicklingError for what is not plain tensors; that module is not imported here.
            if type(error).__name__ != "UnpicklingError":
                raise
            raise DataError(
                f"weight file '{file.name}' holds more than tensors and is not loaded",
                where=str(file),
                fix="convert the checkpoint to safetensors with save_pretrained",
            ) from error


def _share(read: Callable[[], Tensor], index: int, count: int) -> Tensor:
    return read().chunk(count)[index]
