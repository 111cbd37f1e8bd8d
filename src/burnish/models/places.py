"""Where weights are: in this package, in a local folder, or on a hub."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def unpacked(name: str) -> str:
    """`name`, with "burnish:..." replaced by its path inside this package. Raises ValueError if that does not exist."""
    return str(locate(name)) if name.startswith("burnish:") else name


def locate(name: str) -> Path | None:
    """The local path that `name` stands for, or None if it can only be a hub id.

    "burnish:worlds/scenes/weights/clip" is inside this package; anything else is a path if it exists.
    Raises ValueError for a name that is plainly a path and does not exist.
    """
    if name.startswith("burnish:"):
        inside = PACKAGE / name.removeprefix("burnish:")
        if not inside.exists():
            raise ValueError(f"{name}: not in this installation of burnish (looked in {inside})")
        return inside
    path = Path(name).expanduser()
    if path.exists():
        return path
    plainly_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if ":" not in name and (plainly_a_path or path.suffix in (".pt", ".safetensors", ".pth")):
        raise ValueError(f"{name}: no such file or folder")
    return None


def fetch(name: str) -> Path:
    """The local path of `name`, downloading "owner/repository" or "owner/repository:file" if it is not here.

    Raises ValueError, with what was tried, when it can be had neither here nor there.
    """
    if (path := locate(name)) is not None:
        return path
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, file = name.partition(":")
    try:
        return Path(hf_hub_download(repository, file) if file else snapshot_download(repository))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{name}: neither a file or folder here nor to be had from the hub ({type(error).__name__}); "
            "without a network, download it elsewhere and give its path"
        ) from error
