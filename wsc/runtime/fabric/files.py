"""Files that are there in full or not at all."""

import os
from pathlib import Path
from uuid import uuid4

from wsc.errors import ArgumentError


def write(path: str | Path, content: bytes) -> None:
    """Put `content` into a file, in place of what it had; ArgumentError where it cannot be written."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{uuid4().hex}.part")
    try:
        try:
            part.write_bytes(content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
