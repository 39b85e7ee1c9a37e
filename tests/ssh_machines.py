"""Machines that are reached by ssh: on this one, each with an address, an sshd and a home folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.machines import is_alive
from tests.traps import wait_for

SBIN = "/usr/sbin"
MARK = "SSH_MACHINES"
"""In the environment of whatever runs on behalf of a set of machines, with the machine's name where there is one."""


def obstacle() -> str | None:
    """Why there can be no such machines here."""
    missing = [program for program in ("sshd", "ssh", "ssh-keygen", "rsync", "tmux") if _find(program) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian's openssh-server, rsync, tmux)"
    if os.getuid() == 0 and not Path("/run/sshd").is_dir():
        try:
            Path("/run/sshd").mkdir(mode=0o755)  # as the package's service does; an sshd of root refuses to be without
        except OSError as error:
            return f"an sshd of root needs /run/sshd: {error}"
    return None


class SshMachines:
    """Machines by name. `command_environment` is that of a person at another machine, who can reach them all."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        self.folder, self.addresses = folder, addresses
        self.key = folder / "key"
        self.port = free_port()
        self._mark = uuid.uuid4().hex
        # Ray's sockets lie in these, and a socket's path has at most 107 bytes.
        self._short = Path(tempfile.mkdtemp(prefix="ssh-"))
        self._keygen(self.key)
        self._keygen(folder / "host-key")
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        programs = folder / "bin"
        programs.mkdir()
        # Ray cannot be told a port; ssh looks for `~` where the user really lives; and sockets are to go with the rest.
        options = f"-F /dev/null -p {self.port} -i {self.key} -o ControlPath={self._short}/%C"
        ssh = programs / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {_find("ssh")} {options} "$@"\n')
        ssh.chmod(0o755)
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        for name, address in addresses.items():
            self.home(name).mkdir()
            # A login shell forgets its PATH, and then reads this.
            (self.home(name) / ".bashrc").write_text(f'export PATH="{programs}:$PATH"\n')
            self._servers[name] = self._serve(name, address)
        self.home("person").mkdir()
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.home("person")), **self._own("person")}
        # Not what a Ray in this process has left in its environment: that tokens are asked for, for one.
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.command_environment = {**others, **own}

    def home(self, name: str) -> Path:
        return self.folder / f"home-of-{name}"

    def processes(self, name: str = "") -> set[int]:
        """What runs on a machine, or on all of them and for the person."""
        mark = f"{MARK}={self._mark}-{name}".encode()
        parents: dict[int, int] = {}
        found = {server.pid for at, server in self._servers.items() if name in ("", at) and server.poll() is None}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile, or is not ours
                process = int(folder.name)
                parents[process] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (folder / "environ").read_bytes().split(b"\0")
                if any(word == mark or (not name and word.startswith(mark)) for word in words):
                    found.add(process)
        # Some write their title over their environment.
        while more := {process for process, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {os.getpid()}

    def kill(self, name: str = "") -> None:
        """What a power cut does to one machine, or to all."""
        while running := {process for process in self.processes(name) if is_alive(process)}:
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for server in self._servers.values():
                server.poll()

    def close(self) -> None:
        self.kill()
        for server in self._servers.values():
            server.wait()
        shutil.rmtree(self._short, ignore_errors=True)

    def _own(self, name: str) -> dict[str, str]:
        temporary = self._short / name
        temporary.mkdir()
        folders = dict.fromkeys(("RAY_TMPDIR", "TMPDIR", "TMUX_TMPDIR"), str(temporary))
        return {MARK: f"{self._mark}-{name}", **folders}

    def _serve(self, name: str, address: str) -> subprocess.Popen[bytes]:
        variables = {"HOME": str(self.home(name)), **self._own(name)}
        config = self.folder / f"sshd-{name}.conf"
        lines = [
            f"ListenAddress {address}:{self.port}",
            f"HostKey {self.folder / 'host-key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "MaxStartups 100",
            "SetEnv " + " ".join(f'"{key}={value}"' for key, value in variables.items()),
            # From the folder that is the home here: sshd itself begins in the one that the user really has.
            'ForceCommand cd && eval "$SSH_ORIGINAL_COMMAND"',
        ]
        config.write_text("\n".join(lines) + "\n")
        log = self.folder / f"sshd-{name}.log"
        server = subprocess.Popen([str(_find("sshd")), "-D", "-f", str(config), "-E", str(log)], start_new_session=True)
        wait_for(
            f"the sshd of {name}",
            lambda: server.poll() is not None or (log.exists() and "Server listening" in log.read_text()),
        )
        assert server.poll() is None, log.read_text()
        return server

    @staticmethod
    def _keygen(path: Path) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}")
