"""`burnish report`: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, whole or still going.")],
) -> None:
    """Write report.html into the folder of a run."""
    from burnish.report import page

    for run in runs:
        print(page.write(run))
