"""One run, one writer: a folder is claimed for as long as a process trains into it, and let go however that ends."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without it (Windows) has no such claims
    fcntl = None

NAME = ".claim"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for this process, making it if it is not there. The system ends the claim of one that is killed.

    Raises ValueError, with its number, if another process has it. File systems that know no locks are not protected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which processes that are forked do not share
        except (BlockingIOError, PermissionError):  # POSIX allows either
            file.seek(0)
            raise ValueError(
                f"{folder}: {file.read() or 'another process'} is still at work on this run; wait for it, or end it"
            ) from None
        except OSError as problem:
            if problem.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
