"""The configurations that come with Busway load, and the first one tells the defaults."""

from pathlib import Path

import pytest

from bus.config import Config, load_config
from components.cli.config_keys import explain_keys

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_loads(path: Path) -> None:
    load_config(path.read_text(), source=path.name)


def test_laptop_spells_the_defaults_out_with_their_comments() -> None:
    text = next(path for path in CONFIGS if path.name == "laptop.toml").read_text()
    assert load_config(text) == Config(), "write it anew: busway config > configs/laptop.toml"
    for key, comment in explain_keys().items():
        assert f"{key.rpartition('.')[2]} = " in text or f"[{key}]" in text
        assert all(f"# {line}" in text for line in comment.splitlines())
