"""Celery as it is usually run: its own chain and chord, results ignored where it can."""

from __future__ import annotations

import os

import redis
from celery import Celery

URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("rival", broker=URL, backend=URL, set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
)
counter = redis.Redis.from_url(URL)


@app.task
def noop(*_):
    return None


@app.task
def last(*_):
    counter.rpush("done", 1)


@app.task(ignore_result=False)
def member(*_):
    return 1


@app.task
def join(results):
    assert len(results) == 100
    counter.rpush("done", 1)
