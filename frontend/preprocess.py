"""Pure. From a decoded body to what an engine needs: prompt ids, sampling, stopping, all within bounds."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bus.errors import InvalidRequest, Malformed, PromptTooLong
from bus.messages.base import pack_u32
from bus.messages.inference import LatencyClass, Sampling, Stopping
from frontend.model import ServedModel
from frontend.openai.body import ChatBody, ChatMessage, CompletionBody, SamplingBody, decode_prompts
from frontend.openai.tools import Tool, ToolCall
from frontend.request import Generation

_MAX_TOOL_BYTES = 256 * 2**10
"""JSON Schemas of all tools of a request: they are decoded without a type, which takes up to 50 times their size."""

_CLASSES: dict[str, LatencyClass] = {
    "priority": "interactive",
    "fast": "interactive",
    "ultrafast": "interactive",
    "flex": "batch",
}
"""Latency class by OpenAI's `service_tier`; the others are standard."""

TAIL = 200
"""Characters of a rendered prompt that tell where the answer begins."""

_any = msgspec.json.Decoder()


class Defaults(msgspec.Struct, frozen=True):
    """What holds where the body says nothing."""

    max_tokens: int
    """Bound of the output, where the context leaves as much; 0: what it leaves."""
    seed: int
    tenant: str
    lowers_bound: bool = False
    """A bound of the output for which the context has no room is lowered instead of refused."""


class Turn(msgspec.Struct, frozen=True):
    """A conversation, ready to be continued."""

    generation: Generation
    prompt_tail: str
    """The end of the rendered prompt: whether the answer begins inside of a thought shows there."""


def prepare_chat(body: ChatBody, model: ServedModel, defaults: Defaults) -> Turn:
    """Render the conversation and return the generation.

    Raises `InvalidRequest` that names the field, `PromptTooLong`. Takes time in proportion to the prompt.
    """
    for modality in body.modalities or ():
        if modality != "text":
            raise InvalidRequest(f"The model answers in text, not {modality[:40]!r}.", param="modalities")
    text = render_chat(body, model)
    prompt = model.tokenizer.encode(text, add_special_tokens=False)
    top = (body.top_logprobs or 0) if body.logprobs else None
    if top is None and body.top_logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    wanted = body.max_completion_tokens or body.max_tokens
    if wanted == 0:
        raise InvalidRequest(
            "Invalid value for 'max_tokens': at least one token is to be generated.", param="max_tokens"
        )
    generation = _generation(
        body, model, prompt, defaults, wanted_tokens=wanted, top_logprobs=top, prompt_field="messages"
    )
    return Turn(generation, text[-TAIL:])


def render_chat(body: ChatBody, model: ServedModel) -> str:
    """Return the conversation as the model's template writes it; raise `InvalidRequest` that names the field."""
    if model.template is None:
        raise InvalidRequest(
            f"Model {model.name!r} has no chat template; use /v1/completions with a prompt.", param="messages"
        )
    tools = _template_tools(body.offered) if body.offered else None
    messages = [_template_message(message, model.template.knows_developer) for message in body.messages]
    options = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    return model.template.render(messages, tools, options)


def prepare_completion(body: CompletionBody, model: ServedModel, defaults: Defaults) -> list[Generation]:
    """Tokenize the prompts, or take their ids, and return a generation for each; as `prepare_chat`."""
    if body.suffix:
        raise InvalidRequest("'suffix' is not served: models here complete from the left only.", param="suffix")
    wanted = body.max_tokens
    if wanted == 0:
        if not body.echo or body.stream:
            raise InvalidRequest(
                "Invalid value for 'max_tokens': 0 is for 'echo' without 'stream' only.", param="max_tokens"
            )
        wanted = 1
    top_logprobs = body.logprobs
    if top_logprobs is None and body.best_of is not None:
        top_logprobs = 0  # what the best is chosen by
    generations = [
        _generation(
            body, model, prompt, defaults, wanted_tokens=wanted, top_logprobs=top_logprobs, prompt_field="prompt"
        )
        for prompt in _prompts(body, model)
    ]
    if body.echo and body.logprobs is not None:
        return [msgspec.structs.replace(each, prompt_logprobs=body.logprobs) for each in generations]
    return generations


def _prompts(body: CompletionBody, model: ServedModel) -> list[bytes]:
    prompts = []
    given = decode_prompts(body.prompt)
    if not given:
        raise InvalidRequest("'prompt' is an empty list.", param="prompt")
    for each in given:
        if isinstance(each, str):
            prompt = model.tokenizer.encode(each, add_special_tokens=True)
            if not prompt:
                raise InvalidRequest("'prompt' is empty: it gives the model nothing to go on from.", param="prompt")
        else:
            check_ids(each, model, "prompt")
            prompt = pack_u32(each)
        prompts.append(prompt)
    return prompts


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
    num_prompt, context = len(prompt) // 4, model.max_model_len
    if defaults.lowers_bound and wanted_tokens is not None and num_prompt < context:
        wanted_tokens = min(wanted_tokens, context - num_prompt)
    max_tokens = _output_bound(num_prompt, wanted_tokens, context, defaults.max_tokens, prompt_field)
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' is {min_tokens}, above the {max_tokens} of 'max_tokens'.", param="min_tokens"
        )
    if body.stop_token_ids:
        check_ids(body.stop_token_ids, model, "stop_token_ids")
    if body.logit_bias:
        check_ids(body.logit_bias, model, "logit_bias")
    stop, default, repetition = body.stop or (), model.sampling, body.repetition_penalty
    return Generation(
        model=model.name,
        model_slug=model.slug,
        prompt=prompt,
        sampling=Sampling(
            temperature=default.temperature if body.temperature is None else body.temperature,
            top_p=default.top_p if body.top_p is None else body.top_p,
            top_k=default.top_k if body.top_k is None else max(0, body.top_k),
            min_p=default.min_p if body.min_p is None else body.min_p,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=default.repetition_penalty if repetition is None else repetition,
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
        shows_stop=bool(body.include_stop_str_in_output),
        shows_tokens=bool(body.return_token_ids),
    )


def _output_bound(num_prompt: int, wanted: int | None, context: int, default: int, field: str) -> int:
    """Return how many tokens may be generated; raise `PromptTooLong` in OpenAI's words, which clients look for."""
    check_length(num_prompt, context, field)
    if wanted is None:
        return min(default or context, context - num_prompt)
    if num_prompt + wanted > context:
        raise PromptTooLong(
            f"This model's maximum context length is {context} tokens. However, you requested {num_prompt + wanted} "
            f"tokens ({num_prompt} in the {field}, {wanted} in the completion). Please reduce the length of the "
            f"{field} or completion.",
            param=field,
        )
    return wanted


def check_ids(ids: Iterable[int], model: ServedModel, param: str) -> None:
    """Raise `InvalidRequest` that names `param` for a token id that the model has not."""
    highest = max(ids, default=0)
    if highest >= model.vocab_size:
        raise InvalidRequest(
            f"Invalid value for '{param}': token id {highest} is not below the vocabulary's {model.vocab_size}.",
            param=param,
        )


def check_length(num_prompt: int, context: int, field: str) -> None:
    """Raise `PromptTooLong`, in OpenAI's words, for a prompt that leaves no room in the context."""
    if num_prompt >= context:
        raise PromptTooLong(
            f"This model's maximum context length is {context} tokens. However, your {field} resulted in {num_prompt} "
            f"tokens. Please reduce the length of the {field}.",
            param=field,
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
        shown["reasoning_content"] = shown["reasoning"] = reasoning
        if not message.content:
            shown["thinking"] = reasoning  # gpt-oss's name; its template refuses it beside a content
    if message.role == "function":
        shown |= {"role": "tool", "tool_call_id": message.name or ""}
    calls = message.tool_calls
    if message.function_call is not None:
        calls = [ToolCall(id=message.function_call.name, function=message.function_call)]
    if calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in calls
        ]
    return shown


def _text_of(message: ChatMessage) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type not in ("text", "refusal", "input_text", "output_text"):
            raise InvalidRequest(
                f"Invalid value for 'messages': content of type {part.type[:40]!r}; the model takes text only.",
                param="messages",
            )
    return "\n".join(part.text or part.refusal for part in message.content)


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
        shown.append({"type": "function", "function": function})
    return shown
