"""The `director` command as a process: what it prints where, and its exit status."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from director.models import time_ms
from director.signing import SignedRequest, scheme, verify
from tests.conftest import free_port
from tests.processes import calls, project, until, worker
from tests.test_up import Service

FLOW = """
w.ONE: {tasks: [ONE]}
w.CHATTY: {tasks: [CHATTY]}
w.CONFIG: {tasks: [CONFIG]}
w.SLEEP: {tasks: [SLEEP]}
w.LATER: {tasks: [SLEEP], periodic: [{crontab: "0 3 * * *"}, {interval: 90, enabled: false}]}
w.FRAGILE:
  tasks:
    - CHATTY
    - SPREAD:
        type: group
        tasks:
          - FRAGILE
          - INNER: {type: chain, tasks: [ONE, CHATTY]}
    - SUM
  hooks: {failure: ALERT}
w.STRICT:
  tasks: [ONE]
  schema: {type: object, required: [number]}
  triggers:
    - {source: github, event: push, payload: {number: id}}
    - {source: other}
w.OFF: {tasks: [ONE], enabled: false}
sources:
  github: {secret: $HOOK}
  other: {scheme: stripe, secret: $HOOK}
  std: {scheme: standard, secret: $STD}
  bearer: {scheme: token, secret: $HOOK}
"""
MORE = """
import os
from director import config, task

@task(name="CONFIG")
def configured():
    return [config.BUCKET, os.environ["REGION"]]

@task(name="CHATTY")
def chatty(previous):
    print("a task prints")
    return 1
"""
SECRETS = {"HOOK": "abc", "STD": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "workflows" / "w.yml").write_text(FLOW)
    (tmp_path / "tasks" / "more.py").write_text(MORE)
    return tmp_path


@pytest.fixture
def director(home):
    """Run one command in the project; it must neither hang nor end in a traceback of ours."""

    def run(*args, stdin=None, **env):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DIRECTOR_")}
        environ |= {"DIRECTOR_HOME": str(home), "PORT": str(free_port()), **SECRETS, **env}
        command = [sys.executable, "-m", "director", *map(str, args)]
        done = subprocess.run(
            command, env=environ, cwd=home, input=stdin, capture_output=True, text=True, timeout=90
        )
        assert "director/cli.py" not in done.stderr
        return done

    return run


def start(home, *args, **env):
    """Start a command and do not wait for it."""
    environ = {**os.environ, "DIRECTOR_HOME": str(home), **SECRETS, **env}
    return subprocess.Popen(
        [sys.executable, "-m", "director", *args],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


# Embedded, with no service running


def test_a_run_is_executed_by_the_command_itself(director):
    done = director("workflow", "run", "w.CHATTY", "--comment", "by hand")

    assert done.returncode == 0
    assert ID.fullmatch(done.stdout.strip()), "stdout has the id, and not what tasks print"
    assert "a task prints" in done.stderr
    assert "w.CHATTY succeeded" in done.stderr
    run = json.loads(director("runs", "show", "latest", "--json").stdout)
    assert (run["id"], run["status"], run["trigger"]) == (done.stdout.strip(), "succeeded", {"kind": "cli"})
    assert (run["comment"], run["tasks"][0]["result"]) == ("by hand", 1)


def test_follow_on_a_pipe_prints_a_line_per_change_with_groups(home, director):
    done = director("workflow", "run", "w.FRAGILE", json.dumps({"flag": str(home / "flag")}), "--follow")

    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    time_ = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  "
    assert re.search(time_ + r"✗ SPREAD/FRAGILE +failed +[\d.]+s  ValueError: no flag$", done.stdout, re.M)
    assert re.search(time_ + r"✓ SPREAD/INNER/CHATTY\.2 +succeeded +[\d.]+s +1$", done.stdout, re.M)
    assert re.search(time_ + r"- SUM +skipped$", done.stdout, re.M)
    assert re.search(time_ + r"✓ ALERT \(hook\) +succeeded", done.stdout, re.M)
    assert re.search(r"^failed in [\d.]+s$", done.stdout, re.M)
    assert 'raise ValueError("no flag")' in done.stdout
    assert calls(home)[-1] == "ALERT FRAGILE", "the command stays for the hook"


def test_relaunch_runs_what_failed_and_what_follows(home, director):
    flag = home / "flag"
    failed = director("workflow", "run", "w.FRAGILE", json.dumps({"flag": str(flag)}))
    assert failed.returncode == 1
    assert "FRAGILE: ValueError: no flag" in failed.stderr
    before = calls(home)

    plan = director("runs", "relaunch", "latest", "--plan", "--json")
    assert json.loads(plan.stdout)["rerun"] == ["FRAGILE", "SUM"]
    assert calls(home) == before

    flag.touch()
    again = director("runs", "relaunch", failed.stdout[:13])
    assert again.returncode == 0
    assert again.stdout == failed.stdout
    assert calls(home)[len(before) :] == ["FRAGILE", "SUM"]
    assert "status    succeeded (launch 2)" in director("runs", "show", "latest").stdout


def test_two_commands_at_once_both_see_their_run_through(home, director):
    first = start(home, "workflow", "run", "w.SLEEP", '{"seconds": 1}')
    until((home / ".director" / "service.lock").exists)
    second = start(home, "workflow", "run", "w.SLEEP", '{"seconds": 3}')
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        run = json.loads(director("runs", "show", out.strip(), "--json").stdout)
        assert run["status"] == "succeeded"


def test_ctrl_c_leaves_at_once_and_the_run_goes_on_later(home, director):
    command = start(home, "workflow", "run", "w.SLEEP", '{"seconds": 30}')
    until(lambda: calls(home), what="the task")
    pressed = time.monotonic()
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert time.monotonic() - pressed < 10
    assert err.strip() == "Stopped. What has not ended goes on with `director up`, or beside the next run."
    run = json.loads(director("runs", "show", out.strip(), "--json").stdout)
    assert run["tasks"][0]["status"] == "queued"
    assert director("runs", "cancel", out.strip()).returncode == 0


def test_an_unknown_task_is_found_before_the_run_starts(home, director):
    (home / "workflows" / "bad.yml").write_text("w.BAD: {tasks: [ONEE]}\n")
    done = director("workflow", "run", "w.BAD")
    assert done.returncode == 1
    assert 'workflows/bad.yml:1:17: w.BAD: no task is named "ONEE"; did you mean "ONE"?' in done.stderr
    assert json.loads(director("runs", "list", "--json").stdout)["runs"] == []


def test_tasks_see_what_dotenv_sets(home, director):
    (home / ".env").write_text("DIRECTOR_BUCKET=tea\nREGION=here\n")
    assert director("workflow", "run", "w.CONFIG", REGION="there").returncode == 0
    run = json.loads(director("runs", "show", "latest", "--json").stdout)
    assert run["tasks"][0]["result"] == ["tea", "there"], "the environment wins"


# Reading


def test_a_payload_comes_from_text_a_file_or_standard_input(home, director):
    (home / "payload.json").write_text('{"from": "a file"}')
    for argument, stdin, said in (
        ('{"from": "text"}', None, "text"),
        ("@payload.json", None, "a file"),
        ("-", '{"from": "stdin"}', "stdin"),
    ):
        assert director("workflow", "run", "w.ONE", argument, stdin=stdin).returncode == 0
        assert json.loads(director("runs", "show", "latest", "--json").stdout)["payload"] == {"from": said}


def test_every_listing_has_a_header_and_a_json_form(director):
    for _ in range(2):
        run_id = director("workflow", "run", "w.ONE").stdout.strip()
    lines = director("runs", "list").stdout.splitlines()
    assert lines[0].split() == ["RUN", "WORKFLOW", "STATUS", "CREATED", "TOOK", "ERROR"]
    assert len(lines) == 3
    assert lines[1].startswith(run_id)
    assert lines[0].index("STATUS") == lines[1].index("succeeded")
    assert json.loads(director("runs", "list", "--json", "--limit", "1").stdout)["runs"][0]["id"] == run_id
    assert json.loads(director("runs", "list", "--json", "--status", "failed").stdout)["runs"] == []
    assert director("workflow", "list").stdout.startswith("WORKFLOW ")
    listed = json.loads(director("workflow", "list", "--json").stdout)["workflows"]
    assert {workflow["name"] for workflow in listed} >= {"w.ONE", "w.OFF"}
    assert "│  └─ INNER (chain)" in director("workflow", "show", "w.FRAGILE").stdout
    later = director("workflow", "show", "w.LATER").stdout
    assert later.endswith("starts at 0 3 * * * (UTC)\nstarts every 90 s (disabled)\n")
    assert json.loads(director("workflow", "show", "w.FRAGILE", "--json").stdout)["hooks"]["failure"] == "ALERT"
    assert re.search(r"^github +github +open +http://127", director("sources", "list").stdout, re.M)
    listed = json.loads(director("sources", "list", "--json", HOOK="").stdout)["sources"]
    assert (listed[0]["open"], listed[0]["secrets"]) == (False, [{"name": "HOOK", "set": False}])
    assert re.search(
        r"^github +github +closed +\S+ +HOOK \(not set\)$", director("sources", "list", HOOK="").stdout, re.M
    )


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("workflow", "run", "w.ONE", "{"), 2, "PAYLOAD is not valid JSON"),
        (("workflow", "run", "w.ONE", "[1]"), 2, "PAYLOAD must be a JSON object"),
        (("workflow", "run", "w.ONE", "@nowhere.json"), 2, "nowhere.json cannot be read: No such file"),
        (("workflow", "run", "w.OEN"), 1, 'No workflow is named "w.OEN". Did you mean "w.ONE"?'),
        (("workflow", "run", "w.STRICT"), 1, "'number' is a required property"),
        (("workflow", "run", "w.OFF"), 1, "w.OFF is disabled"),
        (("runs", "show", "latest"), 1, "There is no run yet"),
        (("deliveries", "show", "latest"), 1, "Nothing has come in yet"),
        (("runs", "show", "0123"), 1, 'starts with "0123"'),
        (("runs", "show", "01a20da6-d65a-742d-8649-2194183e1eee"), 1, "01a20da6"),
        (("runs", "list", "--status", "done"), 2, "'done' is not one of"),
        (("runs", "lst"), 2, "No such command"),
        (("worker",), 2, "Set DIRECTOR_REDIS_URL"),
        (("scheduler",), 2, "DIRECTOR_REDIS_URL"),
        (("sources", "sign", "nobody", "w.json"), 2, "w.json"),
        (("sources", "test", "nobody", "workflows/w.yml"), 1, 'No source is named "nobody"; there are: '),
        (
            ("sources", "test", "githup", "workflows/w.yml"),
            1,
            'No source is named "githup"; did you mean "github"?\n',
        ),
        (("sources", "test", "github", "workflows/w.yml"), 1, "is not valid JSON"),
        (("sources", "sign", "github", "workflows/w.yml", "--event", "a\nb", "--send"), 1, "no header can hold"),
        (("sources", "sign", "github", "workflows/w.yml", "--event", "€", "--send"), 1, "no header can hold"),
    ],
)
def test_a_mistake_is_answered_on_stderr(director, args, status, words):
    done = director(*args)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_is_away_and_settings_that_are_wrong(director):
    away = director("runs", "list", DIRECTOR_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert away.returncode == 1
    assert "did not answer" in away.stderr
    wrong = director("runs", "list", PORT="x", DIRECTOR_CONCURRENCY="0")
    assert wrong.returncode == 2
    assert "PORT" in wrong.stderr
    assert "DIRECTOR_CONCURRENCY" in wrong.stderr


def test_a_reader_that_has_gone_is_no_error(home):
    environ = {**os.environ, "DIRECTOR_HOME": str(home)}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "director", "workflow", "list", "--json"]
    done = subprocess.run(command, env=environ, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("colors", [True, False])
def test_follow_on_a_terminal_draws_a_nested_tree(home, colors):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DIRECTOR_") and k != "NO_COLOR"}
    environ |= {"DIRECTOR_HOME": str(home), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    if not colors:
        environ["NO_COLOR"] = "1"
    terminal, inner = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "director",
        "workflow",
        "run",
        "w.FRAGILE",
        '{"flag": "/nowhere"}',
        "--follow",
    ]
    process = subprocess.Popen(command, env=environ, stdout=inner, stderr=inner, stdin=inner)
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert process.wait(60) == 1
    text = shown.decode()
    assert text.count("a task prints") == 2
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    last = plain[plain.rindex("w.FRAGILE  failed") :]
    assert re.search(r"^  SPREAD\n✗   FRAGILE +failed .*\n    INNER\n✓     ONE +succeeded", last, re.M), last
    assert ("\x1b[31m" in text) == colors, "red"


# check


def test_check_of_a_project_without_problems(director):
    done = director("check")
    assert (done.returncode, done.stdout) == (0, "")
    assert "8 workflows" in done.stderr
    assert "no problems" in done.stderr


def test_check_names_every_problem_and_its_place(home, director):
    (home / "workflows" / "bad.yml").write_text("w.BAD:\n  tasks: [ONE]\n  querry: 1\nw.EMPTY: {}\n")
    (home / "tasks" / "broken.py").write_text("print('importing')\nimport nowhere_to_be_found\n")
    (home / ".env").write_text("X=1\nDIRECTOR_CONCURENCY=3\n")
    done = director("check", HOOK="")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert "tasks/broken.py:2:1: cannot be imported: ModuleNotFoundError" in done.stdout
    assert any(line.startswith("workflows/bad.yml:3:3: w.BAD: ") and "querry" in line for line in lines)
    assert any(line.startswith("workflows/bad.yml:4:1: w.EMPTY: ") for line in lines)
    assert any(re.match(r'workflows/w\.yml:\d+:3: source "github" is closed: set HOOK', line) for line in lines)
    assert ".env:2:1: DIRECTOR_CONCURENCY is not a setting; did you mean DIRECTOR_CONCURRENCY?" in lines
    assert "importing" in done.stderr
    assert f"{len(lines)} problems" in done.stderr
    found = json.loads(director("check", "--json", HOOK="").stdout)
    assert found["problems"] == lines


# Sources


@pytest.mark.parametrize("name", ["github", "other", "std", "bearer"])
def test_sign_prints_a_curl_line_that_verifies(home, director, name):
    file = home / "a body.json"
    file.write_text('{"id": "evt_1", "type": "x"}')
    done = director("sources", "sign", name, file, DIRECTOR_HOST="0.0.0.0")
    assert done.returncode == 0
    words = shlex.split(done.stdout)
    assert words[:2] == ["curl", "-sS"]
    assert words[words.index("--data-binary") + 1] == f"@{file}"
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/hooks/{name}", words[-1])
    headers = [tuple(words[n + 1].split(": ", 1)) for n, word in enumerate(words) if word == "-H"]
    preset = {"other": "stripe", "std": "standard", "bearer": "token"}.get(name, name)
    request = SignedRequest(method="POST", url=words[-1], headers=headers, body=file.read_bytes())
    secret = SECRETS["STD" if name == "std" else "HOOK"]
    assert verify(scheme(preset), [secret], request, now=time.time()).ok
    if name == "github":
        assert ("X-GitHub-Event", "push") in headers
        assert director("sources", "sign", name, file).stdout != done.stdout, "a fresh delivery id each time"


def test_a_dry_run_says_what_would_start_and_starts_nothing(home, director):
    (home / "body.json").write_text('{"number": 7}')
    done = director("sources", "test", "other", "body.json")
    assert done.returncode == 0
    assert done.stdout == 'w.STRICT starts with {"number":7}\n'
    (home / "body.json").write_text("{}")
    refused = director("sources", "test", "other", "body.json")
    assert "w.STRICT does not start" in refused.stdout
    assert "'number' is a required property" in refused.stdout
    other = director("sources", "test", "github", "body.json", "--event", "issues", "--json")
    assert json.loads(other.stdout) == {
        "event": "issues",
        "handshake": None,
        "starts": [],
        "relaunches": [],
        "others": [{"workflow": "w.STRICT", "reason": 'trigger 1: the event "issues" is not "push"'}],
    }
    assert json.loads(director("runs", "list", "--json").stdout)["runs"] == []


ODD = """
w.ANY: {tasks: [ONE], triggers: [{source: github}, {source: plain, event: push}]}
w.ODD: {tasks: [ONE], triggers: [{source: github, payload: {x: "[&x]"}}]}
sources: {plain: {scheme: hmac, header: X-Signature, secret: $HOOK}}
"""


@pytest.mark.parametrize(
    ("source", "body", "event", "says"),
    [
        ("plain", "{}", (), 'w.ANY does not start: trigger 2: the event "" is not "push"'),
        ("github", "{}", ("--event", "ping"), "nothing starts: this is a handshake, github-ping"),
        ("github", "{}", (), "w.ODD does not start: The payload of w.ODD cannot be written as JSON"),
        ("director", '{"workflow": "w.OFF"}', (), "w.OFF does not start: Workflow w.OFF is disabled"),
    ],
)
def test_a_dry_run_says_what_the_service_would_do(home, director, source, body, event, says):
    (home / "workflows" / "odd.yml").write_text(ODD)
    (home / "body.json").write_text(body)
    done = director("sources", "test", source, "body.json", *event)
    assert (done.returncode, says in done.stdout) == (0, True), done.stdout + done.stderr


def test_sign_and_send_beside_a_service(home, director):
    service = Service(home, **SECRETS)
    try:
        service.wait_up()
        (home / "body.json").write_text('{"id": 1}')
        sent = [
            director("sources", "sign", "github", "body.json", "--send", PORT=str(service.port)) for _ in range(2)
        ]
        for done in sent:
            assert (done.returncode, done.stderr) == (0, "HTTP 202\n")
        ids = {json.loads(done.stdout)["runs"][0]["id"] for done in sent}
        assert len(ids) == 2
        watched = director("runs", "watch", ids.pop())
        assert watched.returncode == 0
        assert re.search(r"^succeeded in", watched.stdout, re.M)
        refused = director(
            "sources", "sign", "github", "body.json", "--send", PORT=str(service.port), HOOK="other"
        )
        assert (refused.returncode, refused.stderr) == (
            1,
            "HTTP 401; `director deliveries list` has the reason\n",
        )
    finally:
        service.stop()
    nobody = director("sources", "sign", "github", "body.json", "--send", PORT=str(service.port))
    assert nobody.returncode == 1
    assert "Is the service running?" in nobody.stderr


def test_what_cannot_be_sent_is_said(home, director, redis_server):
    (home / "body.json").write_text("{}")
    sign = ("sources", "sign", "github", "body.json")
    for more in ((), ("--send",)):
        broken = director(*sign, "--event", "a\nX-Other: b", *more)
        assert (broken.returncode, broken.stdout) == (1, "")
        assert "which no header can hold" in broken.stderr
    no_web = director(*sign, "--send", PORT=redis_server.rpartition(":")[2].partition("/")[0])
    assert (no_web.returncode, "Is the service running?" in no_web.stderr) == (1, True), no_web.stderr
    assert "Traceback" not in no_web.stderr


FORM = "command=%2Frelaunch&text=01900000-0000-7000-8000-000000000000&trigger_id=1"


def test_a_dry_run_of_a_form_says_what_it_would_relaunch(home, director):
    (home / "workflows" / "slack.yml").write_text(
        "w.SLACK: {tasks: [ONE], triggers: [{source: slack, event: /relaunch, relaunch: text}]}\n"
        "sources: {slack: {secret: $SLACK}}\n"
    )
    (home / "command.txt").write_text(FORM)
    done = director("sources", "test", "slack", "command.txt", SLACK="s")
    assert done.stdout == "w.SLACK relaunches run 01900000-0000-7000-8000-000000000000\n"
    done = director("sources", "sign", "slack", "command.txt", SLACK="s")
    assert "Content-Type: application/x-www-form-urlencoded" in done.stdout
    assert "X-Slack-Signature: v0=" in done.stdout


def test_a_public_key_signs_nothing(home, director):
    (home / "workflows" / "discord.yml").write_text("sources: {discord: {secret: $PUBLIC}}\n")
    (home / "body.json").write_text("{}")
    private = "00" * 32
    public = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw().hex()
    done = director("sources", "sign", "discord", "body.json", PUBLIC=public)
    assert (done.returncode, "--key" in done.stderr) == (1, True)
    done = director("sources", "sign", "discord", "body.json", "--key", "PRIVATE", PUBLIC=public, PRIVATE=private)
    assert "X-Signature-Ed25519: " in done.stdout
    done = director(
        "sources", "sign", "discord", "body.json", "--key", "PRIVATE", PUBLIC=public, PRIVATE="11" * 32
    )
    assert (done.returncode, "would refuse body.json" in done.stderr) == (1, True)
    unset = director("sources", "sign", "discord", "body.json", "--key", "PRIVATE", PUBLIC=public)
    assert (unset.returncode, unset.stderr) == (1, "--key names PRIVATE, which is not set.\n")
    unset = director("sources", "sign", "discord", "body.json")
    assert unset.stderr == 'Source "discord" has no secret: PUBLIC is not set.\n'


def test_a_dry_run_of_the_built_in_source(home, director):
    (home / "body.json").write_text("{}")
    done = director("sources", "test", "director", "body.json")
    assert (done.returncode, "The body must be" in done.stderr) == (1, True)
    (home / "body.json").write_text('{"relaunch": "01900000-0000-7000-8000-000000000000", "from": "ONE"}')
    done = director("sources", "test", "director", "body.json")
    assert done.stdout == "it relaunches run 01900000-0000-7000-8000-000000000000 from ONE\n"


@pytest.mark.parametrize("mode", ["embedded", "redis"])
def test_the_inbox_of_a_running_service(home, director, request, mode):
    """Given a sender with another secret, then the list has the reason; what was accepted is played again."""
    env = {"DIRECTOR_REDIS_URL": request.getfixturevalue("redis_url")} if mode == "redis" else {}
    service = Service(home, **SECRETS, **env)
    try:
        service.wait_up()
        (home / "body.json").write_text('{"id": 1}')
        env |= {"PORT": str(service.port)}
        sign = ("sources", "sign", "github", "body.json", "--send")
        assert director(*sign, **env, HOOK="another").returncode == 1
        accepted = json.loads(director(*sign, **env).stdout)
        listed = director("deliveries", "list", **env)
        head, newest, oldest = listed.stdout.splitlines()
        assert head.split() == ["DELIVERY", "AT", "SOURCE", "EVENT", "VERDICT", "HTTP", "RUN", "REASON"]
        assert newest.split()[2:7] == ["github", "push", "accepted", "202", accepted["runs"][0]["id"]]
        assert "rejected  401   -" in oldest
        assert "bad_signature: the secret that is set does not make this signature (tried HOOK)" in oldest
        assert "another" not in listed.stdout
        shown = director("deliveries", "show", "latest", **env)
        assert "secret    HOOK" in shown.stdout
        assert shown.stdout.endswith('\n\n{"id": 1}\n')
        again = director("deliveries", "replay", accepted["delivery"], **env)
        assert (again.returncode, again.stderr) == (0, "")
        run_id, name = again.stdout.split()
        assert name == accepted["runs"][0]["workflow"]
        assert director("runs", "watch", run_id, **env).returncode == 0
        refused = director("deliveries", "replay", oldest.split()[0], **env)
        assert (refused.returncode, "nobody vouches for it" in refused.stderr) == (1, True)
        assert service.call("POST", "/hooks/%1b%5b2J%c2%9b0m%0aforged", {})[0] == 404
        listed = director("deliveries", "list", "--limit", "1", **env).stdout
        assert r"  \x1b[2J\x9b0m\nforged  " in listed, "what a stranger says is shown, and no terminal obeys it"
        assert r"source    \x1b[2J\x9b0m\nforged" in director("deliveries", "show", "latest", **env).stdout
        only = json.loads(
            director("deliveries", "list", "--verdict", "rejected", "--source", "github", "--json", **env).stdout
        )
        assert [entry["verdict"] for entry in only["deliveries"]] == ["rejected"]
    finally:
        service.stop()


def test_a_replay_without_a_service_sees_its_run_through(home, director):
    service = Service(home, **SECRETS)
    service.wait_up()
    (home / "body.json").write_text('{"id": 1}')
    sent = director("sources", "sign", "github", "body.json", "--send", PORT=str(service.port))
    service.stop()
    again = director("deliveries", "replay", json.loads(sent.stdout)["delivery"], "--json")
    (run,) = json.loads(again.stdout)["runs"]
    assert (again.returncode, "succeeded" in again.stderr) == (0, True)
    assert json.loads(director("runs", "show", run["id"], "--json").stdout)["status"] == "succeeded"
    assert director("deliveries", "show", "nothing").returncode == 1


def test_what_strangers_send_moves_no_cursor(home, director):
    """Given control characters and lines in the path of a request, in its type and in the reason."""
    from director.models import Delivery
    from director.store.tiny import TinyStore

    store = TinyStore(home / ".director")
    store.do(
        store.record(
            [
                (
                    Delivery(
                        id="01900000-0000-7000-8000-000000000001",
                        at="2030-01-31T08:00:00.000Z",
                        source="\x1b[2J\nverdict   accepted",
                        event="",
                        delivery="d-1",
                        verdict="rejected",
                        status=404,
                        reason='"\x9b31m\x07\nfake" is no run',
                        secret="HOOK",
                        runs=(),
                        size=3,
                        content_type="text/\u202ex",
                    ),
                    b"a\x1b]0;\x07\nb",
                )
            ]
        )
    )
    store.close()
    listed, shown = (director("deliveries", *words).stdout for words in (("list",), ("show", "d-1")))
    assert not {*"\x1b\x9b\x07\u202e"} & {*listed, *shown}
    assert len(listed.splitlines()) == 2
    assert r"\x1b[2J\nverdict   accepted" in listed
    assert not re.search("^(verdict   accepted|fake)", shown, re.M)
    assert shown.endswith("\n\na\\x1b]0;\\x07\nb\n")


# Beside services


def test_a_service_without_a_worker_is_named(home, director):
    service = Service(home, "up", "--no-worker", **SECRETS)
    try:
        service.wait_up()
        done = director("workflow", "run", "w.ONE")
        assert done.returncode == 0
        assert "runs without a worker: the run waits" in done.stderr
    finally:
        service.stop()


def test_with_redis_a_command_only_starts_and_follow_waits(home, director, redis_url):
    def run(*args):
        return director(*args, DIRECTOR_REDIS_URL=redis_url)

    done = run("workflow", "run", "w.ONE", "--json")
    started = json.loads(done.stdout)
    assert (done.returncode, started["status"]) == (0, "queued")
    waiting = start(home, "runs", "watch", started["id"], DIRECTOR_REDIS_URL=redis_url)
    assert "No worker has been seen" in waiting.stderr.readline()
    with worker(home, redis_url):
        out, _ = waiting.communicate(timeout=60)
        assert waiting.returncode == 0
        assert re.search(r"✓ ONE +succeeded", out)
        done = run("workflow", "run", "w.ONE", "--follow", "--json")
        assert json.loads(done.stdout)["status"] == "succeeded"


# Access tokens


def test_a_token_is_printed_once_listed_and_revoked(director):
    made = director(
        "tokens", "create", "--scope", "run", "--workflow", "w.ONE", "--expires", "90d", "--name", "CI"
    )
    assert made.returncode == 0
    assert re.fullmatch(r"director_[\w-]{43}\n", made.stdout)
    id_ = re.fullmatch(r"id ([0-9a-f]{8})\n", made.stderr)[1]
    listed = director("tokens", "list").stdout
    assert re.search(rf"^{id_}  run    w\.ONE      \S+  \S+  -          CI$", listed, re.M)
    (shown,) = json.loads(director("tokens", "list", "--json").stdout)["tokens"]
    assert (shown["id"], shown["scope"], shown["workflows"], shown["last_used_at"]) == (
        id_,
        "run",
        ["w.ONE"],
        None,
    )
    assert time_ms(shown["expires_at"]) - time_ms(shown["created_at"]) == 90 * 86_400_000
    assert made.stdout.strip() not in listed
    assert director("tokens", "revoke", id_).stdout == f"{id_}\n"
    assert json.loads(director("tokens", "list", "--json").stdout) == {"tokens": []}
    gone = director("tokens", "revoke", id_)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert f'No token has the id "{id_}"' in gone.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--scope"),
        (["--scope", "write"], "'read', 'run', 'admin'"),
        (["--scope", "read", "--workflow", "w.OEN"], 'no workflow is named "w.OEN"; did you mean "w.ONE"?'),
        (["--scope", "read", "--expires", "soon"], "--expires: must be a time such as 90d"),
        (["--scope", "read", "--name", "\x1b[2J"], "--name: must be a text"),
    ],
)
def test_a_token_that_makes_no_sense_is_wrong_usage(director, options, words):
    done = director("tokens", "create", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize("mode", ["embedded", "redis"])
def test_a_token_of_the_command_opens_a_running_service(home, director, redis_url, mode):
    env = {"DIRECTOR_REDIS_URL": redis_url} if mode == "redis" else {}
    made = json.loads(director("tokens", "create", "--scope", "read", "--json", **env).stdout)
    service = Service(home, "web", DIRECTOR_HOST="0.0.0.0", **env)
    try:
        service.wait_up()
        assert service.call("GET", "/runs")[0] == 401
        assert service.call("GET", "/runs", token=made["token"])[0] == 200
        assert service.call("POST", "/tick", token=made["token"])[0] == 403
        assert json.loads(director("tokens", "list", "--json", **env).stdout)["tokens"][0]["last_used_at"]
        assert director("tokens", "revoke", made["id"], **env).returncode == 0
        assert service.call("GET", "/runs", token=made["token"])[0] == 401
    finally:
        service.stop()
    assert made["token"] not in service.log.read_text()
