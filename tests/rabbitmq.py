"""A private RabbitMQ node, of Debian's package, as processes of the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.conftest import free_port
from tests.processes import until

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQ:
    """A node on loopback ports, its files in a folder.

    Args:
        folder: outlives a killed node, so that it starts again with what it had.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        (folder / "plugins").write_text("[].\n")
        cookie = folder / ".erlang.cookie"
        cookie.write_text("TESTS")
        cookie.chmod(0o400)
        epmd = free_port()
        self._env = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{ON_LOOPBACK} +S 1:1",
        }
        self._log = folder / "console.log"
        # Erlang would start one that outlives the test.
        self._names = subprocess.Popen([shutil.which("epmd") or "epmd"], env=self._env)
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node; return when it answers."""
        with self._log.open("ab") as log:
            command = [SERVER]
            self._server = subprocess.Popen(command, env=self._env, stdout=log, stderr=log, start_new_session=True)
        until(self._greets, 30, "RabbitMQ")

    def kill(self) -> None:
        """SIGKILL the node."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None
            # The node is that process's child, and takes a moment longer to go.
            until(lambda: not self._listens())

    def stop(self) -> None:
        """SIGKILL the node, and the server of names beside it."""
        self.kill()
        self._names.kill()
        self._names.wait()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _greets(self) -> bool:
        """Return whether the node answers what is no AMQP with its own version of it."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"AMQP\x00\x00\x00\x00")
                return connection.recv(4) == b"AMQP"
        except OSError:
            return False
