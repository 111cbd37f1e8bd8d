"""Lets every test, wherever it lies, say `from toys import ToyRaster`; shares the cores among processes of tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# A draw that imports what it names takes a minute on a machine that others use, which is no fault of the test.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # before torch is imported, and for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

sys.path.insert(0, str(Path(__file__).parent))
