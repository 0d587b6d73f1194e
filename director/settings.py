"""Settings: read from the environment and `.env` once, at an entry point, and passed down."""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from director.errors import SettingsError

MAX_PAYLOAD_BYTES = 1 << 20
MAX_ARGUMENT_BYTES = 16 << 20
MAX_TASKS = 2000
MAX_DAYS = 36_500


_HARMLESS = re.compile(r"[\w.:/+-]*", re.ASCII)
"""What surely holds no password."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says; every field names its variable."""

    home: Path
    """`DIRECTOR_HOME`: the project's folder, absolute; default the current one."""
    host: str = "127.0.0.1"
    """`DIRECTOR_HOST`: the address the web process listens on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """`PORT`."""
    redis_url: Annotated[str, Meta(pattern="^(redis|rediss|unix)://")] | None = None
    """`DIRECTOR_REDIS_URL`: where state lives; empty means embedded mode (TinyDB)."""
    broker_uri: Annotated[str, Meta(pattern="^(redis|rediss|amqp|amqps|filesystem)://")] | None = None
    """`DIRECTOR_BROKER_URI`: what carries messages: RabbitMQ (`amqp://`, `amqps://`), files (`filesystem://`, or
    `filesystem:///a/folder`), or the same Redis, the default; that one alone serves as `DIRECTOR_REDIS_URL`."""
    prefix: str = "director:"
    """`DIRECTOR_PREFIX`: before every key in Redis."""
    token: str | None = None
    """`DIRECTOR_TOKEN`: an admin token for one-container deploys."""
    public_url: Annotated[str, Meta(pattern="^https?://.")] | None = None
    """`DIRECTOR_PUBLIC_URL`: how the outside reaches this service, without a trailing slash."""
    data_dir: Path
    """`DIRECTOR_DATA_DIR`: TinyDB's folder, absolute; default `.director` in `home`."""
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 2
    """`DIRECTOR_CONCURRENCY`: task runs executed at once by one worker."""
    pool: Literal["prefork", "threads", "solo"] = "prefork"
    """`DIRECTOR_POOL`: Celery's pool; embedded mode always uses threads."""
    run_ahead_s: Annotated[float, Meta(ge=0, le=60)] = 0.2
    """`DIRECTOR_RUN_AHEAD_SECONDS`: how long one message may go on with other task runs; 0 turns it off."""
    max_lost: Annotated[int, Meta(ge=1, le=1000)] = 3
    """`DIRECTOR_MAX_LOST`: losses of one task run after which it fails."""
    grace_s: Annotated[float, Meta(ge=0, le=86400)] = 25.0
    """`DIRECTOR_GRACE_SECONDS`: what running tasks get at SIGTERM."""
    max_result_bytes: Annotated[int, Meta(ge=64, le=64 << 20)] = 1 << 20
    """`DIRECTOR_MAX_RESULT_BYTES`: JSON bytes of one result."""
    retention_days: Annotated[float, Meta(ge=0, le=MAX_DAYS)] = 30.0
    """`DIRECTOR_RETENTION_DAYS`: how long finished runs are kept; 0: for ever."""
    retention_runs: Annotated[int, Meta(ge=-1)] = 0
    """`DIRECTOR_DEFAULT_RETENTION_OFFSET`: finished runs of each workflow that are kept; -1 or 0: all."""
    public_status: bool = False
    """`DIRECTOR_PUBLIC_STATUS`: `/status` and `/badge` need no token."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """`DIRECTOR_LOG_LEVEL`."""
    environ: Mapping[str, str] = {}
    """The environment over `.env`: where sources find their secrets."""
    warnings: tuple[str, ...] = ()
    """What looked wrong but does not stop the service, one sentence each."""

    def __repr__(self) -> str:
        """Leave secrets out."""
        return f"Settings(home={str(self.home)!r}, store={self.store_name!r})"

    @property
    def embedded(self) -> bool:
        """True when nothing is configured: TinyDB, an in-process broker and worker threads."""
        return self.redis_url is None

    @property
    def store_name(self) -> str:
        """Where state lives, for people: no password."""
        return hide_password(self.redis_url) if self.redis_url else str(self.data_dir)

    @property
    def broker_is_store(self) -> bool:
        """True when the store's Redis carries the messages too."""
        return not self.embedded and (self.broker_uri or "redis").startswith("redis")

    @property
    def broker_name(self) -> str:
        """What carries messages, for people: no password."""
        if self.embedded or self.broker_is_store:
            return "memory://" if self.embedded else self.store_name
        return hide_password(self.broker_uri or "")

    @property
    def local_url(self) -> str:
        """How a command reaches the service: the public address where there is one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return self.public_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run_url(self, run_id: str) -> str:
        """Return the address of a run: absolute when `DIRECTOR_PUBLIC_URL` is set, else a path."""
        return f"{self.public_url or ''}/runs/{run_id}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment and `.env`; without an argument the process's own, which takes over `.env`.

        Raises:
            SettingsError: every problem at once, one a line.
        """
        env = dict(os.environ if environ is None else environ)
        home = Path(env.get("DIRECTOR_HOME") or ".").expanduser().absolute()
        if not home.is_dir():
            raise SettingsError(f'DIRECTOR_HOME is "{home}", which is not a folder.')
        dotenv, slips = _read_dotenv(home / ".env")
        env = {**dotenv, **env}
        if environ is None:
            # Tasks read their own variables, and `config.X`, from the environment.
            os.environ.update(env)
        values, problems = _values(env)
        broker = values.get("broker_uri", "")
        if broker and "redis_url" not in values and not broker.startswith("redis"):
            problems.append(
                f'DIRECTOR_BROKER_URI is "{hide_password(broker)}" but DIRECTOR_REDIS_URL is not set; '
                "state needs a Redis: set DIRECTOR_REDIS_URL, or remove DIRECTOR_BROKER_URI."
            )
        elif broker.startswith("redis") and not _same_server(broker, values.setdefault("redis_url", broker)):
            problems.append(
                f'DIRECTOR_BROKER_URI is "{hide_password(broker)}", which is not the Redis of DIRECTOR_REDIS_URL. '
                "Remove it: that Redis carries messages too. Or set it to RabbitMQ (amqp://…)."
            )
        if problems:
            raise SettingsError("\n".join(problems))
        if "public_url" in values:
            values["public_url"] = values["public_url"].rstrip("/")
        values["prefix"] = values.get("prefix", "director").rstrip(":") + ":"
        data_dir = home / (env.get("DIRECTOR_DATA_DIR") or ".director")
        if broker == "filesystem://":
            values["broker_uri"] = f"filesystem://{data_dir / 'broker'}"
        return cls(home=home, data_dir=data_dir, environ=env, warnings=(*slips, *_typos(env)), **values)


_VARIABLES = {
    "host": ("DIRECTOR_HOST", "an address"),
    "port": ("PORT", "a number from 0 to 65535"),
    "redis_url": ("DIRECTOR_REDIS_URL", "a URL such as redis://localhost:6379/0"),
    "broker_uri": ("DIRECTOR_BROKER_URI", "a URL such as amqp://user:password@host/ or filesystem:///a/folder"),
    "prefix": ("DIRECTOR_PREFIX", "a text"),
    "token": ("DIRECTOR_TOKEN", "a text"),
    "public_url": ("DIRECTOR_PUBLIC_URL", "a URL such as https://host"),
    "concurrency": ("DIRECTOR_CONCURRENCY", "a number from 1 to 1000"),
    "pool": ("DIRECTOR_POOL", "prefork, threads or solo"),
    "run_ahead_s": ("DIRECTOR_RUN_AHEAD_SECONDS", "a number from 0 to 60"),
    "max_lost": ("DIRECTOR_MAX_LOST", "a number from 1 to 1000"),
    "grace_s": ("DIRECTOR_GRACE_SECONDS", "a number from 0 to 86400"),
    "max_result_bytes": ("DIRECTOR_MAX_RESULT_BYTES", "a number from 64 to 67108864"),
    "retention_days": ("DIRECTOR_RETENTION_DAYS", f"a number from 0 to {MAX_DAYS}"),
    "retention_runs": ("DIRECTOR_DEFAULT_RETENTION_OFFSET", "a whole number from -1"),
    "public_status": ("DIRECTOR_PUBLIC_STATUS", "true or false"),
    "log_level": ("DIRECTOR_LOG_LEVEL", "DEBUG, INFO, WARNING or ERROR"),
}
"""Field → its variable, and what is expected there."""


def _values(env: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that are set, and what is wrong with the others."""
    values: dict[str, Any] = {}
    problems = []
    types = get_type_hints(Settings, include_extras=True)
    for field, (variable, expected) in _VARIABLES.items():
        text = env.get(variable, "").strip()
        if not text:
            continue
        try:
            text = text.upper() if field == "log_level" else text
            values[field] = msgspec.convert(text, types[field], strict=False)
            if "URL" in expected and not _is_url(text):
                raise msgspec.ValidationError
        except msgspec.ValidationError:
            shown = text if _HARMLESS.fullmatch(text) else "(not shown)"
            problems.append(f'{variable} is "{shown}"; expected {expected}.')
    return values, problems


def _is_url(text: str) -> bool:
    """Return whether every client reads the same in a URL: host, port, a number for a database, nothing more."""
    try:
        parts = urlsplit(text)
        if not text.isascii() or not text.isprintable() or " " in text or parts.fragment or parts.port == 0:
            return False
        if parts.scheme.startswith("redis"):
            query = parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
            numbers = [parts.path.strip("/") or "0", *(value for _, value in query)]
            known = all(name == "db" for name, _ in query) and all(map(str.isdecimal, numbers))
            return known and bool(parts.hostname)
        if parts.scheme == "filesystem":
            return not parts.netloc and not parts.query
        return bool(parts.path if parts.scheme == "unix" else parts.hostname and not parts.query)
    except ValueError:
        return False


def _same_server(one: str, other: str) -> bool:
    """Return whether two URLs name the same database of one Redis."""
    places = []
    for url in map(urlsplit, (one, other)):
        database = url.path.strip("/") or dict(parse_qsl(url.query)).get("db", "0")
        places.append((url.scheme, url.hostname, url.port or 6379, database))
    return places[0] == places[1]


def hide_password(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read_dotenv(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return what a file sets, and a sentence for each line that sets nothing."""
    if not path.is_file():
        return {}, []
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}.") from exc
    slips = [
        f".env:{found.original.line}:1: is not NAME=value, so it sets nothing."
        for found in parse_stream(io.StringIO(text))
        if found.error or (found.key and found.value is None)
    ]
    # dotenv would log the same, without the file's name.
    logging.getLogger("dotenv.main").setLevel(logging.ERROR)
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None}, slips


# Names of celery-director that mean nothing here; accepted so that its projects start.
_OBSOLETE = ("DATABASE_URI", "DATABASE_POOL_RECYCLE", "RESULT_BACKEND_URI")
_OTHERS = "HOME DATA_DIR PARENT WEBHOOK_SECRET WORKFLOWS_PER_PAGE AUTH_ENABLED SENTRY_DSN REPO_LINK FLOWER_URL"


def _typos(env: Mapping[str, str]) -> tuple[str, ...]:
    """Name variables that look like a slip; other `DIRECTOR_X` are the project's own (`config.X`)."""
    known = {variable for variable, _ in _VARIABLES.values()} | {f"DIRECTOR_{name}" for name in _OTHERS.split()}
    found = []
    for name in sorted(env):
        if name.removeprefix("DIRECTOR_") in _OBSOLETE and name.startswith("DIRECTOR_"):
            found.append(f"{name} means nothing here and is ignored.")
        elif name.startswith("DIRECT") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.93)
            near = ["PORT"] if name == "DIRECTOR_PORT" else near
            found += [f"{name} is not a setting; did you mean {near[0]}?"] if near else []
    return tuple(found)
