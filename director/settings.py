"""Settings: read from the environment and `.env` once, at an entry point, and passed down."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec

from director.errors import SettingsError

N = TypeVar("N", int, float)

MAX_PAYLOAD_BYTES = 1 << 20
MAX_ARGUMENT_BYTES = 16 << 20
MAX_TASKS = 2000

# Names of celery-director that mean nothing here; accepted so that its projects start.
_OBSOLETE = frozenset({"DIRECTOR_DATABASE_URI", "DIRECTOR_DATABASE_POOL_RECYCLE", "DIRECTOR_RESULT_BACKEND_URI"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says; every field names its variable."""

    home: Path
    """`DIRECTOR_HOME`: the project's folder, absolute; default the current one."""
    host: str = "127.0.0.1"
    """`DIRECTOR_HOST`: the address the web process listens on."""
    port: int = 8000
    """`PORT`."""
    redis_url: str | None = None
    """`DIRECTOR_REDIS_URL`: where state lives; empty means embedded mode (TinyDB)."""
    broker_uri: str | None = None
    """`DIRECTOR_BROKER_URI`: what carries messages; default the same Redis, or memory when embedded."""
    prefix: str = "director:"
    """`DIRECTOR_PREFIX`: before every key in Redis."""
    token: str | None = None
    """`DIRECTOR_TOKEN`: an admin token for one-container deploys."""
    public_url: str | None = None
    """`DIRECTOR_PUBLIC_URL`: how the outside reaches this service, without a trailing slash."""
    data_dir: Path
    """`DIRECTOR_DATA_DIR`: TinyDB's folder, absolute; default `.director` in `home`."""
    concurrency: int = 2
    """`DIRECTOR_CONCURRENCY`: task runs executed at once by one worker."""
    pool: str = "prefork"
    """`DIRECTOR_POOL`: Celery's pool, prefork or threads; embedded mode always uses threads."""
    run_ahead_s: float = 0.2
    """`DIRECTOR_RUN_AHEAD_SECONDS`: how long one message may go on with other task runs; 0 turns it off."""
    max_lost: int = 3
    """`DIRECTOR_MAX_LOST`: losses of one task run after which it fails."""
    grace_s: float = 25.0
    """`DIRECTOR_GRACE_SECONDS`: what running tasks get at SIGTERM."""
    max_result_bytes: int = 1 << 20
    """`DIRECTOR_MAX_RESULT_BYTES`: JSON bytes of one result."""
    public_status: bool = False
    """`DIRECTOR_PUBLIC_STATUS`: `/status` and `/badge` need no token."""
    log_level: str = "INFO"
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
    def broker_is_store(self) -> bool:
        """True when scripts can queue messages themselves: the broker is the same Redis."""
        return self.redis_url is not None and self.broker_uri in (None, self.redis_url)

    @property
    def store_name(self) -> str:
        """Where state lives, for people: no password."""
        return hide_password(self.redis_url) if self.redis_url else str(self.data_dir)

    @property
    def broker_name(self) -> str:
        """What carries messages, for people: no password."""
        if self.embedded:
            return "memory://"
        return hide_password(self.broker_uri or self.redis_url or "")

    def run_url(self, run_id: str) -> str:
        """Return the address of a run: absolute when `DIRECTOR_PUBLIC_URL` is set, else a path."""
        return f"{self.public_url or ''}/runs/{run_id}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment and `.env`.

        Raises:
            SettingsError: every problem at once, one a line.
        """
        env = dict(os.environ if environ is None else environ)
        home = Path(env.get("DIRECTOR_HOME") or ".").expanduser().absolute()
        if not home.is_dir():
            raise SettingsError(f'DIRECTOR_HOME is "{home}", which is not a folder.')
        env = {**_read_dotenv(home / ".env"), **env}
        reader = _Reader(env)
        redis_url = reader.url("DIRECTOR_REDIS_URL", ("redis", "rediss", "unix"))
        broker = reader.url("DIRECTOR_BROKER_URI", ("redis", "rediss", "amqp", "amqps", "filesystem", "memory"))
        if broker and redis_url is None:
            if broker.startswith(("redis://", "rediss://")):
                redis_url = broker
            else:
                reader.problems.append(
                    f'DIRECTOR_BROKER_URI is "{hide_password(broker)}" but DIRECTOR_REDIS_URL is not set; '
                    "state needs a Redis: set DIRECTOR_REDIS_URL, or remove DIRECTOR_BROKER_URI."
                )
        settings = cls(
            home=home,
            host=env.get("DIRECTOR_HOST") or "127.0.0.1",
            port=reader.number("PORT", 8000, int, 0, 65535),
            redis_url=redis_url,
            broker_uri=broker,
            prefix=reader.prefix(),
            token=env.get("DIRECTOR_TOKEN") or None,
            public_url=(reader.url("DIRECTOR_PUBLIC_URL", ("http", "https")) or "").rstrip("/") or None,
            data_dir=home / (env.get("DIRECTOR_DATA_DIR") or ".director"),
            concurrency=reader.number("DIRECTOR_CONCURRENCY", 2, int, 1, 1000),
            pool=reader.choice("DIRECTOR_POOL", "prefork", ("prefork", "threads", "solo")),
            run_ahead_s=reader.number("DIRECTOR_RUN_AHEAD_SECONDS", 0.2, float, 0, 60),
            max_lost=reader.number("DIRECTOR_MAX_LOST", 3, int, 1, 1000),
            grace_s=reader.number("DIRECTOR_GRACE_SECONDS", 25.0, float, 0, 86400),
            max_result_bytes=reader.number("DIRECTOR_MAX_RESULT_BYTES", 1 << 20, int, 64, 64 << 20),
            public_status=env.get("DIRECTOR_PUBLIC_STATUS", "").lower() in ("1", "true", "yes"),
            log_level=reader.choice("DIRECTOR_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
            environ=env,
            warnings=tuple(_typos(env)),
        )
        if reader.problems:
            raise SettingsError("\n".join(reader.problems))
        return settings


class _Reader:
    """Reads typed values and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.problems: list[str] = []

    def number(self, name: str, default: N, kind: Callable[[str], N], low: float, high: float) -> N:
        text = self.env.get(name)
        if not text:
            return default
        try:
            value: N | None = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            self.problems.append(f'{name} is "{text}"; expected a number from {low} to {high}.')
            return default
        return value

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        text = self.env.get(name) or default
        for word in allowed:
            if word.lower() == text.lower():
                return word
        self.problems.append(f'{name} is "{text}"; expected one of {", ".join(allowed)}.')
        return default

    def url(self, name: str, schemes: tuple[str, ...]) -> str | None:
        text = self.env.get(name)
        if not text:
            return None
        if text.partition("://")[0] not in schemes or "://" not in text:
            example = "redis://localhost:6379/0" if "redis" in schemes else f"{schemes[0]}://host"
            self.problems.append(f'{name} is "{hide_password(text)}"; expected a URL such as {example}.')
            return None
        return text

    def prefix(self) -> str:
        text = self.env.get("DIRECTOR_PREFIX") or "director:"
        return text if text.endswith(":") else text + ":"


def hide_password(url: str) -> str:
    """Return the URL with its password replaced by `***`."""
    try:
        parts = urlsplit(url)
        if not parts.password:
            return url
        user, _, host = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))
    except ValueError:
        return "(not a URL)"


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}.") from exc


_KNOWN = (
    "HOME HOST REDIS_URL BROKER_URI PREFIX TOKEN PUBLIC_URL DATA_DIR CONCURRENCY POOL RUN_AHEAD_SECONDS "
    "MAX_LOST GRACE_SECONDS MAX_RESULT_BYTES PUBLIC_STATUS LOG_LEVEL WEBHOOK_SECRET RETENTION_DAYS "
    "PARENT WORKFLOWS_PER_PAGE DEFAULT_RETENTION_OFFSET AUTH_ENABLED SENTRY_DSN REPO_LINK FLOWER_URL"
)
KNOWN = frozenset(f"DIRECTOR_{name}" for name in _KNOWN.split())


def _typos(env: Mapping[str, str]) -> list[str]:
    """Name variables that look like a slip; other `DIRECTOR_X` are the project's own (`config.X`)."""
    found = []
    for name in sorted(env):
        if name in _OBSOLETE:
            found.append(f"{name} means nothing here and is ignored.")
        elif name.startswith("DIRECTOR") and name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.93)
            if near:
                found.append(f"{name} is not a setting; did you mean {near[0]}?")
    return found
