"""I/O. What a frontend says of itself: models, health, metrics."""

import anyio.to_thread
import msgspec

from bus.errors import UnknownModel
from bus.exposition import merge
from bus.metrics import CONTENT_TYPE, render
from bus.protocol import Bus
from bus.scrape import scrape
from frontend.anthropic.answers import ModelShown as AnthropicModelShown
from frontend.anthropic.answers import model_shown, models_shown
from frontend.auth.identity import caller
from frontend.doors.call import JSON, Call, Headers, Reply
from frontend.doors.routes import Doc, Route
from frontend.model import ServedModel
from frontend.models import Models
from frontend.openai.answers import ModelShown, ModelsShown, model_body, model_list

_json = msgspec.json.encode

_METRICS: Headers = ((b"content-type", CONTENT_TYPE.encode()),)


class Status:
    """Handlers that answer at once."""

    def __init__(self, bus: Bus, models: Models) -> None:
        self._bus = bus
        self._models = models
        self.is_draining = False

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("GET", "/v1/models", self.list_models, doc=Doc(answer=ModelsShown)),
            Route("GET", "/v1/models/{model...}", self.show_model, doc=Doc(answer=ModelShown)),
            Route("GET", "/live", self.live, "plain"),
            Route("GET", "/ready", self.ready, "plain"),
            Route("GET", "/health", self.ready, "plain"),
            Route("GET", "/metrics", self.metrics, "plain", Doc(media="text/plain")),
            Route("GET", "/metrics/fleet", self.fleet_metrics, "plain", Doc(media="text/plain")),
        ]

    async def list_models(self, call: Call) -> Reply:
        """List the models that can be asked, for Anthropic's clients (header `anthropic-version`) in their shape."""
        if call.is_anthropic:
            return Reply(_json(models_shown([_show_anthropic(model) for model in self._listed()])))
        return Reply(model_list([_show(model) for model in self._listed()]))

    async def show_model(self, call: Call) -> Reply:
        """Show one model, as `list_models` does."""
        name = call.params["model"]
        for model in self._listed():
            if model.name == name:
                return Reply(_json(_show_anthropic(model)) if call.is_anthropic else _show(model))
        raise UnknownModel(self._models.describe_unknown(name))

    def _listed(self) -> list[ServedModel]:
        """Return the models that the caller may use."""
        account = caller.get().account
        models = self._models.listed()
        return models if account is None else [model for model in models if account.may_use(model.name)]

    async def live(self, call: Call) -> Reply:
        """Say that the process answers."""
        return Reply(b'{"status":"live"}')

    async def ready(self, call: Call) -> Reply:
        """Say whether a request would be served now, and if not, why."""
        reason = "this frontend is shutting down" if self.is_draining else self._models.describe_unready()
        if reason:
            return Reply(
                msgspec.json.encode({"status": "not ready", "reason": reason}), 503, (*JSON, (b"retry-after", b"1"))
            )
        return Reply(b'{"status":"ready"}')

    async def metrics(self, call: Call) -> Reply:
        """Show this process's metrics, for Prometheus."""
        return Reply(render(), headers=_METRICS)

    async def fleet_metrics(self, call: Call) -> Reply:
        """Show the metrics of every process on the bus, each sample with the label `process`, for Prometheus."""
        texts = await scrape(self._bus)
        return Reply(await anyio.to_thread.run_sync(merge, texts), headers=_METRICS)


def _show(model: ServedModel) -> bytes:
    return model_body(model.name, int(model.created_at), model.max_model_len)


def _show_anthropic(model: ServedModel) -> AnthropicModelShown:
    return model_shown(model.name, model.created_at, model.max_model_len)
