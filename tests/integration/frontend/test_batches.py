"""Lines of a batch, with a worker that does what the test says."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import openai
import pytest

OpenStage = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio


async def test_a_line_that_was_refused_is_tried_again_as_a_request_of_its_own(stage: OpenStage) -> None:
    async with stage(latency_class="batch") as on:

        def full_at_first(job: Any) -> None:
            if len(on.worker.jobs) == 1:
                on.worker.say(job, failed=("overloaded", False))
            else:
                on.worker.echo(job, "Yes.")

        on.worker.script = full_at_first
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Well?"}]}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        url = f"{on.frontend.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            file = await client.files.create(file=("lines", json.dumps(line).encode()), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            with anyio.fail_after(30):
                while batch.status != "completed":
                    await anyio.sleep(0.02)
                    batch = await client.batches.retrieve(batch.id)
            assert batch.output_file_id is not None
            output = json.loads((await client.files.content(batch.output_file_id)).text)
    first, second = on.worker.jobs
    # The broker drops what it has seen, and a frontend that goes on with a dead one's batch asks for the same line.
    assert first.request_id != second.request_id
    assert output["custom_id"] == "a"
    answer = output["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "Yes."
    used = batch.usage
    assert used is not None
    assert used.total_tokens == used.input_tokens + used.output_tokens == answer["usage"]["total_tokens"]
    assert used.input_tokens_details.cached_tokens == answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
