"""Whoever asks one process for the metrics of all gets them, whatever else answers."""

import anyio
import pytest

from bus.codec import encode
from bus.exposition import merge
from bus.messages.fleet import ProcessMetrics
from bus.scrape import answer_scrapes, scrape
from bus.testing import MemoryBroker

pytestmark = pytest.mark.anyio

COUNTED = '# HELP things_total Things.\n# TYPE things_total counter\nthings_total{{kind="a"}} {}\n'


async def test_every_process_answers_once() -> None:
    broker = MemoryBroker()
    async with broker.connect("one") as one, broker.connect("two") as two:
        with answer_scrapes(one, "f-1"), answer_scrapes(two, "w-1"), anyio.fail_after(30):
            texts = await scrape(one)
            assert set(texts) == {"f-1", "w-1"}
            assert "busway_worker_tokens_total" in texts["w-1"]
        with anyio.fail_after(30):
            assert await scrape(one) == {}


async def test_noise_among_the_answers_is_no_harm() -> None:
    async with MemoryBroker().connect("one") as bus:

        def answer(incoming: object) -> None:
            reply = incoming.reply  # type: ignore[attr-defined]
            for noise in (b"", b"\xff" * 50, encode(ProcessMetrics(process="p", text="x" * 2**21))):
                bus.publish(reply, noise)
            bus.publish(reply, encode(ProcessMetrics(process="w-1", text=COUNTED.format(3))))

        bus.subscribe(bus.subjects.metrics(), answer)
        with anyio.fail_after(30):
            assert list(await scrape(bus)) == ["w-1"]


def test_samples_say_whose_they_are() -> None:
    texts = {"w-1": COUNTED.format(3), "w-2": COUNTED.format(4), "broken": "things_total{ 1\n", "empty": ""}
    shown = merge({**texts, "liar": "# TYPE things gauge\nthings 5\n"}).decode()
    assert shown.count("# TYPE things_total counter") == 1
    assert 'things_total{kind="a",process="w-1"} 3.0' in shown
    assert 'things_total{kind="a",process="w-2"} 4.0' in shown
    assert "broken" not in shown
    assert "liar" not in shown
