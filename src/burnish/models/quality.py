"""The networks behind pyiqa's picture-quality metrics, without its wrapper (which reads files and averages)."""

from __future__ import annotations

from typing import Any

import torch


def quality_network(metric: str, where: str, device: torch.device, **options: Any) -> torch.nn.Module:
    """The network of a pyiqa metric: pictures (b, 3, h, w) in [0, 1] to scores (b, 1). Frozen, in evaluation mode.

    Raises ValueError, starting with `where`, if pyiqa cannot be imported or its weights cannot be had.
    """
    try:
        import pyiqa  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{where}: needs pyiqa ({error}); install it with: pip install 'burnish[quality]'") from error
    try:
        network = pyiqa.create_metric(metric, device=device, **options).net
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{where}: pyiqa could not load {metric!r}: {error}") from error
    return network.to(device).eval().requires_grad_(False)
