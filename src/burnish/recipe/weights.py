"""Whether the weights that a recipe names are there: in this package, in a folder, in the hub's cache, on the hub."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from burnish.models.places import PACKAGE
from burnish.recipe.encode import encode
from burnish.recipe.read import leaves
from burnish.recipe.recipe import Recipe

FIELDS = (
    "weights",
    "gpt",
    "tokenizer",
    "text_encoder",
    "processor",
    "model",
    "features",
)  # settings that name files by convention
HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:[:/](.+))?")  # owner/repository, and a file of it
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")


def missing_weights(recipe: Recipe) -> Iterator[str]:
    """A sentence for every weight file that a recipe names and that cannot be had."""
    places: dict[str, str] = {}
    for path, value in leaves(encode(recipe)).items():
        if path.rpartition(".")[2] in FIELDS and isinstance(value, str) and value and not _elsewhere(recipe, path):
            places.setdefault(value, path)
    reachable = True
    for name, path in places.items():
        fault = _local_fault(name)
        if fault is None and (hub := HUB.fullmatch(name)) and not _here(name) and not _cached(hub[1], hub[2]):
            if reachable:
                fault, reachable = _hub_fault(hub[1], hub[2])
            else:
                fault = "is not downloaded yet, and the hub cannot be reached"
        if fault:
            yield f"{path}: {name!r} {fault}"


def _elsewhere(recipe: Recipe, path: str) -> bool:
    """A model behind an `endpoint` runs on a server; its name is not that of a file."""
    data = encode(recipe)
    for key in path.split(".")[:-1]:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return isinstance(data, Mapping) and bool(data.get("endpoint"))


def _here(name: str) -> bool:
    return name.startswith("burnish:") or Path(name).expanduser().exists()


def _local_fault(name: str) -> str | None:
    """What is wrong with a name that can only be a path, or None."""
    if name.startswith("burnish:"):
        return None if (PACKAGE / name.removeprefix("burnish:")).exists() else "is not in this installation of burnish"
    if _here(name):
        return None
    two_parts = name.count("/") <= 1 and ":" not in name
    if name.startswith((".", "/", "~")) or not HUB.fullmatch(name) or (two_parts and name.endswith(SUFFIXES)):
        return "is no file or folder here"
    return None


def _cached(repository: str, file: str | None) -> bool:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        if file:
            return isinstance(try_to_load_from_cache(repository, file), str)
        return bool(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return False


def _hub_fault(repository: str, file: str | None) -> tuple[str | None, bool]:
    """(what is wrong or None, whether the hub answered). Asks for the size of a file and downloads nothing."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if not _answers():
        return "is not downloaded yet, and the hub cannot be reached", False
    try:
        hf_hub_download(repository, file or "config.json", dry_run=True, etag_timeout=5.0)
    except (RepositoryNotFoundError, HFValidationError):
        return "is neither a file or folder here nor open to you on the hub", True
    except LocalEntryNotFoundError:  # first: it is an EntryNotFoundError too
        return "is not downloaded yet, and the hub cannot be reached", False
    except EntryNotFoundError:
        return (f"names a file that {repository} on the hub does not have" if file else None), True
    except (OSError, HfHubHTTPError):
        return "is not downloaded yet, and the hub cannot be reached", False
    return None, True


def _answers() -> bool:
    """Whether somebody listens at the hub's address, or at that of the proxy to it. The hub's client itself retries
    for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(getproxies().get("https") or constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3.0).close()
    except OSError:
        return False
    return True
