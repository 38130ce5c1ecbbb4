"""A PostgreSQL server for tests: real, in a directory of its own, on a Unix socket."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from edgepack_fleet.adapters.database import Database
from fleet_rig import wait

USER = "postgres"
COMMANDS = {"listen_addresses": "", "fsync": "off", "max_connections": "200"}


def find_server() -> Path | None:
    """Return the directory of `postgres` and `initdb`; Debian keeps them off the path."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def require_server() -> None:
    """Skip the test where PostgreSQL is not installed."""
    if find_server() is None and os.environ.get("EDGEPACK_REQUIRE_POSTGRESQL") != "1":
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")


@dataclass
class Postgres:
    """A server. It is stopped without ceremony, as nothing in it is kept."""

    bin: Path
    home: Path
    process: subprocess.Popen[bytes] | None = None
    template: str | None = None

    def start(self) -> None:
        words = [str(self.bin / "postgres"), "-D", str(self.home / "data"), "-k", str(self.home)]
        for name, value in COMMANDS.items():
            words += ["-c", f"{name}={value}"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, **_nobody_special())
        wait("PostgreSQL to answer", self._answers)

    def kill(self) -> None:
        """End every process of the server at once."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [self.process.pid, *map(int, children.read_text().split())]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait("its processes to be gone", lambda: not any(_runs(pid) for pid in pids))

    def url(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={self.home}"

    def create(self, *, migrated: bool = False) -> str:
        """Return the URL of a new database; MIGRATED: a copy of one that has all tables."""
        name = f"t{uuid.uuid4().hex}"
        template = self._template() if migrated else "template1"
        self._say(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, url: str) -> None:
        name = url.rpartition("/")[0] and url.split("@/")[1].split("?", maxsplit=1)[0]
        self._say(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _template(self) -> str:
        if self.template is None:
            self._say("CREATE DATABASE migrated")
            database = Database(self.url("migrated"))
            database.migrate()
            database.close()
            self.template = "migrated"
        return self.template

    def _say(self, words: str) -> None:
        where = f"host={self.home} user={USER} dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(words.encode())

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home / "log").read_text()
        try:
            self._say("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _nobody_special() -> dict[str, str]:
    """PostgreSQL refuses to run as root."""
    return {"user": USER, "group": USER} if os.getuid() == 0 else {}


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Yield a running server."""
    folder = find_server()
    assert folder is not None
    home = Path(tempfile.mkdtemp(prefix="edgepack-pg-"))
    if os.getuid() == 0:
        shutil.chown(home, pwd.getpwnam(USER).pw_uid)
    server = Postgres(folder, home)
    try:
        # Sorted as a person would, which is not as bytes are: what relies on that is found out.
        subprocess.run(
            [folder / "initdb", "-D", home / "data", "-U", USER, "--auth=trust", "--no-sync",
             "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en"],
            check=True, capture_output=True, **_nobody_special(),
        )  # fmt: skip
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.send_signal(signal.SIGQUIT)
            server.process.wait(20)
        shutil.rmtree(home, ignore_errors=True)
