"""Pure. Every subject is built and parsed here, and nowhere else."""

import hashlib
import re
from typing import NamedTuple

import msgspec

from bus.errors import BadConfig, Malformed
from bus.messages.inference import LatencyClass, Role

ANY_WORKER = "any"
"""Stands for the worker in the lane that every worker of the pool pulls from."""

_TOKEN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_NOT_IN_TOKEN = re.compile(r"[^a-z0-9_-]+")


def slug(name: str) -> str:
    """Turn an outside name into one subject token.

    Names that are tokens already stay as they are; others keep a readable stem and get eight
    digits of a hash, so that two names never share a token.
    """
    if _TOKEN.match(name):
        return name
    stem = _NOT_IN_TOKEN.sub("-", name.lower()).strip("-_")[:48]
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{stem}-{digest}" if stem else f"x-{digest}"


class Address(NamedTuple):
    """A subject taken apart: its family (`req`, `work`, ...) and what follows the version."""

    family: str
    fields: tuple[str, ...]


class Subjects(msgspec.Struct, frozen=True):
    """Builds the subjects of one namespace. Models are passed by slug."""

    namespace: str = "busway"

    def __post_init__(self) -> None:
        if not _TOKEN.match(self.namespace):
            raise BadConfig(
                f"namespace {self.namespace!r} is no subject token: use lower-case letters, digits, '-' and '_'"
            )

    def ask(self, model: str, tenant: str) -> str:
        """Requests of plain NATS clients: JSON in, streamed JSON to the reply subject."""
        return f"{self.namespace}.ask.v1.{model}.{tenant}"

    def req(self, model: str, latency_class: LatencyClass, tenant: str) -> str:
        """Jobs on their way to a router."""
        return f"{self.namespace}.req.v1.{model}.{latency_class}.{tenant}"

    def work(self, model: str, role: Role, worker: str, latency_class: str) -> str:
        """The lane of one worker, or of the whole pool with `ANY_WORKER`."""
        return f"{self.namespace}.work.v1.{model}.{role}.{worker}.{latency_class}"

    def out(self, frontend: str, worker: str) -> str:
        """Step batches from one worker to one frontend."""
        return f"{self.namespace}.out.v1.{frontend}.{worker}"

    def ctl(self, worker: str) -> str:
        """Commands to one worker."""
        return f"{self.namespace}.ctl.v1.{worker}"

    def kv(self, model: str, worker: str) -> str:
        """KV block events of one worker."""
        return f"{self.namespace}.kv.v1.{model}.{worker}"

    def tier(self, model: str, owner: str) -> str:
        """KV block events of one tier that the workers of a model share."""
        return f"{self.namespace}.tier.v1.{model}.{owner}"

    def peer(self, worker: str) -> str:
        """Questions to one worker for blocks in its host memory."""
        return f"{self.namespace}.peer.v1.{worker}"

    def kvq(self, worker: str) -> str:
        """Questions to one worker about the blocks that it holds."""
        return f"{self.namespace}.kvq.v1.{worker}"

    def load(self, model: str, worker: str) -> str:
        """Load reports of one worker."""
        return f"{self.namespace}.load.v1.{model}.{worker}"

    def route(self, model: str, router: str) -> str:
        """Decisions of one router."""
        return f"{self.namespace}.route.v1.{model}.{router}"

    def pick(self, model: str) -> str:
        """Questions which worker would be the best for a prompt: JSON in, JSON out."""
        return f"{self.namespace}.pick.v1.{model}"

    def usage(self, model: str, tenant: str) -> str:
        """What finished requests used."""
        return f"{self.namespace}.usage.v1.{model}.{tenant}"

    def response(self, frontend: str) -> str:
        """Questions to one frontend about the responses that it makes."""
        return f"{self.namespace}.response.v1.{frontend}"

    def spent(self, frontend: str) -> str:
        """What keys used at one frontend."""
        return f"{self.namespace}.spent.v1.{frontend}"

    def job(self, tenant: str) -> str:
        """Batches that are to be carried on."""
        return f"{self.namespace}.job.v1.{tenant}"

    def metrics(self) -> str:
        """Questions to every process for its metrics."""
        return f"{self.namespace}.metrics.v1.all"

    def dead(self, stream: str) -> str:
        """Messages that could not be handled."""
        return f"{self.namespace}.dead.v1.{stream}"

    def family(self, subject: str) -> str:
        """Return the family of a subject or filter for logs and metrics: one of `FAMILIES`, or `other`."""
        tokens = subject.split(".", 2)
        return tokens[1] if len(tokens) > 1 and tokens[0] == self.namespace and tokens[1] in FAMILIES else "other"

    def parse(self, subject: str) -> Address:
        """Take a subject of this namespace apart; raise `Malformed` for any other."""
        parts = subject.split(".")
        if len(parts) < 4 or parts[0] != self.namespace or parts[2] != "v1":
            raise Malformed(f"{subject!r} is no subject of namespace {self.namespace!r}")
        return Address(parts[1], tuple(parts[3:]))


FAMILIES = frozenset(
    {
        "ask",
        "req",
        "work",
        "out",
        "ctl",
        "kv",
        "tier",
        "kvq",
        "peer",
        "load",
        "route",
        "pick",
        "usage",
        "response",
        "spent",
        "job",
        "metrics",
        "dead",
    }
)
"""The closed set of families, fit for labels."""
