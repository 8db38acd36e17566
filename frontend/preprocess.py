"""Pure. From a decoded body to what an engine needs: prompt ids, sampling, stopping, all within bounds."""

from collections.abc import Sequence
from typing import Any

import msgspec

from bus.errors import InvalidRequest, Malformed, PromptTooLong
from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass, Sampling, Stopping
from frontend.model import ServedModel
from frontend.openai.body import ChatBody, ChatMessage, CompletionBody, SamplingBody, Tool, decode_prompt
from frontend.request import Generation

_MAX_TOOL_BYTES = 256 * 2**10
"""JSON Schemas of all tools of a request: they are decoded without a type, which takes up to 50 times their size."""

_CLASSES: dict[str, LatencyClass] = {"priority": "interactive", "flex": "batch"}
"""Latency class by OpenAI's `service_tier`; the others are standard."""

_any = msgspec.json.Decoder()
_NO_CHOICE = msgspec.Raw(b'"none"')


class Defaults(msgspec.Struct, frozen=True):
    """What holds where the body says nothing."""

    max_tokens: int
    """Bound of the output, where the context leaves as much."""
    seed: int
    tenant: str


def prepare_chat(body: ChatBody, model: ServedModel, defaults: Defaults) -> Generation:
    """Render the conversation and return the generation.

    Raises `InvalidRequest` that names the field, `PromptTooLong`. Takes time in proportion to the prompt.
    """
    if model.template is None:
        raise InvalidRequest(
            f"Model {model.name!r} has no chat template; use /v1/completions with a prompt.", param="messages"
        )
    tools = None if not body.tools or body.tool_choice == _NO_CHOICE else _template_tools(body.tools)
    messages = [_template_message(message, model.template.knows_developer) for message in body.messages]
    text = model.template.render(messages, tools, body.chat_template_kwargs)
    prompt = model.tokenizer.encode(text, add_special_tokens=False)
    top = (body.top_logprobs or 0) if body.logprobs else None
    if top is None and body.top_logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    wanted = body.max_completion_tokens or body.max_tokens
    return _generation(body, model, prompt, defaults, wanted_tokens=wanted, top_logprobs=top, prompt_field="messages")


def prepare_completion(body: CompletionBody, model: ServedModel, defaults: Defaults) -> Generation:
    """Tokenize the prompt, or take its ids, and return the generation; as `prepare_chat`."""
    if body.echo:
        raise InvalidRequest("'echo' is not served yet.", param="echo")
    if body.suffix:
        raise InvalidRequest("'suffix' is not served: models here complete from the left only.", param="suffix")
    if body.best_of is not None and body.best_of > 1:
        raise InvalidRequest("'best_of' above 1 is not served.", param="best_of")
    given = decode_prompt(body.prompt)
    if isinstance(given, str):
        prompt = model.tokenizer.encode(given, add_special_tokens=True)
        if not prompt:
            raise InvalidRequest("'prompt' is empty: it gives the model nothing to go on from.", param="prompt")
    else:
        _check_ids(given, model, "prompt")
        prompt = pack_u32(given)
    return _generation(
        body,
        model,
        prompt,
        defaults,
        wanted_tokens=body.max_tokens,
        top_logprobs=body.logprobs,
        prompt_field="prompt",
    )


def _generation(
    body: SamplingBody,
    model: ServedModel,
    prompt: bytes,
    defaults: Defaults,
    *,
    wanted_tokens: int | None,
    top_logprobs: int | None,
    prompt_field: str,
) -> Generation:
    if body.n is not None and body.n > 1:
        raise InvalidRequest("'n' above 1 is not served yet; send several requests.", param="n")
    max_tokens = _output_bound(len(prompt) // 4, wanted_tokens, model.max_model_len, defaults.max_tokens, prompt_field)
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' is {min_tokens}, above the {max_tokens} of 'max_tokens'.", param="min_tokens"
        )
    _check_ids(body.stop_token_ids or (), model, "stop_token_ids")
    _check_ids(body.logit_bias or (), model, "logit_bias")
    stop = body.stop or ()
    return Generation(
        model=model.name,
        model_slug=model.slug,
        prompt=prompt,
        sampling=Sampling(
            temperature=_or(body.temperature, model.sampling.temperature),
            top_p=_or(body.top_p, model.sampling.top_p),
            top_k=model.sampling.top_k if body.top_k is None else max(0, body.top_k),
            min_p=_or(body.min_p, model.sampling.min_p),
            presence_penalty=_or(body.presence_penalty, 0.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            repetition_penalty=_or(body.repetition_penalty, model.sampling.repetition_penalty),
            logit_bias=body.logit_bias or {},
            seed=defaults.seed if body.seed is None else body.seed % 2**63,
            top_logprobs=top_logprobs,
        ),
        stopping=Stopping(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=body.stop_token_ids or [],
            ignore_eos=bool(body.ignore_eos),
        ),
        eos_token_ids=model.eos_token_ids,
        latency_class=_CLASSES.get(body.service_tier or "default", "standard"),
        tenant=defaults.tenant,
        session=body.prompt_cache_key or "",
        stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _output_bound(num_prompt: int, wanted: int | None, context: int, default: int, field: str) -> int:
    """Return how many tokens may be generated; raise `PromptTooLong` in OpenAI's words, which clients look for."""
    if num_prompt >= context:
        raise PromptTooLong(
            f"This model's maximum context length is {context} tokens. However, your {field} resulted in {num_prompt} "
            f"tokens. Please reduce the length of the {field}.",
            param=field,
        )
    if wanted is None:
        return min(default, context - num_prompt)
    if num_prompt + wanted > context:
        raise PromptTooLong(
            f"This model's maximum context length is {context} tokens. However, you requested {num_prompt + wanted} "
            f"tokens ({num_prompt} in the {field}, {wanted} in the completion). Please reduce the length of the "
            f"{field} or completion.",
            param=field,
        )
    return wanted


def _check_ids(ids: Any, model: ServedModel, param: str) -> None:
    for id in ids:
        if id >= model.vocab_size:
            raise InvalidRequest(
                f"Invalid value for '{param}': token id {id} is not below the vocabulary's {model.vocab_size}.",
                param=param,
            )


def _template_message(message: ChatMessage, knows_developer: bool) -> dict[str, Any]:
    """Return the message as chat templates expect it: plain text, parsed arguments, no empty fields."""
    role = "system" if message.role == "developer" and not knows_developer else message.role
    shown: dict[str, Any] = {"role": role, "content": _text_of(message)}
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None:
        shown["reasoning_content"] = reasoning
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return shown


def _text_of(message: ChatMessage) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text":
            raise InvalidRequest(
                f"Invalid value for 'messages': content of type {part.type[:40]!r} is not served; only text is.",
                param="messages",
            )
    return "\n".join(part.text for part in message.content)


def _arguments(text: str) -> Any:
    """Return the arguments as an object, which templates render themselves; text that is no object stays text."""
    if len(text) > _MAX_TOOL_BYTES:
        return text
    try:
        value = _any.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return text
    return value if isinstance(value, dict) else text


def _template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    if sum(len(bytes(tool.function.parameters)) for tool in tools) > _MAX_TOOL_BYTES:
        raise InvalidRequest(f"The tools' parameters are larger than {_MAX_TOOL_BYTES} bytes.", param="tools")
    shown = []
    for tool in tools:
        function: dict[str, Any] = {"name": tool.function.name}
        if tool.function.description is not None:
            function["description"] = tool.function.description
        raw = bytes(tool.function.parameters)
        if raw:
            try:
                function["parameters"] = _any.decode(raw)
            except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
                raise Malformed(f"The body is not valid JSON: tools: {error}") from error
        shown.append({"type": tool.type, "function": function})
    return shown
