"""Pure. What a newcomer reads: how to talk to what runs, and how to stop it."""

import shlex
from pathlib import Path

import msgspec

from bus.config import Config
from bus.version import VERSION
from components.supervisor.running import RunningSystem, option_for

QUESTION = "What is Busway?"
AUTHORIZATION = '-H "authorization: Bearer $BUSWAY_API_KEY" '


def ready_banner(system: RunningSystem, model: str, took_s: float, state_dir: Path) -> str:
    """Return the lines that are shown once the system serves; `model` is empty where only keys may ask for it."""
    question = {"role": "user", "content": QUESTION}
    body = {"model": model or "MODEL", "messages": [question], "stream": True}
    # Clients trust what the machine trusts: our own authority must be named to them.
    trust = shlex.quote(system.tls_ca) if system.tls_ca else ""
    curl = f"curl -N {f'--cacert {trust} ' if trust else ''}{system.url}/v1/chat/completions "
    curl += f"{'' if model else AUTHORIZATION}-H 'content-type: application/json' -d "
    environment = f"{f'SSL_CERT_FILE={trust} ' if trust else ''}OPENAI_BASE_URL={system.url}/v1 "
    environment += f"OPENAI_API_KEY={'none' if model else '$BUSWAY_API_KEY'}"
    key = f"  key         busway keys add NAME{option_for(state_dir)}   then: export BUSWAY_API_KEY=sk-busway-..."
    more = [p.pid for p in system.processes if p.role == "frontend"][1:]
    urls = f"{system.url}/v1" + (f"   (shared by {len(more) + 1} frontends)" if more else "")
    option = option_for(state_dir)
    return "\n".join(
        [
            f"ready in {took_s:.1f} s: {model or 'clients need an API key'}",
            "",
            *([] if model else [key]),
            f"  URL         {urls}",
            f"  talk        busway chat{option}          or once: busway chat{option} {shlex.quote(QUESTION)}",
            f"  curl        {curl}{shlex.quote(msgspec.json.encode(body).decode())}",
            f"  any client  export {environment}",
            f"  look        busway tap '{system.namespace}.>'{option}   busway doctor{option}   {system.url}/docs",
            *([f"  bus         {system.nats_url}"] if any(p.role == "nats" for p in system.processes) else []),
            *(["  secure      each process has its own credentials; others: busway keys --help"] if trust else []),
            f"  stop        Ctrl-C, or: busway down{option}",
            "",
        ]
    )


def start_line(config: Config) -> str:
    """Return the first line of `busway up`."""
    worker, up = config.worker, config.up
    workers = f"{up.workers} worker{'s' if up.workers > 1 else ''} ({worker.engine}, {worker.model})"
    if up.routers:
        workers += f", {up.routers} router{'s' if up.routers > 1 else ''}"
    frontends = f"{up.frontends} frontend{'s' if up.frontends > 1 else ''}"
    return f"busway {VERSION}: starting {workers} and {frontends}; logs in {config.state_dir}/logs"
