"""I/O. The checks of `busway doctor` for the stores that workers share."""

from contextlib import aclosing

from bus.config import Config
from components.cli.checks import Finding, Verdict
from offload.key import HEADER_BYTES, BlockKey, space_of
from offload.store import Blob, TierUnavailable
from offload.stores import make_stores


async def check_stores(config: Config) -> list[Finding]:
    """Look whether the stores that the configuration names answer."""
    findings = []
    for store in make_stores(config.offload):
        async with aclosing(store):
            try:
                await store.get([Blob(BlockKey(space_of("doctor"), 0), memoryview(bytearray(HEADER_BYTES)))])
            except TierUnavailable as error:
                findings.append(Finding(Verdict.FAIL, f"{store.name}: {error}", store.check))
            else:
                findings.append(Finding(Verdict.OK, f"{store.name} at {store.location} answers"))
    return findings
