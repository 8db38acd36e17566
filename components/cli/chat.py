"""I/O. Talk to a model over HTTP. Without a message: a conversation, ended with Ctrl-D."""

import argparse
import os
import sys

from components.cli.completions import ChatFailed, Figures, Message, Target, choose_model, stream_chat
from components.cli.options import add_config_options, read_config
from components.cli.parser import Parser
from components.cli.terminal import find_frontend, read_stdin, to_text

_EXAMPLE = "busway chat 'What is Busway?'"


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("message", nargs="*", help="one question; the answer goes to stdout, its figures to stderr")
    parser.add_argument("--url", help="frontend (the one that `busway up` runs here)")
    parser.add_argument("--model", metavar="NAME", help="model to ask (the first that is served)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 to 2 (what the model says)")
    add_config_options(parser)


def run(options: argparse.Namespace) -> int:
    """Ask once, or converse."""
    config = read_config(options)
    url, tls_ca = find_frontend(config, options.url)
    target = Target(url, choose_model(url, options.model, tls_ca), options.temperature, tls_ca)
    if options.message:
        question = to_text(os.fsencode(" ".join(options.message)), "the question", _EXAMPLE)
        _ask(target, [Message("user", question)])
    elif sys.stdin.isatty():
        _converse(target)
    else:
        _ask(target, [Message("user", read_stdin(_EXAMPLE))])
    return 0


def _ask(target: Target, messages: list[Message]) -> str:
    """Print the answer as it comes, then its figures; return it. What the model thinks goes to stderr."""
    from bus.logs import has_colours

    figures = Figures()
    pieces = []
    is_thinking = False
    thought = "\x1b[2m{}\x1b[0m" if has_colours(sys.stderr) else "{}"
    for text, is_thought in stream_chat(target, messages, figures):
        if is_thinking and not is_thought:
            print("\n", file=sys.stderr, flush=True)
        is_thinking = is_thought
        if is_thought:
            print(thought.format(text), end="", file=sys.stderr, flush=True)
        else:
            print(text, end="", flush=True)
            pieces.append(text)
    print(flush=True)
    print(f"[{target.model}: {figures.summary() or 'no answer'}]", file=sys.stderr)
    return "".join(pieces)


def _converse(target: Target) -> None:
    try:
        import readline  # noqa: F401 - importing it gives `input` its history and editing
    except ImportError:
        pass
    print(f"{target.model} at {target.url}; /new starts over, Ctrl-D ends, Ctrl-C cuts an answer off\n")
    history: list[Message] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text == "/new":
            history = []
        elif text:
            history = _take_turn(target, [*history, Message("user", text)])


def _take_turn(target: Target, history: list[Message]) -> list[Message]:
    """Return the conversation with the answer; without the question when there was none."""
    try:
        return [*history, Message("assistant", _ask(target, history))]
    except KeyboardInterrupt:
        print("\n[cut off]", file=sys.stderr)
    except ChatFailed as error:
        print(f"\nerror: {error}", file=sys.stderr)
    return history[:-1]
