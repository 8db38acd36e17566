"""I/O. Finds the data files of `nats/` and `configs/`, in a checkout and in the installed package."""

from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir(folder: str) -> Path:
    """Return the directory of `nats` or `configs`: the wheel carries both under `bus/data`."""
    for candidate in (_PACKAGE / "data" / folder, _PACKAGE.parent / folder):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the installation lacks its {folder}/ files: install Busway again")


def read_text(folder: str, name: str) -> str:
    """Return the text of one file, as in `read_text("nats", "server.conf")`."""
    return (data_dir(folder) / name).read_text(encoding="utf-8")


def read_all(folder: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield (stem, text) of the files that match a pattern such as `streams/*.json`, by name."""
    for path in sorted(data_dir(folder).glob(pattern)):
        yield path.stem, path.read_text(encoding="utf-8")
