"""What a processor is good at."""

from __future__ import annotations

import torch


def quick_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there. A CPU without instructions for it takes twice as long instead."""
    if device.type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
