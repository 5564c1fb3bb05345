"""What computes: a table of accelerators from their makers' data sheets, and this machine's processor as measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from plmsae.errors import UserError, did_you_mean

PRECISIONS = {"float32": 4, "bfloat16": 2}  # bytes of a value


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        name: Name on the command line.
        rates: Precision -> peak rate of its matrix products in FLOP/s, without sparsity and without TF32.
        bandwidth: Bytes/s of its memory.
        memory: Bytes of its memory.
        source: Where the figures come from.
    """

    name: str
    rates: Mapping[str, float]
    bandwidth: float
    memory: float
    source: str


def _listed(
    name: str, bfloat16: float, float32: float, bandwidth: float, memory: float, form: str = "", maker: str = "NVIDIA"
) -> Accelerator:
    """A row of the table, in TFLOP/s, GB/s and GB as the data sheets give them."""
    rates = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Accelerator(name, rates, bandwidth * 1e9, memory * 1e9, f"{maker} data sheet{form}, without sparsity")


_TABLE = {
    device.name: device
    for device in (
        _listed("a10", 125, 31.2, 600, 24),
        _listed("a100-40gb", 312, 19.5, 1555, 40, ", SXM"),
        _listed("a100-80gb", 312, 19.5, 2039, 80, ", SXM"),
        _listed("l4", 121, 30.3, 300, 24),
        _listed("l40s", 362, 91.6, 864, 48),
        _listed("h100", 989, 67, 3350, 80, ", SXM"),
        _listed("h100-pcie", 756, 51, 2000, 80),
        _listed("h200", 989, 67, 4800, 141, ", SXM"),
        _listed("mi300x", 1307, 163.4, 5300, 192, maker="AMD"),
    )
}


def accelerator_names() -> tuple[str, ...]:
    """Names for `--device`."""
    return ("cpu", *_TABLE)


def accelerator(name: str, *, flops: float | None = None, bandwidth: float | None = None) -> Accelerator:
    """A device by name; `cpu` is measured for about a second unless both rates are stated.

    Args:
        name: One of `accelerator_names()`.
        flops: A rate in FLOP/s in place of the table's, for every precision.
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
    rates = device.rates if flops is None else dict.fromkeys(PRECISIONS, flops)
    return Accelerator(name, rates, bandwidth or device.bandwidth, device.memory, "stated")


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
        return Accelerator("cpu", dict.fromkeys(PRECISIONS, flops), bandwidth, memory, "stated")
    rates, copied = _measure()
    source = "measured now: products of 1,024 x 1,024 matrices, copies of 64 MB"
    if flops is not None:
        rates = dict.fromkeys(PRECISIONS, flops)
    return Accelerator("cpu", rates, bandwidth or copied, memory, source)


def _measure() -> tuple[dict[str, float], float]:
    """Rates of products and of memory on all threads that torch takes: the best of some repetitions."""
    from time import perf_counter

    import torch

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            start = perf_counter()
            run()
            times.append(perf_counter() - start)
        return min(times)

    size, count, rates = 1024, 16_000_000, {}
    for precision in PRECISIONS:
        left = torch.ones(size, size, dtype=getattr(torch, precision))
        out = torch.empty_like(left)
        rates[precision] = 2 * size**3 / best(partial(torch.mm, left, left, out=out))
    source, target = torch.ones(count), torch.empty(count)
    return rates, 8 * count / best(partial(target.copy_, source))
