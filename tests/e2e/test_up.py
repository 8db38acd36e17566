"""`busway up` from its first line to its last: serves, mends itself, tells what is wrong, and leaves nothing behind."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest

SERVED_AGAIN_S = 2.0
"""How much longer than a whole start of the system it may take until one dead process of it is made good."""
QUESTION: Any = [{"role": "user", "content": "What is Busway?"}]


class System:
    """A system that `busway up` started, as its state file tells it."""

    def __init__(self, shell: Any, up: subprocess.Popen[str]) -> None:
        self.shell = shell
        self.up = up
        self.model = ""
        self.started_s = 0.0

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.shell.directory / ".busway" / "up.json").read_text())
        return state

    def pids(self, role: str = "") -> list[int]:
        return [process["pid"] for process in self.read()["processes"] if role in ("", process["role"])]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.read()['url']}/v1", api_key="none", max_retries=0, timeout=120.0)

    def ask(self, **options: Any) -> str:
        """Return a streamed answer to one short request."""
        with self.client() as client:
            options = {"max_tokens": 8, "temperature": 0.0} | options
            with client.chat.completions.create(model=self.model, messages=QUESTION, stream=True, **options) as stream:
                text: str = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
                return text

    def try_to_ask(self) -> bool:
        try:
            return bool(self.ask())
        except openai.APIError:
            return False

    def log(self, name: str) -> str:
        path = self.shell.directory / ".busway" / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def everything(self) -> str:
        names = ("nats", "worker-0", "frontend-0")
        return self.shell.output() + "".join(f"--- {name}\n{self.log(name)[-2000:]}" for name in names)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_system(shell: Any, wait_for: Callable[..., float], *words: str) -> System:
    system = System(shell, shell.start("up", "--port", "0", "--set", "up.nats_port=0", *words))
    is_over = lambda: "ready in" in shell.output() or system.up.poll() is not None  # noqa: E731
    system.started_s = wait_for(is_over, explain=shell.output)
    assert system.up.poll() is None, system.everything()
    with system.client() as client:
        system.model = client.models.list().data[0].id
    return system


@pytest.fixture(scope="module")
def mock(shared_shell: Any, wait_for: Callable[..., float]) -> System:
    """A running system with the mock engine."""
    return start_system(shared_shell, wait_for, "--engine", "mock", "--set", "worker.served_name=mock")


def test_the_first_screen_tells_how_to_go_on(mock: System) -> None:
    output = mock.shell.first_output()
    for text in ("ready in", "OPENAI_BASE_URL=", "busway chat", "curl -N", "Ctrl-C", mock.read()["url"]):
        assert text in output


def test_a_client_library_streams_an_answer(mock: System) -> None:
    assert mock.model == "mock"
    assert mock.ask(max_tokens=64)


def test_chat_answers_once_with_its_figures(mock: System) -> None:
    done = mock.shell.run("chat", "hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "first token" in done.stderr
    assert "tokens/s" in done.stderr


def test_chat_with_a_wrong_model_names_those_that_are_served(mock: System) -> None:
    done = mock.shell.run("chat", "--model", "mokc", "hello")
    assert done.returncode == 1
    assert "error: model 'mokc' not found; served: mock" in done.stderr


def test_tap_shows_tokens_decoded_and_no_prompt(mock: System, wait_for: Callable[..., float]) -> None:
    out = f"{mock.read()['namespace']}.>"
    tap = mock.shell.start("tap", out)
    wait_for(lambda: "WorkerLoad" in mock.shell.output(), explain=mock.shell.output)
    mock.ask()
    wait_for(lambda: "UsageBatch" in mock.shell.output(), explain=mock.shell.output)
    tap.send_signal(signal.SIGINT)
    assert tap.wait(60) == 130
    output = mock.shell.output()
    assert "StepBatch worker=w-" in output
    assert "tokens=u32[" in output
    assert "GenerateJob request_id=" in output
    assert "malformed" not in output
    assert "What is Busway?" not in output


def test_tap_into_a_pipe_that_closes_ends_quietly(mock: System) -> None:
    command = "python -P -m components.cli tap | head -n 1"
    environment = mock.shell.environment() | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=mock.shell.directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert "WorkerLoad" in done.stdout
    assert done.stderr == ""


def test_doctor_finds_all_well(mock: System) -> None:
    done = mock.shell.run("doctor")
    assert done.returncode == 0, done.stdout
    assert "all well" in done.stdout
    assert "serves mock" in done.stdout
    assert "JetStream is on" in done.stdout
    assert "fail" not in done.stdout


def test_a_second_system_in_the_same_place_is_refused(mock: System) -> None:
    done = mock.shell.run("up")
    assert done.returncode == 1
    assert mock.read()["url"] in done.stderr
    assert "busway down" in done.stderr


def test_the_worked_example_counts_what_was_asked(mock: System, wait_for: Callable[..., float]) -> None:
    meter = mock.shell.start("run", "components.meter:UsageMeter")
    tap = ("tap", "$KV.*.usage.>", "--json", "--count", "1")
    wait_for(lambda: "component.started" in mock.shell.output(), explain=mock.shell.output)
    mock.shell.start(*tap)
    wait_for(lambda: mock.try_to_ask() and "num_requests" in mock.shell.output(), explain=mock.shell.output)
    assert json.loads(mock.shell.output())["message"]["tenant"] == "default"
    meter.send_signal(signal.SIGTERM)
    assert meter.wait(60) == 0


@pytest.mark.parametrize("role", ["worker", "nats", "frontend"])
def test_a_killed_process_is_served_again(mock: System, role: str, wait_for: Callable[..., float]) -> None:
    wait_for(mock.try_to_ask)
    (killed,) = mock.pids(role)
    os.kill(killed, signal.SIGKILL)
    took_s = wait_for(mock.try_to_ask, explain=mock.everything)
    assert took_s < mock.started_s + SERVED_AGAIN_S, mock.everything()
    wait_for(lambda: mock.pids(role) not in ([], [killed]))


def test_a_process_that_keeps_dying_is_told_with_its_log(mock: System, wait_for: Callable[..., float]) -> None:
    killed: list[int] = []

    def is_back() -> bool:
        return bool(set(mock.pids("worker")) - set(killed))

    for _ in range(3):
        wait_for(is_back, explain=mock.everything)
        killed += mock.pids("worker")
        os.kill(killed[-1], signal.SIGKILL)
    wait_for(lambda: "keeps doing so; log: " in mock.shell.first_output(), explain=mock.shell.first_output)
    wait_for(mock.try_to_ask, explain=mock.everything)


def test_down_stops_everything(mock: System) -> None:
    pids = [*mock.pids(), mock.up.pid]
    done = mock.shell.run("down")
    assert done.returncode == 0, done.stderr
    assert mock.up.wait(60) == 0
    assert [pid for pid in pids if is_alive(pid)] == []
    assert not (mock.shell.directory / ".busway" / "up.json").exists()
    assert mock.shell.run("down").stdout.startswith("nothing runs")


def test_a_restarted_system_keeps_nothing_that_is_in_its_way(shell: Any, wait_for: Callable[..., float]) -> None:
    for _ in range(2):
        system = start_system(shell, wait_for, "--engine", "mock", "--workers", "2", "--frontends", "2")
        assert (len(system.pids("worker")), len(system.pids("frontend"))) == (2, 2)
        assert system.ask()
        pids = system.pids()
        system.up.send_signal(signal.SIGINT)
        assert system.up.wait(60) == 0, system.everything()
        assert [pid for pid in pids if is_alive(pid)] == []


def test_a_second_ctrl_c_does_not_wait_for_what_runs(shell: Any, wait_for: Callable[..., float]) -> None:
    slow = ("--engine", "mock", "--set", "mock.step_base_s=0.05", "--set", "worker.grace_s=600")
    system = start_system(shell, wait_for, *slow)
    pids = system.pids()
    with system.client() as client:
        stream = client.chat.completions.create(
            model=system.model, messages=QUESTION, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        system.up.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping" in shell.output(), explain=shell.output)
        assert system.up.poll() is None
        system.up.send_signal(signal.SIGINT)
        assert system.up.wait(60) is not None
        stream.close()
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


def choices_of(system: System, disturb: Callable[[], None]) -> dict[int, tuple[str, int, str | None]]:
    """Stream two choices with log-probabilities; return text, number of those, and ending of each."""
    found: dict[int, tuple[str, int, str | None]] = {}
    with (
        system.client() as client,
        client.chat.completions.create(
            model=system.model,
            messages=QUESTION,
            n=2,
            seed=5,
            max_tokens=400,
            logprobs=True,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream,
    ):
        for number, chunk in enumerate(stream):
            if number == 8:
                disturb()
            for choice in chunk.choices:
                text, count, _ = found.get(choice.index, ("", 0, None))
                told = choice.logprobs.content if choice.logprobs else None
                text += choice.delta.content or ""
                found[choice.index] = (text, count + len(told or ()), choice.finish_reason)
    return found


def test_the_builtin_model_answers_and_a_spare_takes_over(shell: Any, wait_for: Callable[..., float]) -> None:
    system = start_system(shell, wait_for)
    answer = system.ask(max_tokens=40)
    assert answer.startswith("Busway is a system that serves large language models"), system.everything()
    undisturbed = choices_of(system, lambda: None)
    for number in itertools.count(1):
        wait_for(lambda n=number: system.log("spare").count("spare.waiting") == n, explain=system.everything)
        (worker,), (spare,) = system.pids("worker"), system.pids("spare")
        assert choices_of(system, lambda pid=worker: os.kill(pid, signal.SIGKILL)) == undisturbed, system.everything()
        took_s = wait_for(system.try_to_ask, explain=system.everything)
        assert took_s < system.started_s + SERVED_AGAIN_S, system.everything()
        assert system.pids("worker") == [spare]
        if "request.retried" in system.log("frontend-0"):
            break  # or else all was said before the worker was killed


def test_children_die_with_a_killed_supervisor(shell: Any, wait_for: Callable[..., float]) -> None:
    system = start_system(shell, wait_for, "--engine", "mock")
    pids = system.pids()
    system.up.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    again = start_system(shell, wait_for, "--engine", "mock")
    assert again.ask()


def test_a_taken_port_is_named_with_the_flag(shell: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = shell.run("up", "--port", str(port))
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert "busway up --port" in done.stderr


def test_a_model_that_is_not_there_ends_up_at_once_with_the_reason(shell: Any) -> None:
    done = shell.run("up", "--model", "/no/such/model", "--port", "0", "--set", "up.nats_port=0", "--engine", "mock")
    assert done.returncode == 1
    assert "/no/such/model" in done.stderr
    assert "worker-0 ended" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tells_what_to_mend(shell: Any) -> None:
    done = shell.run("doctor", "--set", "worker.model=/no/such/model")
    assert done.returncode == 1
    assert "fail  model /no/such/model lacks config.json" in done.stdout
    assert "mend: " in done.stdout
