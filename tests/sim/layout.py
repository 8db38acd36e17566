"""Pure. What the workers of a deployment are: how many, in which roles, with which tiers below them."""

from collections.abc import Sequence
from random import Random

import msgspec

from bus.config import OffloadConfig, RedisTierConfig, RouterConfig
from bus.messages.inference import Role

HOST_BYTES = 192 * 4096
"""Twice what the device holds, in pages."""


class Layout(msgspec.Struct, frozen=True):
    """The workers of a deployment, beside two routers and two frontends."""

    roles: Sequence[tuple[Role, ...]] = (("both",),)
    """Of each worker."""
    offload: OffloadConfig = OffloadConfig()
    router: RouterConfig = RouterConfig()

    @property
    def has_roles(self) -> bool:
        """Whether somebody prefills for others."""
        return any(roles != ("both",) for roles in self.roles)


PLAIN = Layout()

_BOTH: tuple[Role, ...] = ("both",)
_PREFILL: tuple[Role, ...] = ("prefill",)
_DECODE: tuple[Role, ...] = ("decode",)
ROLES: Sequence[Sequence[tuple[Role, ...]]] = (
    (_BOTH, _BOTH, _BOTH),
    (_PREFILL, _DECODE),
    (_PREFILL, _DECODE, _BOTH),
    (_PREFILL, _DECODE, _PREFILL, _DECODE),
)
TIERS = (
    OffloadConfig(),
    OffloadConfig(host_bytes=HOST_BYTES),
    OffloadConfig(host_bytes=HOST_BYTES // 4, policy="s3fifo", peers=True),
    OffloadConfig(host_bytes=HOST_BYTES // 4, redis=RedisTierConfig(url="memory:", keep_s=30.0)),
)


def draw_layout(rng: Random) -> Layout:
    """Draw roles and tiers, and whether routers let others prefill always, or where that is cheaper."""
    return Layout(
        rng.choice(ROLES), rng.choice(TIERS), RouterConfig(disaggregate="always" if rng.random() < 0.6 else "auto")
    )
