"""Read through NVML how busy the GPUs are, without torch, CUDA or any work on them.

Without NVML's Python binding or a GPU there is nothing to read.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MIB = 2**20
LEFT_OVER = 1024 * MIB  # bytes that an ended engine may still appear to hold
BUSY = 5  # percent; a GPU that never exceeds it had no work


def _binding() -> Any:
    """Return the module pynvml, installed or from vLLM's copy.

    vLLM's copy is loaded alone, because importing vLLM takes seconds.
    """
    if importlib.util.find_spec("pynvml"):
        return importlib.import_module("pynvml")
    vllm = importlib.util.find_spec("vllm")
    for folder in (vllm.submodule_search_locations or []) if vllm else []:
        path = Path(folder) / "third_party" / "pynvml.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("pynvml", path)
            if spec and spec.loader:
                module = importlib.util.module_from_spec(spec)
                sys.modules["pynvml"] = module  # the module looks itself up here
                spec.loader.exec_module(module)
                return module
    return None


@dataclass(frozen=True)
class Sample:
    """Utilization of each GPU in percent, at a moment of the monotonic clock (seconds)."""

    at: float
    busy: tuple[int, ...]


class Gpus:
    """The GPUs in CUDA_VISIBLE_DEVICES, else all GPUs of the machine."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self._nvml, self._handles = nvml, handles
        self._held_before = self._held()

    @classmethod
    def find(cls) -> Self | None:
        """Return the GPUs, or None without NVML's binding, a driver or a GPU."""
        nvml = _binding()
        if nvml is None:
            return None
        try:
            nvml.nvmlInit()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = range(nvml.nvmlDeviceGetCount()) if visible is None else filter(None, visible.split(","))
            handles = [
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if str(name).strip().isdigit()
                else nvml.nvmlDeviceGetHandleByUUID(str(name).strip())
                for name in names
            ]
        except nvml.NVMLError as error:
            print(f"GPU utilization is not recorded: {error}", file=sys.stderr)
            return None
        return cls(nvml, handles) if handles else None

    def names(self) -> list[str]:
        return [str(self._nvml.nvmlDeviceGetName(handle)) for handle in self._handles]

    def sample(self) -> Sample:
        busy = tuple(int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) for handle in self._handles)
        return Sample(time.monotonic(), busy)

    def await_release(self, timeout_s: float) -> None:
        """Wait until the previous system's memory is free, so that a cold start finds it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if all(now <= before + LEFT_OVER for now, before in zip(self._held(), self._held_before, strict=True)):
                return
            time.sleep(0.2)

    def _held(self) -> list[int]:
        return [int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles]


def mean_busy(samples: list[Sample], began: float, ended: float) -> list[float] | None:
    """Return the mean percent between two moments for each GPU with any work, or None if unknown."""
    within = [sample for sample in samples if began <= sample.at <= ended]
    used = [i for i in range(len(samples[0].busy)) if max(s.busy[i] for s in samples) > BUSY] if samples else []
    return [sum(s.busy[i] for s in within) / len(within) for i in used] if within and used else None
