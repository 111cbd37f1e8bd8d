"""`burnish world WHAT ...`: the commands that made the checkpoints of the embedded world.

tokenizer  text  classes  clip  realism  quality      train one of them (each with --help)
autoencoder  flow  diffusion  consistency              the same, in diffusers' formats
video_autoencoder  video                               the same, of scenes that move
"""

from __future__ import annotations

COMMANDS = (
    *("tokenizer", "text", "classes", "clip", "realism", "quality"),
    *("autoencoder", "flow", "diffusion", "consistency", "video_autoencoder", "video"),
)


def main(argv: list[str]) -> None:
    """Run one command. Raises ValueError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    what, rest = argv[0], argv[1:]
    if what not in COMMANDS:
        raise ValueError(f"burnish world: no command {what!r} (choices: {', '.join(COMMANDS)})")
    if what == "tokenizer":
        from burnish.making.tokenizer import main as tokenizer

        tokenizer(rest)
    elif what == "clip":
        from burnish.making.clip import main as clip

        clip(rest)
    elif what in ("autoencoder", "video_autoencoder"):
        from burnish.making.autoencoder import main as autoencoder

        autoencoder(what, rest)
    elif what in ("flow", "diffusion"):
        from burnish.making.denoisers import main as denoisers

        denoisers(what, rest)
    elif what == "consistency":
        from burnish.making.consistency import main as consistency

        consistency(rest)
    elif what == "video":
        from burnish.making.video import main as video

        video(rest)
    elif what in ("text", "classes"):
        from burnish.making.gpt import main as gpt

        gpt(what, rest)
    else:
        from burnish.making.looks import main as looks

        looks(what, rest)
