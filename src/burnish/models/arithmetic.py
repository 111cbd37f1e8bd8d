"""The precision of matrix products, and which of them a processor is good at."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def autocast(device: torch.device, precision: Precision, cached: bool = True) -> torch.autocast:
    """A block whose matrix products are of that precision. `cached`: a weight is cast once, and the cast is kept."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached)


def quick_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there. A CPU without instructions for it takes twice as long instead."""
    if device.type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
