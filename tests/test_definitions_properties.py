"""Whatever a workflow file holds, `load` returns a project and each problem has its place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from director.definitions import load

VALID = """
x-base: &base {queue: slow}
example.ETL:
  tasks:
    - EXTRACT
    - SPREAD: {type: group, tasks: [CLEAN, {PAIR: {type: chain, tasks: [A, B]}}]}
    - LOAD: {retries: 3, backoff: 5, timeout: 60.5}
  <<: *base
  payload: {dry_run: false, n: [1, 2.5, null, "x"]}
  hooks: {success: NOTIFY, failure: ALERT}
  triggers:
    - {source: github, event: [push], when: "ref && !deleted", payload: {sha: after}}
sources:
  github: {secret: $S}
defaults: {hooks: {failure: ALERT}}
"""
SLIPS = (
    *(
        "",
        "x",
        "\n",
        " ",
        ":",
        "- ",
        "{",
        "]",
        "[",
        "*base",
        "&base ",
        "!t ",
        "<<: ",
        "? ",
        "~",
        "null",
        "1e999",
    ),
    *("tasks:", "type: group", "\t", "\x00", "é", "'", '"', "---\n", "0x", "!!binary ", "!!int ", "!!set "),
    *("sources: ", "12:30", "2001-99-99", "_", "LOAD", "secret: x"),
)
TASKS = {"LOAD": "tasks/a.py"}
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "workflows.yml").write_bytes(data)
        for tasks in (None, TASKS):
            project = load(home, tasks=tasks)
            lines = data.decode("utf-8", "replace").count("\n") + data.count(b"\r") + 1000
            for problem in project.problems:
                assert problem.file == "workflows.yml"
                assert 1 <= problem.line <= lines
                assert problem.column >= 1
                assert "\n" not in str(problem)
            assert list(project.problems) == sorted(project.problems)
            assert not project.workflows.keys() & project.broken.keys()
            for workflow in project.workflows.values():
                json.dumps(msgspec.to_builtins(workflow), allow_nan=False)


@quick
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@quick
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))


@quick
@given(st.text(alphabet="ab:-?*&!|>'\"#%@`{}[], \n\t<=.0123yn~$", max_size=80))
def test_any_yamlish_text(text: str) -> None:
    check(text.encode())


@quick
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(VALID)),
            st.integers(0, 6),
            st.sampled_from(SLIPS),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_slip_in_a_good_file(slips: list[tuple[int, int, str]]) -> None:
    text = VALID
    for place, length, put in slips:
        text = text[:place] + put + text[place + length :]
    check(text.encode())


WORKFLOW = (
    "tasks",
    "type",
    "queue",
    "schema",
    "payload",
    "hooks",
    "enabled",
    "triggers",
    "periodic",
    "retention",
)
OTHER = (
    "source",
    "event",
    "when",
    "relaunch",
    "secret",
    "scheme",
    "default",
    "customs",
    "failure",
    "retries",
)
KEYS = st.sampled_from((*WORKFLOW, *OTHER, "sources", "defaults", "A", "example.ETL", "LOAD", "github"))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    KEYS,
    st.text(max_size=5),
    st.dates(),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=4),
    max_leaves=12,
)


@quick
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_structure(value: object) -> None:
    check(yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$ref", "$id", "$schema", "$defs", "type", "properties", "pattern", "allOf", "items", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@quick
@given(JSON)
def test_any_schema(schema: object) -> None:
    check(f"A: {{tasks: [LOAD], schema: {json.dumps(schema)}}}".encode())
