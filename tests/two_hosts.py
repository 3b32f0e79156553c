"""Two hosts on one machine: each has a name, an address, a process table and a /dev/shm of its own.

They are Linux namespaces: hosta, where commands are started, and hostb, which hosta reaches over a
veth link and by a stand-in for ssh. Both see this machine's files. Nothing of it has a name that
could stay behind: all ends with the first process of hosta, and that one with this process.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import ROOT

TOOLS = ("setpriv", "unshare", "nsenter", "mount", "ip")
NAMESPACES = "--uts --ipc --mount --pid --mount-proc --fork --kill-child"

# The first process of each host: NAME, ADDRESS, and the folder with a file of both. The kernel
# needs a while until a link is up, and before that MPI refuses to begin.
HOST = """set -e
hostname $1
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /dev/shm
mount --bind $3/hosts /etc/hosts
until ip link set eth0 up 2>/dev/null; do sleep 0.01; done
ip link set lo up
ip address add $2/24 dev eth0
until grep -q up /sys/class/net/eth0/operstate; do sleep 0.01; done
touch $3/$1
exec sleep infinity
"""
HOSTB = f"""ip link add eth0 type veth peer name eth0 netns 1
exec unshare {NAMESPACES} sh $0/host hostb 10.99.0.2 $0
"""
HOSTA = """unshare --net sh -c "$1" $0 &
exec sh $0/host hosta 10.99.0.1 $0
"""

# As mpiexec calls it: [-x] HOST COMMAND...
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
shift
exec nsenter --all --target %s sh -c "$*"
"""


class TwoHosts:
    """Both, until the block ends; a folder for their own files."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> "TwoHosts":
        if os.geteuid() or not all(map(shutil.which, TOOLS)):
            pytest.skip(f"two hosts on one machine take root and {', '.join(TOOLS)}")
        (self._folder / "hosts").write_text("10.99.0.1 hosta\n10.99.0.2 hostb\n")
        (self._folder / "host").write_text(HOST)
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", *NAMESPACES.split()]
        said = self._folder / "errors"
        with open(said, "wb") as errors:
            self._process = subprocess.Popen(
                [*command, "sh", "-c", HOSTA, self._folder, HOSTB],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        names, end = [self._folder / "hosta", self._folder / "hostb"], time.monotonic() + 10
        while not all(name.exists() for name in names):
            if said.stat().st_size or time.monotonic() > end:
                self.__exit__()
                why = said.read_text().strip() or "they took too long"
                pytest.skip(f"two hosts cannot be made on this machine: {why}")
            time.sleep(0.01)
        hosta = child_of(self._process.pid)
        hostb = child_of(child_of(hosta))
        self._processes = {"hosta": hosta, "hostb": hostb}
        ssh = self._folder / "ssh"
        ssh.write_text(SSH % number_in(hosta, hostb))
        ssh.chmod(0o755)
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def popen(self, command, **options) -> subprocess.Popen:
        """The command, started on hosta."""
        environment = {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(self._folder / "ssh")}
        environment |= os.environ | options.pop("env", {})
        enter = ["nsenter", "--all", "--target", str(self._processes["hosta"]), f"--wd={ROOT}"]
        return subprocess.Popen([*enter, *command], cwd=ROOT, env=environment, **options)

    def run(self, host: str, *command) -> str:
        """What a command says there."""
        enter = ["nsenter", "--all", "--target", str(self._processes[host])]
        command = [*enter, *map(str, command)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def lose_hostb(self) -> None:
        """Every process there, at once."""
        os.kill(self._processes["hostb"], signal.SIGKILL)

    def cut(self) -> None:
        """The link: no message says so."""
        self.run("hosta", "ip", "link", "set", "eth0", "down")


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


def number_in(host: int, process: int) -> int:
    """What a process is called in the table of another one."""
    status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in (host, process)}
    depth = len(status[host].split("NSpid:")[1].split("\n")[0].split())
    return int(status[process].split("NSpid:")[1].split("\n")[0].split()[depth - 1])
