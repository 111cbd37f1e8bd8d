"""`burnish report`: write the page of a run again, or one that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, whole or still going.")],
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="One page that compares the runs.")] = None,
) -> None:
    """Write report.html into the folder of each run; with --compare, one page over all of them instead."""
    from burnish.report import page
    from burnish.report.compare import write

    if compare is not None:
        print(write(runs, compare))
        return
    for run in runs:
        print(page.write(run))
