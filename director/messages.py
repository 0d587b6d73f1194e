"""The bytes of a Celery message for one task run, in kombu's wire format, without importing kombu.

Format: Celery's message protocol 2 inside kombu's virtual-transport envelope (celery.app.amqp
`as_task_v2`, kombu.transport.virtual.base `prepare_message` and `_inplace_augment_message`).
A template is made once per plan; the script that pushes a message puts in what differs (`push` in common.lua).
"""

from __future__ import annotations

import base64
import json
from typing import Any

from director.models import Node

HEADER = "director"
"""Our header: `RUN:NUMBER AT FLAG`; AT is when it was queued, in ms; FLAG is 1 where it may run ahead."""

KILL_AFTER_S = 5.0
ID = "$ID$"
AT = "$AT$"
ARGUMENTS: list[Any] = [[], {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]
"""Args, kwargs and embedded messages: none."""
BODY = base64.b64encode(json.dumps(ARGUMENTS).encode()).decode()
PRIORITY_SEPARATOR = "\x06\x16"
PRIORITY_STEPS = (0, 3, 6, 9)


def queue_list(queue: str, priority: int) -> str:
    """Return the name of the Redis list that kombu reads for a queue and a priority.

    kombu splits a queue in four lists, of priorities 0, 3, 6 and 9; the first has the plain name.
    """
    step = max(step for step in PRIORITY_STEPS if step <= max(priority, 0))
    return f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue


def headers(node: Node, task_id: str = ID, at: str = AT) -> dict[str, Any]:
    """Return the message's headers for a node; `task_id` is `RUN:NUMBER`."""
    return {
        "lang": "py",
        "task": node.task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        # The sweep fails what is past its timeout; later, the pool ends the process that still executes it.
        "timelimit": [node.timeout_s and node.timeout_s + KILL_AFTER_S, node.soft_timeout_s],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "director",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        HEADER: f"{task_id} {at} {int(node.ahead)}",
    }


def template(node: Node) -> str:
    """Return the whole message as JSON, a format with `%s` where a message differs from the next.

    In the order of the JSON that is: id, root id, our header (id, ms), correlation id, delivery tag (id, ms).
    """
    text = json.dumps(
        {
            "body": BODY,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers(node),
            "properties": {
                "correlation_id": ID,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": node.queue},
                "priority": node.priority,
                "body_encoding": "base64",
                # kombu needs a new tag for each push; a task run is pushed once in a millisecond at most.
                "delivery_tag": f"{ID}:{AT}",
            },
        }
    )
    # A user's names may hold a percent sign.
    return text.replace("%", "%%").replace(ID, "%s").replace(AT, "%s")


def parse(header: object) -> tuple[str, int, bool] | None:
    """Return (run id, number, may run ahead) from our header, or None when it is not one."""
    if not isinstance(header, str):
        return None
    try:
        ref, _, flag = header.split(" ")
        run_id, _, number = ref.rpartition(":")
        return (run_id, int(number), flag == "1") if run_id else None
    except ValueError:
        return None
