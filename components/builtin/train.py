"""Train ``busway-tiny`` and write the model folder. Does I/O: reads the corpus, writes ``model/`` and a log file.

Run ``python -m components.builtin.train`` from the root of the repository; ``--steps`` sets how long it trains.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional

from components.builtin import MODEL_DIR
from components.builtin.batches import Batch, Encoder, Example, blur, by_length, collate, drill
from components.builtin.evaluate import answer, held_out_lessons, wrong_lessons
from components.builtin.lessons import Corpus, Lesson, Questions
from components.builtin.network import Network, Shape
from components.builtin.sources import draw_lesson, load_corpus, load_template
from components.builtin.tokenizer import END, END_OF_TEXT, tokenizer_config, train_tokenizer

SEED = 20
VOCAB_SIZE = 2048
BATCH_TOKENS = 4096
POOL = 1024
log = logging.getLogger("train")


def main() -> None:
    """Train, evaluate, write the folder and show some answers."""
    parser = argparse.ArgumentParser(description="Train the built-in model busway-tiny.")
    parser.add_argument("--steps", type=int, default=2300, help="training steps of about 4,000 tokens (default: 2300)")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (default: the model folder)")
    parser.add_argument("--resume", action="store_true", help="go on from the folder, at half the learning rate")
    parser.add_argument("--log", type=Path, default=None, help="file that also gets the log")
    arguments = parser.parse_args()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if arguments.log:
        handlers.append(logging.FileHandler(arguments.log, mode="w"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    corpus = load_corpus()
    questions = Questions(corpus)
    tokens = arguments.out / "tokenizer.json"
    encoder = (
        Encoder(load_template(), Tokenizer.from_file(str(tokens)))
        if arguments.resume
        else make_encoder(corpus, questions)
    )
    shape = Shape(vocab_size=encoder.tokenizer.get_vocab_size())
    network = Network(shape)
    if arguments.resume:
        network.load_state_dict(load_file(arguments.out / "model.safetensors"))
    log.info("%d parameters, %d entries", sum(weight.numel() for weight in network.parameters()), len(corpus.entries))
    source = batches(corpus, questions, encoder)
    quick = held_out_lessons(corpus, questions, num_tasks=40)
    train(
        network,
        source,
        arguments.steps,
        0.5 if arguments.resume else 1.0,
        lambda: log.info("exact answers: %s", rates(network, encoder, quick)),
    )
    network.bfloat16().float()
    write_folder(arguments.out, network, encoder)
    report(network, encoder, held_out_lessons(corpus, questions, num_tasks=150))


def make_encoder(corpus: Corpus, questions: Questions) -> Encoder:
    """Train the tokenizer on answers, questions and lessons, and join it with the chat template."""
    rng = random.Random(SEED)
    texts = [entry.answer for entry in corpus.entries for _ in range(4)] + list(corpus.paragraphs)
    texts += [question for asked, _ in questions.learned for question in asked]
    lessons = [draw_lesson(corpus, questions, rng) for _ in range(3000)]
    texts += [str(message["content"]) for lesson in lessons for message in lesson.messages] + [
        json.dumps(lesson.tools) for lesson in lessons
    ]
    texts += ["system\nuser\nassistant\ntool_response\ntools\n"] * 3000
    return Encoder(load_template(), train_tokenizer(texts, VOCAB_SIZE))


def batches(corpus: Corpus, questions: Questions, encoder: Encoder) -> Iterator[Batch]:
    """Draw lessons without end and give them as batches of like length, in random order."""
    rng = random.Random(SEED)
    generator = torch.Generator().manual_seed(SEED)
    while True:
        examples: list[Example] = [encoder.encode(draw_lesson(corpus, questions, rng)) for _ in range(POOL)]
        examples += [drill(rng, encoder.tokenizer.get_vocab_size()) for _ in range(POOL // 12)]
        groups = list(by_length(examples, BATCH_TOKENS))
        rng.shuffle(groups)
        for group in groups:
            yield blur(collate(group), generator, encoder.tokenizer.get_vocab_size())


def train(network: Network, source: Iterator[Batch], steps: int, peak_share: float, look: Callable[[], None]) -> None:
    """Take ``steps`` optimiser steps: Muon for the matrices of the layers, AdamW for the rest; warm-up and cosine.

    Calls ``look`` every 250 steps.
    """
    matrices = [weight for weight in network.model.layers.parameters() if weight.dim() == 2]
    rest = [weight for weight in network.parameters() if not any(weight is matrix for matrix in matrices)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = (4e-3 * peak_share, 3e-3 * peak_share)
    began = time.perf_counter()
    num_tokens, mean = 0, 0.0
    for step in range(steps):
        batch = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.head(network.hidden(batch.inputs)[batch.is_counted])
        loss = functional.cross_entropy(logits.float(), batch.targets[batch.is_counted])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * schedule(step, steps)
            optimiser.step()
            optimiser.zero_grad()
        num_tokens += batch.inputs.numel()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 250 == 249:
            look()
        if step % 50 == 49:
            seconds = time.perf_counter() - began
            log.info(
                "step %d of %d, loss %.4f, %d tokens, %.0f s, %.0f tokens/s",
                step + 1,
                steps,
                mean,
                num_tokens,
                seconds,
                num_tokens / seconds,
            )


def rates(network: Network, encoder: Encoder, lessons: dict[str, list[Lesson]]) -> str:
    """Give the share of exact answers to the tasks that are few, in a line."""
    tasks = {kind: asked for kind, asked in lessons.items() if not kind.startswith("questions")}
    return ", ".join(
        f"{kind} {1 - len(wrong_lessons(network, encoder, asked)) / len(asked):.2f}" for kind, asked in tasks.items()
    )


def schedule(step: int, steps: int) -> float:
    """Give the learning rate as a share of its peak: 3 % warm-up, then a cosine to nearly zero."""
    done = step / steps
    return min(1.0, (step + 1) / (0.03 * steps)) * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))


def write_folder(folder: Path, network: Network, encoder: Encoder) -> None:
    """Write the Hugging Face folder: weights in bfloat16, tokenizer, template and configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    shape = network.shape
    end, end_of_text = (encoder.tokenizer.token_to_id(mark) for mark in (END, END_OF_TEXT))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end_of_text,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }
    files: dict[str, object] = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [end, end_of_text], "pad_token_id": end_of_text, "do_sample": False},
        "tokenizer_config.json": tokenizer_config(load_template(), shape.max_position_embeddings),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def report(network: Network, encoder: Encoder, lessons: dict[str, list[Lesson]]) -> None:
    """Log the share of exact answers by kind, the misses, and some samples."""
    network.eval()
    for kind, asked in lessons.items():
        wrong = wrong_lessons(network, encoder, asked)
        log.info(
            "exact answers, %s: %d of %d (%.1f %%)",
            kind,
            len(asked) - len(wrong),
            len(asked),
            100 - 100 * len(wrong) / len(asked),
        )
        for lesson, said in wrong[: 400 if kind == "questions" else 12]:
            log.info(
                "  missed: %s -> %s",
                " / ".join(str(message["content"])[:80] for message in lesson.messages[:-1]),
                said[:160],
            )
    for question in (
        "What is Busway?",
        "what is a kv block",
        "How do I serve a real model?",
        "Who is Napoleon?",
        "Count to ten.",
    ):
        lesson = Lesson(messages=({"role": "user", "content": question},))
        log.info("%s -> %s", question, answer(network, encoder, lesson))
    log.info("Busway is a -> %s", answer(network, encoder, Lesson(text="Busway is a")))


if __name__ == "__main__":
    main()
