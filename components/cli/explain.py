"""I/O. What would become of a request: rendered prompt, token ids, block hashes, where it would go and why.

`-` reads the body of a chat completion or completion from stdin; a FILE does too; other words are one user's turn.
"""

import argparse
import os
from pathlib import Path

import msgspec

from components.cli.completions import choose_model, explain
from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser, UsageError
from components.cli.readable import printable
from components.cli.terminal import find_frontend, read_stdin, to_text

SHOWN_BLOCKS = 8
SHOWN_TOKENS = 400
_EXAMPLE = 'echo \'{"messages": [{"role": "user", "content": "Hi"}]}\' | busway explain -'


class _Token(msgspec.Struct):
    id: int
    text: str


class _Blocks(msgspec.Struct):
    block_size: int
    hashes: list[str]


class _Candidate(msgspec.Struct):
    worker: str
    cost_s: float
    wait_s: float
    cached_tokens: int
    uncached_tokens: int
    num_requests: int


class _Destination(msgspec.Struct):
    via: str
    worker: str | None
    reason: str
    candidates: list[_Candidate]


class _Explanation(msgspec.Struct):
    model: str
    prompt: str
    num_tokens: int
    tokens: list[_Token]
    blocks: list[_Blocks]
    latency_class: str
    tenant: str
    destination: _Destination


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("request", nargs="+", help="- (stdin), a file with a JSON body, or one question")
    parser.add_argument("--url", help="frontend (the one that `busway up` runs here)")
    parser.add_argument("--model", metavar="NAME", help="model to ask, where the body names none")
    parser.add_argument("--json", action="store_true", help="all of it, as JSON")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the frontend and print what it says."""
    config = read_config(options)
    url, tls_ca = find_frontend(config, options.url)
    body = _read_body(options.request)
    if not body.get("model"):
        body["model"] = choose_model(url, options.model, tls_ca)
    answer = explain(url, msgspec.json.encode(body), tls_ca)
    print(answer.decode() if options.json else render(msgspec.json.decode(answer, type=_Explanation)))
    return 0


def _read_body(words: list[str]) -> dict[str, object]:
    """Return the request body; raise `UsageError` for what is none."""
    if words == ["-"]:
        text, source = read_stdin(_EXAMPLE), "stdin"
    elif len(words) == 1 and Path(words[0]).is_file():
        source = words[0]
        text = to_text(Path(source).read_bytes(), source, _EXAMPLE)
    else:
        question = to_text(os.fsencode(" ".join(words)), "the question", _EXAMPLE)
        return {"messages": [{"role": "user", "content": question}]}
    if not text.lstrip().startswith("{"):
        return {"messages": [{"role": "user", "content": text}]}
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{source} is no JSON object: {error}", _EXAMPLE) from error


def render(explanation: _Explanation) -> str:
    """Return the explanation for people, cut to a screen or two."""
    destination = explanation.destination
    lines = [
        f"model        {explanation.model}",
        f"prompt       {explanation.num_tokens} tokens, as the model gets it:",
        "",
    ]
    lines += [f"  {printable(line)}" for line in explanation.prompt.split("\n")]
    shown = explanation.tokens[:SHOWN_TOKENS]
    more = f" ... {explanation.num_tokens - len(shown)} more" if explanation.num_tokens > len(shown) else ""
    lines += ["", "tokens       " + " ".join(f"{token.id}:{token.text!r}" for token in shown) + more]
    for blocks in explanation.blocks:
        rest = len(blocks.hashes) - SHOWN_BLOCKS
        hashes = " ".join(blocks.hashes[:SHOWN_BLOCKS]) + (f" ... {rest} more" if rest > 0 else "")
        lines.append(f"blocks       {len(blocks.hashes)} full ones of {blocks.block_size} tokens: {hashes or 'none'}")
    lines.append(f"class        {explanation.latency_class}, tenant {printable(explanation.tenant)}")
    lines.append(f"goes to      {destination.worker or 'any worker'}, {destination.reason}")
    if destination.candidates:
        lines += ["", f"  {'worker':<14}{'cost ms':>10}{'wait ms':>10}{'cached':>9}{'computed':>10}{'requests':>10}"]
    for each in destination.candidates:
        lines.append(
            f"  {each.worker:<14}{each.cost_s * 1000:>10.1f}{each.wait_s * 1000:>10.1f}{each.cached_tokens:>9}"
            f"{each.uncached_tokens:>10}{each.num_requests:>10}"
        )
    return "\n".join(lines)
