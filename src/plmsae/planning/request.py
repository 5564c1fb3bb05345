"""What is to be planned, resolved to numbers: nothing here knows parameter files or the command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from plmsae.planning.accelerators import Accelerator
from plmsae.planning.lengths import Lengths
from plmsae.planning.models import Transformer


@dataclass(frozen=True)
class Corpus:
    """The sequences.

    Attributes:
        description: Where their lengths come from.
        splits: `train`, `valid` and `test` -> lengths of the rows after ingest.
        left_out: What ingest drops, crops or cuts into windows, in sequences.
    """

    description: str
    splits: dict[str, Lengths]
    left_out: dict[str, float] = field(default_factory=dict)

    @property
    def stored(self) -> tuple[Lengths, ...]:
        """The splits whose activations are stored."""
        return self.splits["train"], self.splits["valid"]


@dataclass(frozen=True)
class Storing:
    """How activations are stored.

    Attributes:
        captures: (layer, hook) of every store.
        dtype: Stored type.
        block_rows: Rows of a block.
        part_rows: Rows that are shuffled and written together.
        batch_tokens: Tokens that go through the model at once.
        precision: Type of the model's matrix products.
        remote: True if the chunks go to a bucket.
    """

    captures: tuple[tuple[int, str], ...]
    dtype: str
    block_rows: int
    part_rows: int
    batch_tokens: int
    precision: str
    remote: bool


@dataclass(frozen=True)
class Training:
    """The SAEs.

    Attributes:
        architecture: Name of the architecture.
        latents: Size of the dictionary, n.
        k: Latents active on a token; None where the architecture has no such number.
        tokens: Length of one training in tokens.
        batch: Tokens of a step.
        saes: SAEs per store.
        precision: Type of the matrix products.
    """

    architecture: str
    latents: int
    k: int | None
    tokens: int
    batch: int
    saes: int
    precision: str = "float32"  # what train_sae and the evaluations compute in


@dataclass(frozen=True)
class Machine:
    """What computes, and what it costs.

    Attributes:
        device: The accelerator.
        count: How many of them.
        utilisation: Share of the peak rates behind the second, assumed time.
        price: Money per device and hour, if stated.
        free_disk: Free bytes in the working folder.
        memory: Bytes of memory of this machine.
    """

    device: Accelerator
    count: int
    utilisation: float
    price: float | None
    free_disk: float
    memory: float


@dataclass(frozen=True)
class Request:
    """A whole plan.

    Of evaluate@fidelity, `fidelity_proteins` is the most proteins (None: all of the test split) and `fidelity_single`
    the residues of each sequence that are masked one at a time.
    """

    title: str
    plm: Transformer
    corpus: Corpus
    storing: Storing
    training: Training
    machine: Machine
    fidelity_proteins: int | None = None
    fidelity_single: int = 0
    notes: tuple[str, ...] = ()
