"""langchain's standard integration tests of chat models, over chat completions and over the Responses API.

They run in an environment of their own (`make conformance`): they bring plugins that change how pytest works.
"""

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatCompletions(ChatModelIntegrationTests):
    """`ChatOpenAI` as it is by default."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ.get("BUSWAY_MODEL", "busway-tiny"),
            "base_url": os.environ["OPENAI_BASE_URL"],
            "api_key": os.environ.get("BUSWAY_API_KEY", "none"),
            "temperature": 0,
            "max_tokens": 400,
            "stream_usage": True,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestResponses(TestChatCompletions):
    """`ChatOpenAI` over the Responses API."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}
