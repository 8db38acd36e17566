"""I/O. Files that only their owner may read: keys, credentials, configuration with addresses."""

import os
from pathlib import Path


def make_private_dir(path: Path) -> Path:
    """Make a directory that nobody else may look into, and return it; one that is there is closed to others."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: str) -> Path:
    """Write a file with mode 0600 in the place of an old one, whole at any time, and return its path."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    fresh.replace(path)
    return path
