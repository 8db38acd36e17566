"""I/O. The body of a call, read and decoded within bounds."""

from typing import TypeVar

import msgspec

from frontend.doors.call import Call
from frontend.intake import Intake
from frontend.openai.body import BodyDecoder

B = TypeVar("B", bound=msgspec.Struct)


class Read(msgspec.Struct, frozen=True):
    """What there is to know of a body beside itself."""

    num_bytes: int
    ignored: tuple[str, ...]
    """Parameters in it that are unknown here."""


async def read_body(call: Call, intake: Intake, decoder: BodyDecoder[B]) -> tuple[B, Read]:
    """Read and decode the body; raise as `Call.read_json` and `Intake.decode`."""
    data = await call.read_json(intake.config.max_body_bytes)
    body, ignored = await intake.decode(decoder, data)
    return body, Read(len(data), ignored)
