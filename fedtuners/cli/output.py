"""Files that a verb writes: whole or not at all, and what to do when the disk refuses."""

import errno
import os
from contextlib import suppress
from pathlib import Path

ROOM = "make room there, or write to another place"
FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place you may write to"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR), "check the path"),
}


def write(path: Path, content: str | bytes) -> None:
    """Write a file in place of an earlier one, which stays if that fails; OSError names it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        error.filename = str(path)
        raise


def sentence(error: Exception) -> str:
    """One sentence for an error; for one of the disk, where it was and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split())
    place = f"{error.filename}: " if error.filename else ""
    fix = FIXES.get(error.errno)
    return f"{place}{error.strerror}" + (f"; {fix}" if fix else "")
