"""A bare Litestar application: one route with an HMAC check and one Redis script call, and trivial ones."""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid

import uvicorn
from litestar import Litestar, Request, Response, get, post
from redis.asyncio import Redis

SECRET = os.environ.get("GITHUB_WEBHOOK_SECRET", "secret").encode()
SCRIPT = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', 604800) then return 0 end
redis.call('HSET', KEYS[2], 'w', 'bench', 's', 'q', 'c', ARGV[2], 'p', 'plan', 'n', 1, 'o', 0)
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
redis.call('LPUSH', KEYS[4], ARGV[3])
return 1
"""
MESSAGE = "m" * 700
redis = Redis.from_url(os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0"))
script = redis.register_script(SCRIPT)


@post("/hooks/github", status_code=202)
async def hook(request: Request) -> dict[str, object]:
    """Verify, store, answer."""
    body = await request.body()
    given = request.headers.get("x-hub-signature-256", "")
    right = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(given.encode(), right.encode()):
        return Response({"error": "signature"}, status_code=401)
    delivery = request.headers["x-github-delivery"]
    run_id = str(uuid.uuid4())
    new = await script(
        keys=[f"seen:{delivery}", f"run:{run_id}", "runs", "queue"], args=[run_id, "1700000000000", MESSAGE]
    )
    return {"delivery": delivery, "runs": [{"id": run_id}], "duplicate": not new}


@get("/health/live")
async def live() -> dict[str, str]:
    """Answer always."""
    return {"status": "live"}


def trivial(number: int):
    """Return a route that does nothing."""

    @get(f"/route{number}/{{name:str}}", name=f"route{number}")
    async def handler(name: str, limit: int = 10) -> dict[str, str]:
        return {"name": name}

    return handler


app = Litestar([hook, live, *(trivial(number) for number in range(18))], logging_config=None)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False, log_config=None)
