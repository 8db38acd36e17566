"""What our code never does, whatever comes over a wire: unpickle, evaluate, or hand text to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "components", "frontend", "kv_events", "offload", "planner")
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load"}
OPTIONS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                yield ast.unparse(node.func)
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in OPTIONS:
                    yield f"{keyword.arg}={value}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_code_runs_what_it_was_sent(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := list(offences(path.read_text())))} == {}


def test_the_scan_finds_what_it_looks_for():
    source = (
        "import pickle.x\nfrom dill import loads\neval('1')\nrun('x', shell=True)\ntorch.load(f, weights_only=False)"
    )
    assert sorted(offences(source)) == ["dill", "eval", "pickle.x", "shell=True", "torch.load", "weights_only=False"]
