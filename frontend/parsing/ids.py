"""I/O. Random characters for the ids of tool calls."""

import random
import string

_CHARACTERS = string.ascii_letters + string.digits


def random_characters(count: int) -> str:
    """Return so many letters and digits; unlikely to repeat, not secret."""
    return "".join(random.choices(_CHARACTERS, k=count))
