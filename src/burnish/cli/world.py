"""`burnish world`: the commands that made the checkpoints of the embedded world."""

from __future__ import annotations

import typer


def world(context: typer.Context) -> None:
    """Make a checkpoint of the embedded world again; `burnish world --help` lists them."""
    from burnish.making.command import main

    main(list(context.args))
