"""director: YAML workflows from signed webhooks, curl one-liners and schedules, on Celery.

To follow a webhook to a finished run, read `web/webhooks.py` (verify, accept), `engine.py` (start),
`store/redis.py` with `store/lua/` (write and queue), then `execution.py` (begin, call, finish).

In `tasks/`:

    from director import task

    @task(name="EXTRACT")
    def extract(previous, payload, **kwargs):
        return {"rows": 3}
"""

from director.registry import Canceled, check_canceled, config, task

__version__ = "0.1.0"
__all__ = ["Canceled", "__version__", "check_canceled", "config", "task"]
