"""The PyTorch engine. Importing the package does not import torch: its scheduling parts are pure and used elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bus.config import Config

if TYPE_CHECKING:
    from components.engines.torch.driver import TorchDriver


def load_engine(config: Config, directory: Path, *, model: str) -> TorchDriver:
    """Load the model in `directory`, served as `model`; blocks. Raises `BadConfig` for what cannot work."""
    from components.engines.torch import load

    return load.load_engine(config, directory, model=model)
