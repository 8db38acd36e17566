"""An engine whose packages are not installed is a matter of configuration, and said so."""

from pathlib import Path

import pytest

from bus.config import Config
from bus.errors import BadConfig
from components.worker import service
from components.worker.model import read_model


def test_a_missing_package_is_named_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_without_packages.py").write_text("import no_such_package.inside")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(service.ENGINES, "torch", "engine_without_packages")
    config = Config()
    with pytest.raises(BadConfig, match=r"needs the package 'no_such_package'.*pip install 'busway\[torch\]'.*mock"):
        service.load_engine(config, read_model(config.worker))


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(service.ENGINES, "torch", "components.engines.no_such_engine")
    config = Config()
    with pytest.raises(ModuleNotFoundError):
        service.load_engine(config, read_model(config.worker))
