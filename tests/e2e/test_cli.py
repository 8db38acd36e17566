"""The command line as a person meets it first."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_version_and_help_import_nothing_that_is_slow() -> None:
    code = (
        "import sys; from components.cli import main; main(['--version']); main(['--help']);"
        "slow = ('nats', 'uvicorn', 'torch', 'msgspec', 'anyio', 'structlog', 'uvloop');"
        "print(*(name for name in slow if name in sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.startswith("busway 0.")
    assert output.splitlines()[-1] == ""
