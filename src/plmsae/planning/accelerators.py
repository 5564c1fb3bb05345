"""What computes: a table of accelerators from their makers' data sheets, and this machine's processor as measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from plmsae.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        name: Name on the command line.
        flops: Peak rate of matrix products in FLOP/s, without sparsity.
        bandwidth: Bytes/s of its memory.
        memory: Bytes of its memory.
        value_bytes: Bytes of a value in these products: 2 for bfloat16, 4 for fp32.
        source: Where the figures come from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    value_bytes: int
    source: str


_NVIDIA = "NVIDIA data sheet: dense bfloat16"
_TABLE = {
    device.name: device
    for device in (
        Accelerator("a10", 125e12, 600e9, 24e9, 2, _NVIDIA),
        Accelerator("a100-40gb", 312e12, 1555e9, 40e9, 2, f"{_NVIDIA}, SXM"),
        Accelerator("a100-80gb", 312e12, 2039e9, 80e9, 2, f"{_NVIDIA}, SXM"),
        Accelerator("l4", 121e12, 300e9, 24e9, 2, _NVIDIA),
        Accelerator("l40s", 362e12, 864e9, 48e9, 2, _NVIDIA),
        Accelerator("h100", 989e12, 3350e9, 80e9, 2, f"{_NVIDIA}, SXM"),
        Accelerator("h100-pcie", 756e12, 2000e9, 80e9, 2, _NVIDIA),
        Accelerator("h200", 989e12, 4800e9, 141e9, 2, f"{_NVIDIA}, SXM"),
        Accelerator("b200", 2250e12, 8000e9, 180e9, 2, f"{_NVIDIA}, HGX"),
        Accelerator("mi300x", 1307e12, 5300e9, 192e9, 2, "AMD data sheet: dense bfloat16"),
    )
}


def accelerator_names() -> tuple[str, ...]:
    """Names for `--device`."""
    return ("cpu", *_TABLE)


def accelerator(name: str, *, flops: float | None = None, bandwidth: float | None = None) -> Accelerator:
    """A device by name; `cpu` is measured for about a second unless both rates are stated.

    Args:
        name: One of `accelerator_names()`.
        flops: A rate in FLOP/s in place of the table's.
        bandwidth: Bytes/s in place of the table's.

    Raises:
        UserError: Unknown name.
    """
    if name == "cpu":
        return _processor(flops, bandwidth)
    if name not in _TABLE:
        raise UserError(
            f"unknown device '{name}'",
            where="--device",
            fix=f"{did_you_mean(name, accelerator_names())} Any other one: --device cpu --flops FLOP/S --bandwidth B/S",
        )
    device = _TABLE[name]
    if flops is None and bandwidth is None:
        return device
    return Accelerator(
        name, flops or device.flops, bandwidth or device.bandwidth, device.memory, device.value_bytes, "stated"
    )


def installed_accelerator(driver: Path = Path("/proc/driver/nvidia")) -> str | None:
    """The table's name of the first NVIDIA device that the driver lists on this machine, if there is one."""
    for path in sorted(driver.glob("gpus/*/information")):
        text = path.read_text(encoding="utf-8", errors="replace").lower()
        model = next((line.partition(":")[2] for line in text.splitlines() if line.startswith("model:")), "")
        for name in sorted(_TABLE, key=len, reverse=True):
            if all(word in model.replace("-", " ").split() for word in name.split("-")):
                return name
    return None


def _processor(flops: float | None, bandwidth: float | None) -> Accelerator:
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if flops is not None and bandwidth is not None:
        return Accelerator("cpu", flops, bandwidth, memory, 4, "stated")
    rate, copied = _measure()
    source = "measured now: fp32 products of 1,024 x 1,024 matrices, copies of 64 MB"
    return Accelerator("cpu", flops or rate, bandwidth or copied, memory, 4, source)


def _measure() -> tuple[float, float]:
    """Rate of fp32 products and of memory on all threads that torch takes: the best of some repetitions."""
    from time import perf_counter

    import torch

    size, count = 1024, 16_000_000
    left, out = torch.ones(size, size), torch.empty(size, size)
    source, target = torch.ones(count), torch.empty(count)
    product = copy = float("inf")
    for _ in range(6):
        start = perf_counter()
        torch.mm(left, left, out=out)
        middle = perf_counter()
        target.copy_(source)
        product = min(product, middle - start)
        copy = min(copy, perf_counter() - middle)
    return 2 * size**3 / product, 8 * count / copy
