"""Workflow files: what is read, what is refused and where, and what stays in service after a change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from director import triggers, yamltree
from director.definitions import Definitions, check_payload, load
from director.errors import DefinitionError, InvalidPayload, NotFound
from director.models import Call, Chain, Group, Project, Retention, Trigger, Workflow

REPOSITORY = Path(__file__).parent.parent
TASKS = dict.fromkeys(("EXTRACT", "CLEAN", "LOAD", "ALERT", "NOTIFY", "NO", "123"), "tasks/etl.py")
FILE = "workflows/a.yml"


def write(home: Path, text: str | bytes, file: str = FILE) -> Path:
    path = home / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(home: Path, text: str | bytes, **options: Any) -> Project:
    write(home, text)
    return load(home, **options)


def problems(project: Project) -> list[str]:
    return [str(problem).removeprefix(FILE + ":") for problem in project.problems]


# --- what is read ---------------------------------------------------------------------------------

EVERYTHING = """
x-slow: &slow {timeout: 60, retries: 3}
example.ETL:
  description: Nightly load
  tasks:
    - EXTRACT
    - SPREAD:
        type: group
        tasks:
          - CLEAN
          - PAIR: {type: chain, tasks: [SPLIT, MERGE]}
    - TRANSFORM: {queue: heavy, <<: *slow, backoff: 0.5}
    - LOAD
  queue: {default: etl, customs: {LOAD: db}}
  schema: {type: object}
  payload: {dry_run: false, at: 12:30, day: 2024-01-01, on: off}
  hooks: {success: NOTIFY, failure: ALERT}
  enabled: false
  periodic: {crontab: "0 3 * * *", timezone: Europe/Paris, catchup: all, overlap: skip, payload: {day: 1}}
  retention: {days: 7, runs: 1000}
  triggers:
    - source: github
      event: [push, pull_request.closed]
      when: ref == 'refs/heads/main' && !deleted
      payload: {sha: after}
    - {source: github, payload: body}
    - {source: github, relaunch: latest}
    - {source: github, enabled: false}
sources:
  github: {secret: $GITHUB_WEBHOOK_SECRET}
  billing: {scheme: stripe, secret: [$STRIPE_SECRET, "${STRIPE_OLD}"], tolerance: 300}
"""


def test_everything_that_a_workflow_can_say(tmp_path: Path) -> None:
    project = read(tmp_path, EVERYTHING)
    assert problems(project) == []
    workflow = project.workflows["example.ETL"]
    extract, spread, transform, _ = workflow.tasks
    assert isinstance(extract, Call)
    assert isinstance(spread, Group)
    assert isinstance(spread.members[1], Chain)
    assert isinstance(transform, Call)
    assert (transform.queue, transform.retries, transform.backoff, transform.timeout) == (
        "heavy",
        3,
        0.5,
        60.0,
    )
    assert (workflow.queue, workflow.queues) == ("etl", {"LOAD": "db"})
    assert workflow.payload == {"dry_run": False, "at": "12:30", "day": "2024-01-01", "on": False}
    assert (workflow.hooks.success, workflow.hooks.failure) == ("NOTIFY", "ALERT")
    assert (workflow.enabled, workflow.file, workflow.line) == (False, FILE, 3)
    assert workflow.triggers == (
        Trigger(
            source="github",
            events=("push", "pull_request.closed"),
            when="ref == 'refs/heads/main' && !deleted",
            payload={"sha": "after"},
        ),
        Trigger(source="github", payload="body"),
        Trigger(source="github", relaunch="latest"),
        Trigger(source="github", enabled=False),
    )
    assert project.sources["github"].scheme == "github"
    assert project.sources["billing"].secrets == ("STRIPE_SECRET", "STRIPE_OLD")
    assert project.sources["billing"].scheme == {"scheme": "stripe", "tolerance": 300}


def test_a_workflow_is_json_that_nests_as_the_yaml_does(tmp_path: Path) -> None:
    shown = json.loads(msgspec.json.encode(read(tmp_path, EVERYTHING).workflows["example.ETL"]))
    assert shown["tasks"] == [
        {"task": "EXTRACT"},
        {
            "group": "SPREAD",
            "tasks": [{"task": "CLEAN"}, {"chain": "PAIR", "tasks": [{"task": "SPLIT"}, {"task": "MERGE"}]}],
        },
        {"task": "TRANSFORM", "queue": "heavy", "retries": 3, "backoff": 0.5, "timeout": 60.0},
        {"task": "LOAD"},
    ]
    assert (shown["queue"], shown["queues"]) == ("etl", {"LOAD": "db"})
    second = {"source": "github", "events": [], "when": None, "payload": "body", "relaunch": None, "enabled": True}
    assert shown["triggers"][1] == second


def test_names_are_literal_texts(tmp_path: Path) -> None:
    """YAML 1.1 takes NO for false and 123 for a number; here both are names."""
    project = read(tmp_path, "on:\n  tasks: [NO, 123]\n  hooks: {failure: NO}\n", tasks=TASKS)
    assert problems(project) == []
    assert [member.name for member in project.workflows["on"].tasks] == ["NO", "123"]


def test_a_project_of_celery_director_is_read(tmp_path: Path) -> None:
    text = """
---
ovh.SIMPLE_ETL:
  tasks:
    - EXTRACT
    - TRANSFORM_GROUP:
        type: group
        tasks: [CLEAN, LOAD]
  periodic: {schedule: 0 4 5 1 *, payload: {id: 1}}
  queue: {default: q1, customs: {LOAD: q2}}
  hooks: {failure: ALERT}
  retention: {offset: 10}
  schema: order
"""
    write(tmp_path, text, "workflows.yml")
    write(tmp_path, '{"required": ["id"]}', "schemas/order.json")
    project = load(tmp_path, tasks=TASKS)
    assert project.problems == ()
    workflow = project.workflows["ovh.SIMPLE_ETL"]
    assert workflow.schema == {"required": ["id"]}
    assert [one.crontab for one in workflow.periodic] == ["0 4 1 * 5"]
    assert workflow.retention == Retention(runs=10)


def test_subfolders_are_read_and_hidden_copies_are_not(tmp_path: Path) -> None:
    """A ConfigMap keeps the files a second time, in `..data`."""
    for file, name in (
        ("b/c.yaml", "C"),
        ("a.yml", "A"),
        ("..data/a.yml", "A"),
        (".#a.yml", "D"),
        ("e.txt", "E"),
    ):
        write(tmp_path, f"{name}: {{tasks: [LOAD]}}", f"workflows/{file}")
    write(tmp_path, "W: {tasks: [LOAD]}", "workflows.yml")
    (tmp_path / "workflows/folder.yml").mkdir()
    project = load(tmp_path)
    assert project.problems == ()
    assert list(project.workflows) == ["W", "A", "C"]


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "null", "x-only: {a: 1}\n", "sources:\ndefaults:\n"])
def test_an_empty_file_is_no_problem(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Project(workflows={}, sources={}, problems=(), broken={})


def test_no_files_are_an_empty_project(tmp_path: Path) -> None:
    assert load(tmp_path / "missing").workflows == {}


def test_defaults_stand_for_what_a_workflow_does_not_say(tmp_path: Path) -> None:
    write(
        tmp_path,
        "defaults: {hooks: {failure: ALERT}, queue: slow, payload: {a: 1, b: 1}}\nA: {tasks: [LOAD]}\n"
        "B: {tasks: [LOAD], queue: fast, payload: {b: 2}, hooks: {success: NOTIFY}}\n",
        "workflows/z.yml",
    )
    project = read(tmp_path, "C: {tasks: [LOAD], hooks: {failure: ~}}")
    a, b, c = (project.workflows[name] for name in "ABC")
    assert (a.queue, a.payload, a.hooks.failure) == ("slow", {"a": 1, "b": 1}, "ALERT")
    assert (b.queue, b.payload, b.hooks.success, b.hooks.failure) == (
        "fast",
        {"a": 1, "b": 2},
        "NOTIFY",
        "ALERT",
    )
    assert (c.queue, c.hooks.failure) == ("slow", None)


# --- what is refused, and where -------------------------------------------------------------------

REFUSED = {
    "misspelt task": (
        "example.ETL:\n  tasks:\n    - LAOD\n",
        ['3:7: example.ETL: no task is named "LAOD"; did you mean "LOAD"?'],
    ),
    "wrong case": ("A: {tasks: [load]}", ['1:13: A: no task is named "load"; did you mean "LOAD"?']),
    "unlike any task": ("A: {tasks: [ZZZZ]}", ['1:13: A: no task is named "ZZZZ"']),
    "misspelt hook": (
        "A: {tasks: [LOAD], hooks: {failure: ALRET}}",
        ['1:37: A: no task is named "ALRET"; did you mean "ALERT"?'],
    ),
    "unknown key": (
        "A: {taks: [LOAD], tasks: [LOAD]}",
        ['1:5: A: a workflow has no key "taks"; did you mean "tasks"?'],
    ),
    "key given twice": (
        "A:\n  tasks: [LOAD]\n  tasks: [LOAD]\n",
        ['3:3: A: "tasks" is given twice, first in line 2'],
    ),
    "workflow given twice": (
        "A: {tasks: [LOAD]}\nA: {tasks: [LOAD]}\n",
        ['2:1: A: "A" is given twice, first in line 1'],
    ),
    "no tasks": ("A: {queue: x}", ["1:1: A: has no tasks"]),
    "no mapping": ("A: LOAD", ['1:4: A: expected a mapping with "tasks"']),
    "no tasks in the list": ("A: {tasks: []}", ["1:12: A: tasks must name at least one task"]),
    "one task, no list": ("A: {tasks: LOAD}", ["1:12: A: tasks must be a list"]),
    "empty group": (
        "A: {tasks: [G: {type: group, tasks: []}]}",
        ['1:37: A: tasks of "G" must name at least one task'],
    ),
    "group without tasks": ("A: {tasks: [G: {type: group}]}", ['1:13: A: group "G" has no tasks']),
    "group without a type": (
        "A: {tasks: [G: {tasks: [LOAD]}]}",
        ['1:13: A: "G" has tasks but no type; add type: group or type: chain'],
    ),
    "unknown type": (
        "A: {tasks: [G: {type: grup, tasks: [LOAD]}]}",
        ['1:23: A: no type is named "grup"; did you mean "group"?'],
    ),
    "options not indented": (
        "A:\n  tasks:\n    - G:\n      type: group\n      tasks: [LOAD]\n",
        ['3:7: A: indent what belongs to "G" further than its name'],
    ),
    "two tasks behind one dash": (
        "A: {tasks: [{LOAD: , CLEAN: }]}",
        ["1:13: A: expected one name, found 2; start each with a dash"],
    ),
    "list in a list": (
        "A: {tasks: [[LOAD]]}",
        ["1:13: A: a list in a list; write NAME: {type: group, tasks: [...]}, or type: chain"],
    ),
    "unknown option": (
        "A: {tasks: [LOAD: {retires: 1}]}",
        ['1:20: A: "LOAD" has no option "retires"; did you mean "retries"?'],
    ),
    "retries": (
        "A: {tasks: [LOAD: {retries: -1}]}",
        ["1:29: A: retries must be a whole number from 0 to 1000000"],
    ),
    "retries yes": (
        "A: {tasks: [LOAD: {retries: yes}]}",
        ["1:29: A: retries must be a whole number from 0 to 1000000"],
    ),
    "backoff": ("A: {tasks: [LOAD: {backoff: 0}]}", ["1:29: A: backoff must be a number of seconds over 0"]),
    "timeout": ("A: {tasks: [LOAD: {timeout: 5m}]}", ["1:29: A: timeout must be a number of seconds over 0"]),
    "enabled": ("A: {tasks: [LOAD], enabled: maybe}", ["1:29: A: enabled must be true or false"]),
    "name with a newline": (
        'A: {tasks: ["LO\\nAD"]}',
        ['1:13: A: a task\'s name "LO\\nAD" holds a space or a control character'],
    ),
    "long name": (
        f"A: {{tasks: [{'x' * 201}]}}",
        ["1:13: A: a task's name has 201 characters; the limit is 200"],
    ),
    "empty name": ('A: {tasks: [""]}', ["1:13: A: a task's name is empty"]),
    "workflow's name": (
        "a b: {tasks: [LOAD]}",
        ["1:1: a b: a workflow's name has letters, digits, _ - and ., at most 100"],
    ),
    "queue": ("A: {tasks: [LOAD], queue: [a]}", ["1:27: A: queue must be a mapping"]),
    "customs of another task": (
        "A: {tasks: [LOAD], queue: {customs: {LAOD: db}}}",
        ['1:38: A: customs: "LAOD" is no task of it; did you mean "LOAD"?'],
    ),
    "payload": ("A: {tasks: [LOAD], payload: 3}", ["1:29: A: payload must be a mapping"]),
    "number that JSON has not": (
        "A: {tasks: [LOAD], payload: {a: .inf}}",
        ['1:33: A: ".inf" is no number in JSON; quote it'],
    ),
    "number over 64 bits": (
        "A: {tasks: [LOAD], payload: {a: 99999999999999999999}}",
        ["1:33: A: the number is too large for JSON; quote it"],
    ),
    "too many tasks": (
        f"A: {{tasks: [{', '.join(['LOAD'] * 2001)}]}}",
        ["1:12: A: has 2001 tasks; the limit is 2000"],
    ),
    "periodic": ("A: {tasks: [LOAD], periodic: daily}", ["1:30: A: periodic must be a mapping"]),
    "periodic without a time": (
        "A: {tasks: [LOAD], periodic: {payload: {}}}",
        ["1:30: A: periodic: neither crontab nor interval; expected one of them"],
    ),
    "periodic twice over": (
        "A: {tasks: [LOAD], periodic: {interval: 5, crontab: '* * * * *'}}",
        ["1:30: A: periodic: both crontab and interval; expected one of them"],
    ),
    "the same schedule twice": (
        "A: {tasks: [LOAD], periodic: [{interval: 5}, {interval: 5.0}]}",
        ["1:46: A: periodic: the same schedule is given twice"],
    ),
    "bad interval": (
        "A: {tasks: [LOAD], periodic: [{interval: 0}, {interval: -1}, {interval: daily}, {interval: 0.01}]}",
        [
            "1:42: A: interval must be a number of seconds over 0",
            "1:57: A: interval must be a number of seconds over 0",
            "1:73: A: interval must be a number of seconds over 0",
            "1:92: A: interval must be at least 0.1 s",
        ],
    ),
    "bad crontab": (
        "A: {tasks: [LOAD], periodic: [{crontab: 61 * * * *}, {crontab: 0 3 * *}, {crontab: 0 0 31 2 *}]}",
        [
            '1:41: A: crontab "61 * * * *": [61 * * * *] is not acceptable, out of range',
            '1:64: A: crontab "0 3 * *": it has 4 fields; expected five: minute hour day month weekday',
            '1:84: A: crontab "0 0 31 2 *": failed to find next date',
        ],
    ),
    "bad zone": (
        "A: {tasks: [LOAD], periodic: {crontab: '@daily', timezone: Europe/Pari}}",
        ['1:60: A: timezone "Europe/Pari": no such time zone; expected a name such as Europe/Paris'],
    ),
    "zone of an interval": (
        "A: {tasks: [LOAD], periodic: {interval: 60, timezone: UTC}}",
        ["1:55: A: an interval has no time zone; only a crontab has"],
    ),
    "what a schedule cannot do": (
        "A: {tasks: [LOAD], periodic: {interval: 60, catchup: lats, overlap: never}}",
        [
            '1:54: A: catchup "lats" means nothing; did you mean "last"?',
            '1:69: A: overlap "never" means nothing; expected allow, skip',
        ],
    ),
    "payload of a schedule": (
        "A: {tasks: [LOAD], schema: {required: [id]}, periodic: {interval: 60, payload: {i: 1}}}",
        ["1:80: A: periodic: the workflow's schema refuses the payload: $: 'id' is a required property"],
    ),
    "retention": ("A: {tasks: [LOAD], retention: [7]}", ["1:31: A: retention must be a mapping"]),
    "retention that is none": (
        "A: {tasks: [LOAD], retention: {days: 0, runs: 1.5, ofset: 3}}",
        [
            "1:38: A: days must be a number over 0, at most 36500",
            "1:47: A: runs must be a whole number from 1",
            '1:52: A: retention has no key "ofset"; did you mean "offset"?',
        ],
    ),
    "retention twice": (
        "A: {tasks: [LOAD], retention: {runs: 2, offset: 3}}",
        ["1:41: A: offset is another name of runs; write one of them"],
    ),
    "retention below all": (
        "A: {tasks: [LOAD], retention: {days: true, offset: -2}}",
        [
            "1:38: A: days must be a number over 0, at most 36500",
            "1:52: A: offset must be a whole number from -1",
        ],
    ),
    "retention by default": (
        "defaults: {retention: {days: x}}\nA: {tasks: [LOAD]}",
        ["1:30: defaults: days must be a number over 0, at most 36500"],
    ),
    "defaults": (
        "defaults: {hoks: {}}",
        ['1:12: defaults: defaults has no key "hoks"; did you mean "hooks"?'],
    ),
    "key that is no text": ("A: {tasks: [LOAD], [1]: 2}", ["1:20: A: a key must be one plain text"]),
    "merge of a text": ("A: {tasks: [LOAD], <<: x}", ['1:24: A: "<<" merges mappings only']),
    "tag on a value": (
        "A: {tasks: [LOAD], payload: {a: !!python/name:os.system x}}",
        ["1:33: A: the tag !!python/name:os.system means nothing here"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_where_it_stands(tmp_path: Path, text: str, expected: list[str]) -> None:
    project = read(tmp_path, text, tasks=TASKS)
    assert problems(project) == expected
    assert project.workflows == {}


SOURCES = "sources: {github: {secret: $S}}\n"
REFUSED_TRIGGERS = {
    "unknown source": (
        "{source: githb}",
        ['2:39: A: no source is named "githb"; did you mean "github"?'],
    ),
    "no source": ("{event: push}", ["2:30: A: a trigger needs a source"]),
    "unknown key": (
        "{source: github, evnt: push}",
        ['2:47: A: a trigger has no key "evnt"; did you mean "event"?'],
    ),
    "no event": ("{source: github, event: []}", ["2:54: A: event is empty"]),
    "leading !": (
        "{source: github, when: !deleted }",
        ['2:53: A: "!deleted" must be quoted: YAML takes a leading ! for a tag'],
    ),
    "text": ("github", ["2:30: A: a trigger must be a mapping"]),
}


@pytest.mark.parametrize(("trigger", "expected"), REFUSED_TRIGGERS.values(), ids=REFUSED_TRIGGERS)
def test_what_is_wrong_with_a_trigger(tmp_path: Path, trigger: str, expected: list[str]) -> None:
    project = read(tmp_path, f"{SOURCES}A: {{tasks: [LOAD], triggers: {trigger}}}\n")
    assert problems(project) == expected
    assert (project.workflows, list(project.sources)) == ({}, ["github"])


@pytest.mark.parametrize("place", ["when", "payload", "relaunch", "payload: {a"])
def test_bad_jmespath_points_at_the_expression(tmp_path: Path, place: str) -> None:
    line = f"  triggers: {{source: director, {place}: 'a ||'"
    project = read(tmp_path, f"A:\n  tasks: [LOAD]\n{line}{'}' * line.count('{')}\n")
    (problem,) = project.problems
    assert (problem.line, problem.column) == (3, line.index("'") + 1)
    assert problem.text.startswith("A: ")


REFUSED_SOURCES = {
    "literal": "{secret: hunter2}",
    "literal with a dollar": "{secret: $hunter2-x}",
    "literal in a list": "{secret: [$OK, hunter2]}",
    "tag": "{secret: !hunter2 }",
    "mapping": "{secret: {a: hunter2}}",
    "empty list": "{secret: []}",
    "no mapping": "hunter2",
    "misspelt and tagged": "{sceret: !hunter2 x}",
    "no space": "{secret:hunter2}",
    "equals": "{secret=hunter2}",
    "no key": "{hunter2}",
    "as the scheme": "{scheme: hunter2, secret: $OK}",
}


@pytest.mark.parametrize("source", REFUSED_SOURCES.values(), ids=REFUSED_SOURCES)
def test_a_literal_secret_is_refused_and_never_shown(tmp_path: Path, source: str) -> None:
    project = read(tmp_path, f"sources:\n  github: {source}\nA: {{tasks: [LOAD]}}")
    assert project.problems
    assert all(problem.text.startswith('source "github": ') for problem in project.problems)
    assert "hunter2" not in str(project)
    assert (project.sources, list(project.workflows)) == ({}, ["A"])


def test_a_literal_secret_is_told_what_to_write(tmp_path: Path) -> None:
    assert problems(read(tmp_path, "sources: {github: {secret: x}}")) == [
        '1:28: source "github": secrets come from the environment; write $NAME, not the secret itself'
    ]


def test_a_source_without_a_preset_of_its_name_needs_a_scheme(tmp_path: Path) -> None:
    assert problems(read(tmp_path, "sources: {acme: {secret: $S}}")) == [
        '1:11: source "acme": needs a scheme; write scheme: and the name of a preset, or hmac'
    ]
    assert problems(read(tmp_path, "sources: {gitlab: {secret: $S}}")) == [
        '1:11: source "gitlab": needs a scheme; write scheme: gitlab-token or gitlab-signing'
    ]


def test_an_unknown_key_of_a_source_is_refused(tmp_path: Path) -> None:
    project = read(tmp_path, "sources: {github: {secret: $S, colour: red}}")
    assert [(p.line, p.column) for p in project.problems] == [(1, 32)]


def test_a_source_has_one_home_and_no_built_in_name(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources: {github: {secret: $S}, director: {secret: $D}}",
        "workflows/b.yml",
    )
    project = read(tmp_path, SOURCES)
    assert [str(p) for p in project.problems] == [
        'workflows/b.yml:1:11: source "github": also defined at workflows/a.yml:1:11',
        'workflows/b.yml:1:33: source "director": this one is built in; give another a different name',
    ]
    assert project.sources == {}


# --- files that do not parse ----------------------------------------------------------------------


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def tower() -> str:
    """Each alias adds 50 levels to those of the one before, in few lines."""
    lines = ["a0: &a0 " + "[" * 50 + "]" * 50]
    return "\n".join(lines + [f"a{n}: &a{n} {'[' * 50}*a{n - 1}{']' * 50}" for n in range(1, 40)])


UNPARSED = {
    "not UTF-8": (b"A: {tasks: [LOAD]}\n# \xff", "2:3: this byte is not UTF-8"),
    "NUL": (b"A:\n  \x00", "2:3: the control character U+0000 cannot stand in YAML"),
    "UTF-16": ("A: 1".encode("utf-16"), "1:1: this byte is not UTF-8"),
    "list": ("- A", "1:1: expected workflows, each a name and a mapping"),
    "text": ("A", "1:1: expected workflows, each a name and a mapping"),
    "two documents": ("A: 1\n---\nB: 1", "2:1: a second document starts here; a file holds one"),
    "deep flow": ("A: " + "[" * 100_000, "1:103: nested more than 100 deep"),
    "deep mappings": ("{a: " * 100_000, "1:401: nested more than 100 deep"),
    "deep block": ("- " * 100_000, "1:201: nested more than 100 deep"),
    "deep keys": ("? " * 100_000, "1:201: nested more than 100 deep"),
    "alias bomb": (bomb(9), "1:34: more than 100000 values, with all aliases (*) written out"),
    "alias tower": (tower(), "1:5: nested more than 100 deep, with aliases (*) written out"),
    "cycle": ("A: &a {b: *a}", "1:4: nested more than 100 deep, with aliases (*) written out"),
    "cyclic merge": ("A: &a {<<: *a}", "1:4: nested more than 100 deep, with aliases (*) written out"),
    "anchor of the same name": ("A: &a 1\nB: &a 2", "2:4: this anchor (&) is there already"),
    "alias of nothing": ("A: *hunter2", "1:4: this alias (*) names no anchor (&) above it"),
    "tab": ("A:\n\ttasks: []", "2:1: a tab; YAML is indented with spaces"),
    "backtick": ("A: `x`", "1:4: a value that starts with ` must be quoted"),
    "expression with a tag": (
        "when: !deleted && x",
        "1:17: put the value in quotes: YAML takes a leading ! for a tag",
    ),
    "expression with a quote": (
        "when: 'x' == ref",
        "1:11: more follows a quoted text; put the whole value in quotes",
    ),
    "unclosed": (
        "A: [1\nB: 2\n",
        "2:2: not YAML: while parsing a flow sequence, did not find expected ',' or ']'",
    ),
}


@pytest.mark.parametrize(("text", "expected"), UNPARSED.values(), ids=UNPARSED)
def test_a_file_that_does_not_parse(tmp_path: Path, text: str | bytes, expected: str) -> None:
    """It is out of service as a whole, quickly; other files are not."""
    write(tmp_path, "B: {tasks: [LOAD], triggers: {source: elsewhere}}", "workflows/b.yml")
    started = time.process_time()
    project = read(tmp_path, text)
    assert time.process_time() - started < 2
    assert [str(p).removeprefix(FILE + ":") for p in project.broken[FILE]] == [expected]
    assert len(project.problems) == 1, "an unknown source may be in the file that does not parse"
    assert list(project.workflows) == ["B"]


def test_a_file_over_a_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    assert problems(read(tmp_path, b"#" * ((1 << 20) + 1))) == [
        "1:1: the file has 1048577 bytes; the limit is 1048576"
    ]


@pytest.mark.parametrize("text", ["a: 1\n" * 170_000, "&a a: *a\n" * 30, "? a\n" * 170_000, "[], " * 250_000])
def test_a_large_file_is_answered_in_time(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    assert read(tmp_path, text).problems
    assert time.process_time() - started < 20, "nothing in it is quadratic: that takes minutes"


def test_the_parser_in_python_serves_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML was built without libyaml; an escaped surrogate gets through that one."""
    import yaml

    monkeypatch.setattr(yamltree, "_LOADER", yaml.SafeLoader)
    assert problems(read(tmp_path, EVERYTHING)) == []
    assert problems(read(tmp_path, 'A: "\\uD800"')) == ["1:4: this text is not Unicode"]
    assert problems(read(tmp_path, "A: " + "[" * 100_000)) == ["1:103: nested more than 100 deep"]


def test_every_problem_of_every_file_is_told_in_order(tmp_path: Path) -> None:
    write(tmp_path, "C: {tasks: [LAOD]}\nD: {queue: x}\n", "workflows/b.yml")
    project = read(tmp_path, "B: [\n", tasks=TASKS)
    assert [(p.file, p.line, p.column) for p in project.problems] == [
        (FILE, 2, 1),
        ("workflows/b.yml", 1, 13),
        ("workflows/b.yml", 2, 1),
    ]
    assert sorted(project.broken) == ["C", "D", FILE]


def test_a_broken_default_breaks_who_would_take_it(tmp_path: Path) -> None:
    project = read(
        tmp_path,
        "defaults: {hooks: {failure: ALRET}}\nA: {tasks: [LOAD]}\n"
        "B: {tasks: [LOAD], hooks: {success: , failure: ALERT}}\n",
        tasks=TASKS,
    )
    assert problems(project) == ['1:29: defaults: no task is named "ALRET"; did you mean "ALERT"?']
    assert (list(project.workflows), list(project.broken)) == (["B"], ["A"])


# --- schemas and payloads -------------------------------------------------------------------------

ORDER = {
    "type": "object",
    "required": ["order"],
    "properties": {"order": {"type": "object", "properties": {"id": {"$ref": "#/$defs/id"}}}},
    "$defs": {"id": {"type": "integer"}},
}


def with_schema(home: Path, schema: Any, payload: str = "{}") -> Project:
    write(home, schema if isinstance(schema, (str, bytes)) else json.dumps(schema), "schemas/order.json")
    return read(home, f"A: {{tasks: [LOAD], schema: order, payload: {payload}}}\n")


def test_check_payload_puts_defaults_under_the_payload(tmp_path: Path) -> None:
    workflow = with_schema(tmp_path, ORDER, "{order: {id: 1}, dry: true}").workflows["A"]
    assert check_payload(workflow, {}) == {"order": {"id": 1}, "dry": True}
    assert check_payload(workflow, {"order": {}}) == {"order": {}, "dry": True}
    with pytest.raises(InvalidPayload) as refused:
        check_payload(workflow, {"order": {"id": "x"}})
    assert refused.value.paths == ("$.order.id: 'x' is not of type 'integer'",)
    assert str(refused.value) == "The schema of A refuses the payload: $.order.id: 'x' is not of type 'integer'"


def test_check_payload_names_at_most_20_places(tmp_path: Path) -> None:
    workflow = with_schema(tmp_path, {"additionalProperties": {"type": "integer"}}).workflows["A"]
    with pytest.raises(InvalidPayload) as refused:
        check_payload(workflow, {str(n): "x" * 5000 for n in range(30)})
    assert len(refused.value.paths) == 20
    assert max(map(len, refused.value.paths)) <= 300


REFUSED_SCHEMAS = {
    "not JSON": ('{"a":\n x}', "schemas/order.json:2:2: not JSON: Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "schemas/order.json is not JSON"),
    "deep": ("[" * 100_000, "schemas/order.json is not JSON"),
    "list": ("[]", "schemas/order.json must hold an object"),
    "misspelt type": ('{"type": "strin"}', "schemas/order.json: $.type: "),
    "bad pattern": ('{"pattern": "["}', "schemas/order.json: $.pattern: '[' is not a 'regex'"),
    "bad draft": ('{"$schema": []}', 'schemas/order.json: "$schema" must be a text'),
    "remote reference": (
        '{"properties": {"a": {"$ref": "http://localhost:1/x.json"}}}',
        "schemas/order.json: $ref 'http://localhost:1/x.json' is not in it; nothing is fetched",
    ),
    "dangling reference": ('{"$ref": "#/$defs/a"}', "schemas/order.json: $ref '#/$defs/a' is not in it"),
    "strange reference": ('{"$ref": "http://[x"}', "schemas/order.json: "),
}


@pytest.mark.parametrize(("schema", "expected"), REFUSED_SCHEMAS.values(), ids=REFUSED_SCHEMAS)
def test_a_bad_schema_is_told_where_it_is_named(tmp_path: Path, schema: str | bytes, expected: str) -> None:
    (problem,) = problems(with_schema(tmp_path, schema))
    assert problem.startswith(f"1:28: A: {expected}")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("missing", "schemas/missing.json does not exist"),
        ("../order", '"../order" does not name a file in schemas/'),
        ("/etc/passwd", '"/etc/passwd" does not name a file in schemas/'),
        ("{type: strin}", "schema: $.type: 'strin' is not valid under any of the given schemas"),
        ("[a]", "schema must be a text"),
    ],
)
def test_a_schema_that_cannot_be_had(tmp_path: Path, schema: str, expected: str) -> None:
    assert problems(read(tmp_path, f"A: {{tasks: [LOAD], schema: {schema}}}")) == [f"1:28: A: {expected}"]


def test_a_schema_without_end_refuses_the_payload(tmp_path: Path) -> None:
    workflow = with_schema(tmp_path, {"$ref": "#"}).workflows["A"]
    with pytest.raises(InvalidPayload, match="without end"):
        check_payload(workflow, {})


def test_a_schema_never_reaches_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that did not come through `load`."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    schema = {"properties": {"a": {"$ref": "http://127.0.0.1:1/x.json"}}}
    workflow = Workflow(name="A", tasks=(), schema=schema)
    with pytest.raises(InvalidPayload, match=r"Unresolvable: http://127.0.0.1:1/x.json"):
        check_payload(workflow, {"a": 1})


def test_an_older_draft_is_honoured(tmp_path: Path) -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "properties": {"a": {"minimum": 1}}}
    draft4["properties"]["a"]["exclusiveMinimum"] = True  # type: ignore[index]
    workflow = with_schema(tmp_path, draft4).workflows["A"]
    with pytest.raises(InvalidPayload):
        check_payload(workflow, {"a": 1})


# --- what is in service ---------------------------------------------------------------------------


def test_what_breaks_keeps_its_last_good_version(tmp_path: Path) -> None:
    write(tmp_path, f"{SOURCES}A: {{tasks: [LOAD]}}\nB: {{tasks: [LOAD]}}\n")
    definitions = Definitions(tmp_path, {}, TASKS)
    assert not definitions.refresh()
    write(tmp_path, "sources: {github: {secret: literal}}\nA: {tasks: [LAOD]}\nB: {tasks: [CLEAN]}\n")
    assert definitions.refresh()
    assert definitions.workflow("A").tasks[0] == Call(name="LOAD")
    assert [str(p) for p in definitions.project.broken["A"]] == [
        'workflows/a.yml:2:13: A: no task is named "LAOD"; did you mean "LOAD"?'
    ]
    assert _first(definitions, "B") == "CLEAN"
    assert list(definitions.project.sources) == ["github"]
    assert len(definitions.project.problems) == 2
    write(tmp_path, "A: {tasks: [EXTRACT]}\n")
    assert definitions.refresh()
    assert (_first(definitions, "A"), definitions.project.problems) == ("EXTRACT", ())
    assert definitions.project.sources == {}
    with pytest.raises(NotFound):
        definitions.workflow("B")


def test_a_file_that_stops_parsing_keeps_all_that_it_held(tmp_path: Path) -> None:
    """Its sources and defaults too, which other files need."""
    write(tmp_path, f"{SOURCES}defaults: {{queue: slow}}\nA: {{tasks: [LOAD]}}\n")
    write(tmp_path, "B: {tasks: [LOAD], triggers: {source: github}}", "workflows/b.yml")
    definitions = Definitions(tmp_path, {})
    write(tmp_path, "A: [\n")
    write(tmp_path, "B: {tasks: [CLEAN], triggers: {source: github}}", "workflows/b.yml")
    assert definitions.refresh()
    assert (_first(definitions, "A"), _first(definitions, "B")) == ("LOAD", "CLEAN")
    assert definitions.workflow("B").queue == "slow"
    assert list(definitions.project.broken) == [FILE]
    (tmp_path / FILE).unlink()
    assert definitions.refresh()
    assert list(definitions.project.workflows) == ["B"], "its last good version, now that the source is gone"
    assert [p.text for p in definitions.project.broken["B"]] == [
        'B: no source is named "github"; add it under sources:'
    ]


def test_a_workflow_that_was_never_good_says_why(tmp_path: Path) -> None:
    write(tmp_path, "example.ETL: {queue: x}\n")
    definitions = Definitions(tmp_path, {})
    with pytest.raises(DefinitionError) as refused:
        definitions.workflow("example.ETL")
    assert refused.value.problems == ("workflows/a.yml:1:1: example.ETL: has no tasks",)


def test_an_unknown_workflow_is_met_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "example.ETL: {tasks: [LOAD]}\n")
    with pytest.raises(NotFound, match=r'No workflow is named "exmaple.ETL". Did you mean "example.ETL"\?'):
        Definitions(tmp_path, {}).workflow("exmaple.ETL")


def test_tasks_may_become_known_later(tmp_path: Path) -> None:
    """Embedded, tasks/ is imported after the web answers; a last good version must not name unknown tasks."""
    write(tmp_path, "A: {tasks: [LAOD]}\nB: {tasks: [LOAD]}\n")
    definitions = Definitions(tmp_path, {})
    assert list(definitions.project.workflows) == ["A", "B"]
    definitions.tasks = TASKS
    assert definitions.refresh()
    assert list(definitions.project.workflows) == ["B"]


def test_readers_never_see_a_project_half_read(tmp_path: Path) -> None:
    """Each version names one queue in all its workflows; a reader that mixed two would see both."""
    definitions = Definitions(tmp_path, {})
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(len({workflow.queue for workflow in definitions.project.workflows.values()}))

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    for version in range(20):
        queue = "q" * (version + 1)
        write(tmp_path, "\n".join(f"W{n}: {{tasks: [LOAD], queue: {queue}}}" for n in range(50)))
        assert definitions.refresh()
    done.set()
    for reader in readers:
        reader.join()
    assert seen <= {0, 1}


def test_a_changed_schema_is_picked_up(tmp_path: Path) -> None:
    with_schema(tmp_path, ORDER)
    definitions = Definitions(tmp_path, {})
    write(tmp_path, "{}", "schemas/order.json")
    assert definitions.refresh()
    assert definitions.workflow("A").schema == {}


def test_a_source_is_closed_until_one_of_its_secrets_is_set(tmp_path: Path) -> None:
    write(
        tmp_path, "sources: {github: {secret: [$NEW, $OLD]}, stripe: {secret: $SLACK}, standard: {secret: $STD}}\n"
    )
    definitions = Definitions(tmp_path, {"OLD": "x\n", "SLACK": " ", "STD": "whsec_not base64!"})
    sources = definitions.project.sources
    assert [definitions.is_open(sources[name]) for name in ("github", "stripe", "standard")] == [True, False, True]
    assert definitions.secrets(sources["github"]) == ["", "x"]
    assert [str(problem) for problem in definitions.source_problems()] == [
        'workflows/a.yml:1:43: source "stripe" is closed: set SLACK in the environment or .env',
        'workflows/a.yml:1:69: source "standard" STD is not base64, so it never matches',
    ]


def test_an_unset_verify_token_is_named(tmp_path: Path) -> None:
    write(tmp_path, "sources: {meta: {secret: $META, verify_token: $TOKEN}}\n")
    (found,) = Definitions(tmp_path, {"META": "x", "TOKEN": " "}).source_problems()
    assert str(found) == (
        'workflows/a.yml:1:11: source "meta" answers no hub.challenge: set TOKEN in the environment or .env'
    )
    assert Definitions(tmp_path, {"META": "x", "TOKEN": "y"}).source_problems() == []


def test_a_folder_that_cannot_be_read_keeps_what_it_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process out of file descriptors, then no workflow goes away."""
    write(tmp_path, "A: {tasks: [LOAD]}\n")
    definitions = Definitions(tmp_path, {})

    def refuse(path: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(OSError, match="Too many"):
        definitions.refresh()
    assert list(definitions.project.workflows) == ["A"]


GOOD_EXPRESSIONS = (
    *("ref == 'refs/heads/main' && !deleted", "\"a-b\" == 'x'", "a.\"b\" == 'c'", "x == `3`", "a == `true`"),
    *("contains(a, 'b')", "length(commits) > `0`", "sort_by(a, &b)", "[?a == 'b'].c | [0]", "@", "x.and", "and"),
    *("!(a.b)", "!a[0]", "!a && b", "!contains(a.b, 'c')", "!a | [0]", "a[1:]"),
)
BAD_EXPRESSIONS = {
    'ref == "refs/heads/main"': "write 'refs/heads/main' for a text",
    'commits[?author == "x"]': "write 'x' for a text",
    "x == 3": "write `3` with backticks",
    "a == true": "write `true` with backticks",
    "null == a": "write `null` with backticks",
    "a and b": "write && for and",
    "not a": "write ! for not",
    "a = b": "write == to compare",
    "!a.b && c": "write !(a.b)",
    "x[?!a.b]": "write !(a.b)",
    "a == `1` || !b[].c": "write !(a.b)",
    "foo(a)": "foo()",
    "length(a, b)": "length()",
    "&a": "a reference",
    "a ||": "not JMESPath",
    "a" * 5000: "4096 characters",
}


def test_good_expressions_and_usual_slips() -> None:
    assert {text: triggers.check_expression(text) for text in GOOD_EXPRESSIONS} == dict.fromkeys(GOOD_EXPRESSIONS)
    for text, words in BAD_EXPRESSIONS.items():
        assert words in (triggers.check_expression(text) or ""), text


@pytest.mark.parametrize(
    "text", ["contains('abc', `1`)", "max_by([{a: 'x'}, {a: `1`}], &a)", "floor(to_number('inf'))"]
)
def test_an_expression_that_always_fails_takes_nothing_out_of_service(tmp_path: Path, text: str) -> None:
    """It compares its own literals, so that it fails on the empty body too; the inbox says so for each delivery."""
    assert triggers.check_expression(text) is None
    write(tmp_path, f'a: {{tasks: [LOAD], triggers: [{{source: director, when: "{text}"}}]}}\n')
    assert list(load(tmp_path).workflows) == ["a"]
    routing = triggers.Router(load(tmp_path).workflows.values()).route("director", "", {})
    assert f"when `{text}` failed: " in routing.reasons[0][1]


def test_an_unreadable_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    assert problems(read(tmp_path, "A: {tasks: [LOAD]}")) == ["1:1: cannot be read: Permission denied"]


# --- the example, and costs -----------------------------------------------------------------------


def test_the_example_has_no_problem_and_its_tasks_exist() -> None:
    names = {
        name: "tasks"
        for path in (REPOSITORY / "tasks").glob("*.py")
        for name in re.findall(r'@task\(name="(.*)"\)', path.read_text())
    }
    project = load(REPOSITORY, tasks=names)
    assert project.problems == ()
    assert sorted(project.workflows) == ["example.ETL", "github.PUSH"]


def test_importing_and_loading_leaves_jsonschema_alone() -> None:
    code = (
        "import sys, pathlib; from director import definitions; "
        "definitions.load(pathlib.Path('.')); sys.exit('jsonschema' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def _first(definitions: Definitions, name: str) -> str:
    member = definitions.workflow(name).tasks[0]
    assert isinstance(member, Call)
    return member.name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", Retention(days=7, runs=5)),
        ("retention: {days: 0.5}", Retention(days=0.5, runs=5)),
        ("retention: {offset: -1}", Retention(days=7, runs=0)),
        ("retention: {offset: 0, days: null}", Retention(days=7, runs=0)),
        ("retention:", Retention(days=7, runs=5)),
    ],
)
def test_retention_is_laid_over_the_default_key_by_key(tmp_path: Path, given: str, expected: Retention) -> None:
    write(tmp_path, f"defaults: {{retention: {{days: 7, runs: 5}}}}\nA:\n  tasks: [LOAD]\n  {given}\n")
    project = load(tmp_path, tasks=TASKS)
    assert project.problems == ()
    assert project.workflows["A"].retention == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{secret: $OK, redelivery: relaunch}", []),
        ("{secret: $OK, redelivery: always}", ["redelivery must be ignore or relaunch"]),
        ("{secret: $OK, redelivery: [relaunch]}", ["redelivery must be a text"]),
        ("{scheme: meta, secret: $OK, verify_token: $TOKEN}", []),
        (
            "{scheme: meta, secret: $OK, verify_token: hunter2}",
            ["secrets come from the environment; write $NAME, not the secret itself"],
        ),
        ("{secret: $OK, event_json: [/type, kind]}", ['"event_json": expected a JSON pointer such as /id, or a list of them']),
        ("{secret: $OK, id_json: [/id, /ident]}", []),
    ],
)  # fmt: skip
def test_what_a_source_says_beside_its_scheme(tmp_path: Path, source: str, expected: list[str]) -> None:
    project = read(tmp_path, f"sources:\n  github: {source}\n")
    assert [problem.text.partition(": ")[2] for problem in project.problems] == expected
    assert "hunter2" not in str(project.problems)
    assert list(project.sources) == ([] if expected else ["github"])


def test_a_trigger_that_relaunches_has_no_payload(tmp_path: Path) -> None:
    trigger = "{source: github, relaunch: text, payload: {a: b}}"
    project = read(tmp_path, f"{SOURCES}A: {{tasks: [LOAD], triggers: {trigger}}}\n")
    (problem,) = project.problems
    assert problem.text == "A: a trigger that relaunches has no payload: the run keeps its own"
