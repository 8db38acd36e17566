"""The built-in model ``busway-tiny``: a toy to talk to in a fresh clone. See ``README.md`` beside this file."""

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "busway-tiny"
MODEL_DIR: Final = Path(__file__).parent / "model"
