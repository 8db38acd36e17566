"""A configuration written as TOML reads back as it was."""

from hypothesis import given
from hypothesis import strategies as st

from bus.config import BusConfig, Config, WorkerConfig, load_config
from bus.toml import render_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = TEXT | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = PLAIN | st.lists(TEXT, max_size=3) | st.dictionaries(TEXT, PLAIN, max_size=3)


@given(TEXT, TEXT, st.dictionaries(TEXT, VALUES, max_size=3))
def test_round_trip(url: str, model: str, component: dict[str, object]) -> None:
    config = Config(bus=BusConfig(url=url), worker=WorkerConfig(model=model, roles=("prefill",)), component=component)
    assert load_config(render_toml(config)) == config


def test_comments_stand_above_their_key_and_section() -> None:
    text = render_toml(Config(), {"namespace": "first of\nall subjects", "bus": "How to reach it", "bus.url": "where"})
    assert text.startswith('# first of\n# all subjects\nnamespace = "busway"\n')
    assert '\n# How to reach it\n[bus]\n# where\nurl = "nats://127.0.0.1:4222"\n' in text
    assert load_config(text) == Config()
