"""I/O. API keys: add one (it is shown once), list them, remove one. And credentials of processes for the bus."""

import argparse
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bus.codec import codec, encode
from bus.config import Config
from bus.connection import open_bus
from bus.errors import BadConfig
from bus.keys import BUCKET, KeyFile, decode_key_file, digest_of, new_key
from bus.messages.keys import ApiKey
from bus.private import write_private
from bus.subjects import Subjects
from components.cli.options import above_zero, add_config_options, at_least, read_config
from components.cli.parser import Parser, UsageError
from components.cli.terminal import find_broker, run_async, say

_DAY_S = 86_400.0
_OPTIONS = ("name", "tenant", "models", "requests_per_s", "burst", "tokens_per_min", "max_concurrent", "cache_salt")


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "  busway keys add ci --tenant build --models 'busway-*' --requests-per-s 5 --tokens-per-min 100000\n"
        "  busway keys ls\n"
        "  busway keys rm ci\n\n"
        "Frontends follow the bucket with --set frontend.keys=bucket, or read a file at their start with\n"
        "--set frontend.keys=FILE.\n\n"
        "Credentials for the bus of `busway up --secure` (worker, router, observer, tenant, ...):\n\n"
        "  busway keys bus worker --models qwen3 --file worker.creds\n"
        "  busway keys bus tenant --tenant acme --file acme.creds\n"
        "  busway keys revoke w-1a2b3c4d"
    )
    parser.add_argument("action", choices=["add", "ls", "rm", "bus", "revoke"])
    parser.add_argument("name", nargs="?", help="name of the key, for people; for `bus` a role; for `revoke` whom")
    parser.add_argument("--file", metavar="FILE", help="keep keys in this JSON file instead of the bucket")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--models", action="append", default=[], metavar="GLOB", help="as often as needed (all models)")
    parser.add_argument("--requests-per-s", type=above_zero, metavar="N")
    parser.add_argument("--burst", type=at_least(1), metavar="N", help="requests at once (those of one second)")
    parser.add_argument("--tokens-per-min", type=at_least(1), metavar="N")
    parser.add_argument("--max-concurrent", type=at_least(1), metavar="N", help="generations in flight")
    parser.add_argument("--expires-days", type=float, metavar="N")
    parser.add_argument("--cache-salt", default="", help="share cached prefixes only with keys of the same salt")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    if (options.name is None) != (options.action == "ls"):
        raise UsageError(f"keys {options.action} takes {'no' if options.name else 'a'} name", "busway keys --help")
    if options.action in ("bus", "revoke"):
        from components.cli import bus_keys

        config = read_config(options)
        if options.action == "bus":
            bus_keys.issue(config, options)
        else:
            bus_keys.revoke(config, options.name)
        return 0
    if options.file:
        _change_file(options)
    else:
        run_async(_change_bucket, find_broker(read_config(options)), options)
    return 0


def _change_file(options: argparse.Namespace) -> None:
    path = Path(options.file)
    keys = _read_file(path) if path.exists() else {}
    if options.action == "ls":
        _show(keys)
        return
    if options.action == "rm":
        _written(options, keys, path, without=_digest_of(options.name, keys))
        return
    secret, digest, key = _make(options, keys)
    _written(options, {**keys, digest: key}, path)
    _tell(secret, f"frontend.keys={path}, from the next start of the frontend on")


async def _change_bucket(config: Config, options: argparse.Namespace) -> None:
    async with open_bus(config.bus, Subjects(config.namespace), name="keys") as bus:
        await bus.ensure()
        bucket = bus.bucket(BUCKET)
        entries = [entry for entry in await bucket.entries() if entry.value is not None]
        keys = {entry.key: codec(ApiKey).decode(entry.value or b"") for entry in entries}
        if options.action == "ls":
            _show(keys)
        elif options.action == "rm":
            await bucket.delete(_digest_of(options.name, keys))
            say(f"removed {options.name}: it is refused from now on")
        else:
            secret, digest, key = _make(options, keys)
            await bucket.put(digest, encode(key))
            _tell(secret, "frontend.keys=bucket, at once")


def _make(options: argparse.Namespace, keys: Mapping[str, ApiKey]) -> tuple[str, str, ApiKey]:
    """Return a new key, its digest, and what is kept of it."""
    if any(key.name == options.name for key in keys.values()):
        raise UsageError(f"there is a key {options.name!r} already", f"busway keys rm {options.name}")
    fields = {name: getattr(options, name) for name in _OPTIONS}
    days = options.expires_days
    fields["expires_at"] = None if days is None else time.time() + days * _DAY_S
    try:
        key = msgspec.convert(fields, ApiKey)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), "busway keys --help") from error
    secret = new_key()
    return secret, digest_of(secret.encode()), key


def _digest_of(name: str, keys: Mapping[str, ApiKey]) -> str:
    for digest, key in keys.items():
        if key.name == name:
            return digest
    raise UsageError(f"there is no key {name!r}", "busway keys ls")


def _read_file(path: Path) -> dict[str, ApiKey]:
    try:
        return decode_key_file(path.read_bytes(), path)
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}") from error


def _written(options: argparse.Namespace, keys: Mapping[str, ApiKey], path: Path, *, without: str = "") -> None:
    """Write the file beside the old one and put it in its place: a reader finds the one or the other, whole."""
    kept = {digest: key for digest, key in keys.items() if digest != without}
    content = msgspec.json.format(msgspec.json.encode(KeyFile(kept)), indent=2).decode()
    write_private(path, f"{content}\n")
    if without:
        say(f"removed {options.name}: it is refused from the next start of the frontend on")


def _tell(secret: str, where: str) -> None:
    say(f"{secret}\n\nThis is the only time that the key is shown. It works with --set {where}.")


def _show(keys: Mapping[str, ApiKey]) -> None:
    if not keys:
        say("no keys")
    for digest, key in sorted(keys.items(), key=lambda item: item[1].name):
        limits = [
            f"{value:g} {word}"
            for value, word in (
                (key.requests_per_s, "requests/s"),
                (key.tokens_per_min, "tokens/min"),
                (key.max_concurrent, "at a time"),
            )
            if value is not None
        ]
        if key.expires_at is not None:
            limits.append(f"until {datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M} UTC")
        models = ", ".join(key.models) or "all models"
        say(f"{key.name:<20} {key.tenant:<16} {digest[:8]}  {models}; {', '.join(limits) or 'no limits'}")
