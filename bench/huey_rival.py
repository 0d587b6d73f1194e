"""huey with its pipelines."""

from __future__ import annotations

import os

import redis
from huey import RedisHuey

URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
huey = RedisHuey("rival", url=URL)
counter = redis.Redis.from_url(URL)


@huey.task()
def noop(*_):
    return 1


@huey.task()
def last(*_):
    counter.rpush("done", 1)
