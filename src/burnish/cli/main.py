"""The command line. What goes wrong because of what was asked is said in one sentence, with exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from burnish.cli import bench, check, config, evaluate, export, listing, report, sample, train, world

app = typer.Typer(
    name="burnish",
    help="Reinforcement-learning post-training of visual generative models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="train")(train.train)
app.command(name="sample")(sample.sample)
app.command(name="evaluate")(evaluate.evaluate)
app.command(name="export")(export.export)
app.command(name="check")(check.check)
app.command(name="bench")(bench.bench)
app.command(name="config")(config.config)
app.command(name="list")(listing.show)
app.command(name="report")(report.report)
app.command(
    name="world",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(world.world)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")] = False,
) -> None:
    """`--debug` is taken out of the arguments before they are parsed; it is here for the help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status: see `run`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status: 0 done, 2 a mistake in what was asked, 130 and 143 interrupted."""
    given = list(arguments)
    debug = "--debug" in given
    try:
        app([word for word in given if word != "--debug"], prog_name="burnish")
    except (ValueError, OSError) as problem:
        if debug:
            raise
        print(f"burnish: {problem}", file=sys.stderr)
        return 2
    except SystemExit as end:
        if end.code == 130 and type(end) is SystemExit:  # a run that was stopped has said so itself
            print("burnish: interrupted", file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0
    return 0
