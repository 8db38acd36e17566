"""Pure. Where brokers are, how that is told without their passwords, and when to try again."""

from urllib.parse import urlsplit

from bus.errors import BadConfig


def parse_urls(text: str) -> list[str]:
    """Split a list of addresses at its commas; raise `BadConfig` for what is none."""
    urls = [part.strip() for part in text.split(",") if part.strip()]
    for url in urls:
        if urlsplit(url).scheme not in ("nats", "tls"):
            raise BadConfig(f"bus.url: {redact(url)!r}: write nats://host:port or tls://host:port")
    if not urls:
        raise BadConfig("bus.url is empty: write nats://host:port")
    return urls


def redact(url: str) -> str:
    """Return an address without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def reconnect_delay_s(attempt: int, jitter: float) -> float:
    """Return the pause after failed connection attempt `attempt` (from 0); `jitter` from 0 to 1 spreads the clients."""
    return float(min(0.05 * 1.3 ** min(attempt, 20), 0.5) * (0.5 + jitter))
