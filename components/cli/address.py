"""Pure. Addresses out of URLs."""

from urllib.parse import urlsplit

from bus.errors import BadConfig


def split_url(url: str, default_port: int = 80) -> tuple[str, int]:
    """Return host and port; raise `BadConfig` for what is no URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default_port
    except ValueError as error:
        raise BadConfig(f"{url!r} is no URL: {error}") from error
    if not host or parts.scheme not in ("http", "https"):
        raise BadConfig(f"{url!r} is no URL: write it as in http://127.0.0.1:8000")
    return host, port
