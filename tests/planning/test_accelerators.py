"""The table of devices, and the processor as measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from plmsae.errors import UserError
from plmsae.planning.accelerators import accelerator, accelerator_names, installed_accelerator


def test_the_table_is_in_base_units() -> None:
    h200 = accelerator("h200")
    assert (h200.rates, h200.bandwidth, h200.memory) == ({"bfloat16": 989e12, "float32": 67e12}, 4.8e12, 141e9)
    for name in accelerator_names()[1:]:
        device = accelerator(name)
        assert 1e14 < device.rates["bfloat16"] < 1e16, name
        assert 1e13 < device.rates["float32"] < device.rates["bfloat16"] / 3, name
        assert 2e11 < device.bandwidth < 1e13, name
        assert 1e10 < device.memory < 1e12, name
        assert "data sheet" in device.source


def test_stated_rates_replace_the_table() -> None:
    device = accelerator("h100", flops=5e14)
    assert (set(device.rates.values()), device.bandwidth, device.source) == ({5e14}, 3350e9, "stated")


def test_a_stated_processor_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    device = accelerator("cpu", flops=3e11, bandwidth=2e10)
    assert (set(device.rates.values()), device.bandwidth, device.source) == ({3e11}, 2e10, "stated")


def test_the_processor_is_measured() -> None:
    device = accelerator("cpu", bandwidth=2e10)
    assert all(1e8 < device.rates[precision] < 1e14 for precision in ("float32", "bfloat16"))
    assert device.bandwidth == 2e10
    assert device.source.startswith("measured now")
    assert device.memory > 1e8


def test_an_unknown_device_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        accelerator("h20O")
    assert "did you mean 'h200'?" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_device_of_a_machine_is_recognised(model: str, name: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "gpus" / "0000:3b:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 42\n")
    assert installed_accelerator(tmp_path) == name


def test_a_machine_without_the_driver_has_none(tmp_path: Path) -> None:
    assert installed_accelerator(tmp_path / "nothing") is None
