"""I/O. KV blocks in the stores that workers share: list, measure, pin, drop, collect what is old or over its quota."""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

import anyio
import msgspec

from bus.codec import encode
from bus.config import Config, RedisTierConfig, S3TierConfig
from bus.connection import open_bus
from bus.errors import BusUnavailable, BuswayError, Malformed
from bus.messages.base import pack_u64
from bus.messages.fleet import WorkerLoad
from bus.messages.kv import BlocksRemoved, TierBatch
from bus.protocol import Bus, Incoming
from bus.subjects import Subjects
from bus.typed import subscribe_typed
from components.cli.cache_list import UNITS_S, duration, show_blocks
from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser, UsageError
from components.cli.terminal import find_broker, find_stores, run_async, say
from offload.collect import find_garbage
from offload.key import BlockKey
from offload.store import Listed, Store, TierUnavailable
from offload.stores import make_stores

LISTEN_S = 1.0
"""How long `stats` listens for load reports; workers send one every 250 ms."""
DROP_CHUNK = 1000


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.epilog = (
        "  busway cache ls                              blocks and bytes, by store and space\n"
        "  busway cache stats                           what loading from each tier costs each worker\n"
        "  busway cache pin --space HEX --for 8h        keep for so long, however old\n"
        "  busway cache drop --block HASH --block HASH  forget blocks (busway explain shows the hashes of a prompt's)\n"
        "  busway cache gc                              remove what is too old, then what is over the quotas\n\n"
        "A space is one model and layout under one cache salt. Stores are those of offload.redis and offload.s3;\n"
        "where neither is set, those of the running system. Credentials of object stores come from the environment."
    )
    parser.add_argument("action", choices=["ls", "stats", "pin", "drop", "gc"])
    parser.add_argument("--store", choices=["redis", "s3"], help="only this one")
    parser.add_argument("--space", metavar="HEX", help="pin, drop: all blocks of a space")
    parser.add_argument("--block", action="append", default=[], metavar="HASH", help="pin, drop: in any space")
    parser.add_argument("--all", action="store_true", help="pin, drop: every block")
    parser.add_argument("--for", dest="keep", metavar="TIME", help="pin: 90s, 30m, 8h, 7d")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    matches = _selection(options)
    keep_s = _seconds(options.keep) if options.keep is not None else 0.0
    run_async(_run, find_stores(find_broker(read_config(options))), options, matches, keep_s)
    return 0


async def _run(config: Config, options: argparse.Namespace, matches: Callable[[BlockKey], bool], keep_s: float) -> None:
    if options.action == "stats":
        await _show_rates(config)
        return
    stores = [store for store in make_stores(config.offload) if options.store in (None, store.name)]
    if not stores:
        raise UsageError("no shared store is configured", "busway cache ls --set offload.redis.url=redis://127.0.0.1")
    for store in stores:
        async with aclosing(store):
            try:
                await _do(config, options.action, store, matches, keep_s)
            except TierUnavailable as error:
                raise StoreFailed(str(error), store.check) from error


class StoreFailed(BuswayError):
    """A store did not do what it was asked; `hint` is the next command to type."""

    code = "store_failed"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


async def _do(config: Config, action: str, store: Store, matches: Callable[[BlockKey], bool], keep_s: float) -> None:
    if action == "ls":
        await show_blocks(config, store)
    elif action == "pin":
        await _pin(store, matches, keep_s)
    elif action == "drop":
        await _remove(config, store, [each.key for each in await _all(store) if matches(each.key)], "dropped")
    else:
        await _collect(config, store, config.offload.limits(store.name))


async def _pin(store: Store, matches: Callable[[BlockKey], bool], keep_s: float) -> None:
    count = 0
    async with aclosing(store.listing()) as listing:
        async for part in listing:
            count += sum(await store.keep([each.key for each in part if matches(each.key)], keep_s))
    say(f"{store.name}: {count} blocks stay for {duration(keep_s)} at least")


async def _collect(config: Config, store: Store, limits: RedisTierConfig | S3TierConfig) -> None:
    now = time.time()
    listed = await _all(store)
    garbage = find_garbage(listed, now, max_bytes=limits.max_bytes, max_space_bytes=limits.max_salt_bytes)
    await _remove(config, store, garbage, "removed")
    await store.forget_pins(now)


async def _all(store: Store) -> list[Listed]:
    async with aclosing(store.listing()) as listing:
        return [each async for part in listing for each in part]


async def _remove(config: Config, store: Store, keys: Sequence[BlockKey], verb: str) -> None:
    """Delete blocks and tell the fleet; without a broker, workers find out as they look for them."""
    for part in _parts(keys):
        await store.delete(part)
    say(f"{store.name}: {len(keys)} blocks {verb}")
    if not keys:
        return
    try:
        async with open_bus(config.bus, Subjects(config.namespace), name="cache") as bus:
            await _tell(bus, store, keys)
    except BusUnavailable as error:
        say(f"{store.name}: nobody was told, workers will miss them once ({error})")


async def _tell(bus: Bus, store: Store, keys: Sequence[BlockKey]) -> None:
    """Say that blocks are gone, under every name under which workers tell of such a store."""
    owners: set[tuple[str, str]] = set()

    def on_message(message: Incoming) -> None:
        try:
            model, owner = bus.subjects.parse(message.subject).fields
        except (Malformed, ValueError):
            return
        if owner.startswith(f"{store.name}-"):
            owners.add((model, owner))

    await bus.replay("KV", bus.subjects.tier("*", "*"), on_message)
    for model, owner in owners:
        for part in _parts(keys):
            event = BlocksRemoved(pack_u64([key.block_hash for key in reversed(part)]), "remote")
            batch = TierBatch(owner, "cache", [msgspec.Raw(encode(event))])
            bus.publish(bus.subjects.tier(model, owner), encode(batch))
    await bus.flush()


async def _show_rates(config: Config) -> None:
    loads: dict[str, WorkerLoad] = {}

    def on_load(load: WorkerLoad, _: Incoming) -> None:
        loads[load.worker] = load

    async with open_bus(config.bus, Subjects(config.namespace), name="cache") as bus:
        subscription = subscribe_typed(bus, bus.subjects.load("*", "*"), WorkerLoad, on_load)
        await anyio.sleep(LISTEN_S)
        subscription.unsubscribe()
    if not loads:
        say("no worker runs")
    for worker, load in sorted(loads.items()):
        say(f"{worker}  {load.model}  {load.kv_count} of {load.num_blocks} blocks on the device")
        for rate in load.tiers:
            name = f"{rate.tier} {rate.owner}".strip()
            say(f"  {name:<24} {rate.latency_s * 1000:8.2f} ms and {rate.token_s * 1e6:8.2f} us a token")
        if not load.tiers:
            say("  no tier that is measured to be of use")


def _selection(options: argparse.Namespace) -> Callable[[BlockKey], bool]:
    """Return which blocks the options mean; raise `UsageError`."""
    hint = "busway cache --help"
    is_chosen = bool(options.space or options.block or options.all)
    if is_chosen != (options.action in ("pin", "drop")):
        raise UsageError(
            f"cache {options.action} takes {'no' if is_chosen else 'one'} of --space, --block, --all", hint
        )
    if (options.keep is not None) != (options.action == "pin"):
        raise UsageError("cache pin needs --for, and nothing else has it: how long blocks are to stay", hint)
    if options.space and not re.fullmatch("[0-9a-f]{32}", options.space):
        raise UsageError(
            f"{options.space!r} is no space: 32 hex digits, as busway cache ls shows them", "busway cache ls"
        )
    try:
        blocks = {int(block, 16) for block in options.block}
    except ValueError as error:
        raise UsageError(f"no block hash: {error}", "busway explain 'a question'") from error
    return lambda key: (
        (not options.space or key.space.hex() == options.space) and (not blocks or key.block_hash in blocks)
    )


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None or not int(match[1]):
        raise UsageError(f"{text!r} is no time: write it as in 90s, 30m, 8h, 7d", "busway cache --help")
    return int(match[1]) * UNITS_S[match[2]]


def _parts(keys: Sequence[BlockKey]) -> Iterator[Sequence[BlockKey]]:
    return (keys[first : first + DROP_CHUNK] for first in range(0, len(keys), DROP_CHUNK))
