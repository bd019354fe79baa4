"""What `advisor doctor` finds out, and the command that it names for what is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import pytest

from advisor.flow import doctor
from evals.engines import machine


def findings() -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine()}


def test_it_tells_processor_units_memory_and_what_was_chosen() -> None:
    found = findings()
    measured = machine.measure_machine()
    assert f"{measured.cores} cores, {measured.threads} threads used" in found["processor"].value
    assert found["bf16 units"].value
    assert "GFLOP/s" in found["matrix product"].value
    assert "GiB free" in found["memory"].value
    assert found["dtype chosen"].value.startswith(measured.dtype)
    assert found["torch"].value == version("torch")
    assert all(one.ok or one.mend for one in found.values())


def test_a_missing_package_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> str:
        if package == "llguidance":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor, "version", without)
    missing = findings()["llguidance"]
    assert (missing.ok, missing.value, missing.mend) == (False, "missing", "pip install llguidance")


@pytest.mark.parametrize(
    ("cuda", "mend"), [(None, "pip install --force-reinstall torch"), ("13.0", "nvidia-smi")], ids=["cpu build", "no driver"]
)
def test_a_gpu_that_torch_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch, cuda: str | None, mend: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = doctor._gpu()
    assert (found.ok, found.mend) == (False, mend)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._gpu() == doctor.Finding("gpu", "none")


def test_a_gpu_is_named_with_its_memory_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpu: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_name": lambda: "H100",
        "get_device_capability": lambda: (9, 0),
        "get_device_properties": lambda number: SimpleNamespace(total_memory=80 << 30),
        "is_bf16_supported": lambda: True,
    }
    for name, value in gpu.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert doctor._gpu().value == "H100, 80 GiB, compute capability 9.0, bf16"


def test_units_are_read_off_the_processors_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda self: text)
    assert machine.bf16_units() == ["amx_bf16", "avx512_bf16"]
    monkeypatch.setattr(machine.Path, "read_text", lambda self: text.replace("bf16", "x"))
    assert machine.bf16_units() == []
