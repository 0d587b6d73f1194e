"""Flatten a workflow into a plan: task runs in YAML order, and joins where two groups meet.

A chain hands the *ends* of one member to the next. After a group these are several, so the next
member gets their results as one list, in YAML order. When both sides are several, a join stands
between them, so that a plan has N + M edges there and not N x M.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal

import msgspec

from director.models import Call, Chain, Element, Group, Node, Plan, TaskOptions, Workflow

Shape = Literal["none", "one", "list"]
DEFAULT_QUEUE = "celery"


def build(workflow: Workflow, options: Mapping[str, TaskOptions] | None = None) -> Plan:
    """Return the plan of a checked workflow; a task whose decorator is not in `options` never runs ahead."""
    return _Builder(workflow, options or {}).plan()


def downstream(plan: Plan, roots: set[int]) -> set[int]:
    """Return `roots` and every node, joins too, that depends on one of them."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting.extend(plan.nodes[number].children)
    return found


def inputs(plan: Plan, number: int) -> tuple[int, ...]:
    """Return the task runs whose results a task run gets: its parents, seen through joins."""
    parents = plan.nodes[number].parents
    if len(parents) == 1 and not plan.nodes[parents[0]].task:
        return plan.nodes[parents[0]].parents
    return parents


def same_shape(one: Plan, other: Plan) -> bool:
    """Return whether keys and edges agree, so that a run may move from one plan to the other."""
    return [(n.key, n.parents) for n in one.nodes] == [(n.key, n.parents) for n in other.nodes]


class _Builder:
    def __init__(self, workflow: Workflow, options: Mapping[str, TaskOptions]) -> None:
        self.workflow = workflow
        self.options = options
        self.nodes: list[Node] = []
        self.joins: list[tuple[int, ...]] = []
        self.keys: set[str] = set()

    def plan(self) -> Plan:
        self.place(Chain(name="", members=self.workflow.tasks), (), "none")
        total = len(self.nodes)
        # While placing, joins are numbered -1, -2, …; now that the count is known they follow the task runs.
        joins = [Node(key=f"+{number}", task="", parents=line) for number, line in enumerate(self.joins, 1)]
        nodes = self.nodes + joins
        parents = [tuple(p if p >= 0 else total - p - 1 for p in node.parents) for node in nodes]
        children: list[list[int]] = [[] for _ in nodes]
        for number, line in enumerate(parents):
            for parent in line:
                children[parent].append(number)
        edges = zip(nodes, parents, map(tuple, children), strict=True)
        replace = msgspec.structs.replace
        plan = Plan(
            workflow=self.workflow.name,
            nodes=tuple(replace(node, parents=above, children=below) for node, above, below in edges),
            total=total,
            success_hook=self.hook(self.workflow.hooks.success),
            failure_hook=self.hook(self.workflow.hooks.failure),
        )
        return replace(plan, digest=sha256(msgspec.json.encode(plan)).hexdigest()[:16])

    def hook(self, name: str | None) -> Node | None:
        return self.node(Call(name=name), name, (), "none") if name else None

    def place(self, element: Element, before: tuple[int, ...], shape: Shape) -> tuple[tuple[int, ...], Shape]:
        """Add an element after the nodes `before`; return its ends and what they hand on."""
        if isinstance(element, Call):
            number = len(self.nodes)
            self.nodes.append(self.node(element, self.key(element.name), before, shape))
            return (number,), "one"
        if isinstance(element, Chain):
            for member in element.members:
                if len(before) > 1 and isinstance(member, Group) and _firsts(member) > 1:
                    self.joins.append(before)
                    before = (-len(self.joins),)
                before, shape = self.place(member, before, shape)
            return before, shape
        ends: list[int] = []
        for member in element.members:
            ends.extend(self.place(member, before, shape)[0])
        return tuple(ends), "list"

    def key(self, name: str) -> str:
        key, count = name, 1
        while key in self.keys:
            count += 1
            key = f"{name}.{count}"
        self.keys.add(key)
        return key

    def node(self, call: Call, key: str, parents: tuple[int, ...], shape: Shape) -> Node:
        known, of = self.options.get(call.name), self.workflow
        option = known or TaskOptions()
        timeout_s = call.timeout or option.time_limit
        return Node(
            key=key,
            task=call.name,
            parents=parents,
            shape=shape,
            queue=call.queue or of.queues.get(call.name) or of.queue or option.queue or DEFAULT_QUEUE,
            priority=option.priority or 0,
            retries=call.retries,
            backoff=call.backoff,
            timeout_s=timeout_s,
            soft_timeout_s=option.soft_time_limit,
            ahead=known is not None and not option.limited and timeout_s is None,
        )


def _firsts(element: Element) -> int:
    """Return how many task runs of an element wait for what comes before it."""
    if isinstance(element, Call):
        return 1
    if isinstance(element, Chain):
        return _firsts(element.members[0])
    return sum(_firsts(member) for member in element.members)
