"""The machine of this process: its device, and how many processes share a run.

What a device can do at best is measured: how fast it multiplies matrices and copies; and how much of it is held.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

MOMENT = 0.2  # seconds that a measurement takes, about


def first_device() -> torch.device:
    """The machine's accelerator, or its processor."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def processes() -> int:
    """How many processes this one was started with, by torchrun for example."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process writes and speaks, as torchrun has told it; also before the run, and after it."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def matrix_rate(dtype: torch.dtype, device: torch.device | None = None, side: int = 0) -> float:
    """Multiply-adds a second of products of square matrices; of sides (0) that are large for the device."""
    device = device or first_device()
    side = side or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(side, side, device=device).to(dtype)
    return side**3 / _fastest(lambda: a @ a, device)


def memory_rate(device: torch.device | None = None, size: int = 0) -> float:
    """Bytes a second, read and written, of copying what no cache holds."""
    device = device or first_device()
    size = size or (2**27 if device.type == "cpu" else 2**30)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds: the slower ones measure the machine's other users."""
    settle(device, work())  # the first time loads kernels
    fastest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < MOMENT:
        began = time.perf_counter()
        settle(device, work())
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def settle(device: torch.device, *_: torch.Tensor) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """What `peak` tells begins again here. Where a system cannot do that for its main memory, it goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (_SELF / "clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The most bytes held since `forget_peak`: tensors of an accelerator, or all of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _main_memory("VmHWM")


def held(device: torch.device) -> int:
    """Bytes that are held now, of what `peak` tells the most of; where a system does not tell, the most."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    gc.collect()
    with suppress(OSError, AttributeError):  # other systems than Linux with glibc keep freed memory as they like
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _main_memory("VmRSS")


def _main_memory(what: str) -> int:
    if _SELF.exists():
        status = dict(line.split(":", 1) for line in (_SELF / "status").read_text().splitlines())
        if what in status:
            return int(status[what].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


_SELF = Path("/proc/self")
