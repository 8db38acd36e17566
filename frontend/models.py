"""I/O. The models that can be asked for: cards from the registry, their files from the bus, built once per content."""

import difflib
import time
from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread
import msgspec
import structlog

from bus.config import FrontendConfig
from bus.errors import BuswayError, NoWorker, Retryable, UnknownModel
from bus.messages.fleet import ModelCard
from bus.protocol import Bus
from bus.registry import watch_cards
from frontend.fleet import Fleet
from frontend.model import WANTED_FILES, ServedModel, build_model

REMEMBER_S = 300.0
"""A model that nobody serves any more is answered 503 for so long, then 404: workers come back."""
FETCH_RETRY_S = 0.5
READY_LOOK_S = 0.05
LOOK_EVERY_S = 1.0
"""Between two looks for models to forget."""
_MAX_NAMES = 10
"""Names that an error message lists."""

log = structlog.get_logger()


class Models:
    """Finds models by name. `run` keeps them up to date."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        clock: Callable[[], float] = time.monotonic,
        *,
        config: FrontendConfig | None = None,
    ) -> None:
        self._config = config or FrontendConfig()
        self._bus = bus
        self._fleet = fleet
        self._clock = clock
        self._models: dict[str, ServedModel] = {}
        """By slug."""
        self._sources: dict[str, bytes] = {}
        """What each model was built from, so that a refreshed card builds nothing."""
        self._left_at: dict[str, float] = {}
        self._waiting: dict[str, ModelCard] = {}
        self._problems: dict[str, str] = {}
        self._changed = anyio.Event()
        self._is_settled = False
        """Every card that was seen is built or refused: what is unknown now does not exist."""

    async def run(self) -> None:
        """Watch the registry until cancelled."""
        async with watch_cards(self._bus, "model", ModelCard, self._on_card):
            while True:
                while self._waiting:
                    slug, card = self._waiting.popitem()
                    # Another worker's card of the same model comes while the first one's is built.
                    if self._sources.get(slug) != _source_of(card):
                        await self._build(slug, card)
                self._is_settled = True
                with anyio.move_on_after(LOOK_EVERY_S):
                    await self._changed.wait()
                self._changed = anyio.Event()
                self._forget_left(self._clock())

    def find(self, name: str) -> ServedModel:
        """Return the model of that name; raise `UnknownModel`, or `NoWorker` when nobody serves it at present."""
        for model in self._models.values():
            if model.name == name:
                return self._check_served(model)
        raise self._missing(name)

    def find_slug(self, slug: str) -> ServedModel:
        """Return the model whose subject token is `slug`; raise as `find`."""
        model = self._models.get(slug)
        if model is None:
            raise self._missing(slug)
        return self._check_served(model)

    def listed(self) -> list[ServedModel]:
        """Return the models that are there, by name."""
        there = (model for slug, model in self._models.items() if slug not in self._left_at or self._fleet.serves(slug))
        return sorted(there, key=lambda model: model.name)

    def describe_unready(self) -> str:
        """Say why no request can be served, or nothing if one can."""
        if any(self._fleet.serves(slug) for slug in self._models):
            return ""
        if self._problems:
            return "; ".join(f"model {slug}: {reason}" for slug, reason in self._problems.items())[:2000]
        if self._models:
            return f"no live worker serves {', '.join(model.name for model in self._models.values())}"
        return "no model is registered: start a worker (busway worker)"

    async def wait_ready(self) -> None:
        """Return once a request can be served."""
        while self.describe_unready():  # noqa: ASYNC110
            await anyio.sleep(READY_LOOK_S)

    def _forget_left(self, now: float) -> None:
        """Drop models whose cards went away long ago and that no worker serves."""
        for slug, left_at in list(self._left_at.items()):
            if self._fleet.serves(slug):
                self._left_at[slug] = now
            elif now - left_at > REMEMBER_S:
                for table in (self._models, self._sources, self._left_at, self._problems):
                    table.pop(slug, None)

    def _check_served(self, model: ServedModel) -> ServedModel:
        if not self._fleet.serves(model.slug):
            raise NoWorker(f"No worker serves model {model.name!r} at present; try again soon.", delay_s=1.0)
        return model

    def _missing(self, name: str) -> BuswayError:
        if self._is_settled:
            return UnknownModel(self.describe_unknown(name))
        return NoWorker("This frontend is still loading its models; try again soon.", delay_s=1.0)

    def describe_unknown(self, name: str) -> str:
        """Say that there is no such model, and which there are."""
        names = [model.name for model in self.listed()]
        return f"The model {name[:100]!r} does not exist. {_suggest(name[:100], names)}"

    def _on_card(self, slug: str, card: ModelCard | None) -> None:
        if card is None:
            self._waiting.pop(slug, None)
            if slug in self._models:
                self._left_at[slug] = self._clock()
            else:
                self._problems.pop(slug, None)
                self._sources.pop(slug, None)
            return
        self._left_at.pop(slug, None)
        if self._sources.get(slug) != _source_of(card):
            self._waiting[slug] = card
            self._is_settled = False
            self._changed.set()

    async def _build(self, slug: str, card: ModelCard) -> None:
        try:
            files = {
                name: await self._bus.get_blob(digest) for name, digest in card.files.items() if name in WANTED_FILES
            }
            started_at = time.perf_counter()
            parser = self._config.parsers.get(card.model, self._config.parser)
            model = await anyio.to_thread.run_sync(build_model, card, files, parser)
        except Retryable as error:
            self._problems[slug] = f"its files cannot be fetched: {error}"
            log.warning("model.fetch_failed", model=card.model, reason=str(error))
            await anyio.sleep(FETCH_RETRY_S)
            if slug not in self._waiting and slug not in self._left_at:
                self._waiting[slug] = card
            return
        except BuswayError as error:
            self._problems[slug] = str(error)
            self._sources[slug] = _source_of(card)
            log.error("model.refused", model=card.model, reason=str(error))
            return
        self._problems.pop(slug, None)
        self._sources[slug] = _source_of(card)
        self._models[slug] = model
        log.info(
            "model.ready",
            model=model.name,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            template=model.template.engine if model.template else None,
            parser=model.format.name,
            built_s=round(time.perf_counter() - started_at, 3),
        )


def _source_of(card: ModelCard) -> bytes:
    """Return what a model is built from; the time of the card, which every worker sets anew, is no part of it."""
    return msgspec.msgpack.encode(msgspec.structs.replace(card, created_at=0.0), order="deterministic")


def _suggest(name: str, names: Iterable[str]) -> str:
    have = list(names)
    if not have:
        return "No model is served here at present."
    close = difflib.get_close_matches(name, have, n=1, cutoff=0.5)
    listed = ", ".join(have[:_MAX_NAMES]) + (", ..." if len(have) > _MAX_NAMES else "")
    return (f"Did you mean {close[0]!r}? " if close else "") + f"Models served here: {listed}."
