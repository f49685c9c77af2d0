"""`idc` in processes of its own that start fast: each is a fork of one that has imported torch and the like.

Importing takes seconds of processor time, and the tests start hundreds of processes. Only packages that read nothing
from the environment are imported beforehand, except that torch keeps the number of threads of the first process.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

IMPORTED = ("torch._dynamo", "torch.distributed.fsdp", "scipy.cluster.vq", "scipy.ndimage", "pandas", "pyarrow.dataset")
REQUEST_BYTES = 200_000


def run(
    arguments: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives for `python -m idc_cli.main ARGUMENTS`, with its output as text."""
    facts = {"arguments": arguments, "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
    ended, end = os.pipe()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, os.fdopen(ended) as answer:
        try:
            socket.send_fds(_parent(), [json.dumps(facts).encode()], [out.fileno(), err.fileno(), end])
        finally:
            os.close(end)
        status = answer.read()  # waits: the process that waits for the command closes the pipe
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, int(status), out.read(), err.read())


@cache
def _parent() -> socket.socket:
    """A connection to the process that forks; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([sys.executable, __file__], stdin=theirs, stdout=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve() -> dict[str, Any] | None:
    """Fork for every request; returns it in the process that is to run the command, and None at the end."""
    requests = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the commands
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not message:
            return None
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    out, err, end = descriptors
    command = os.fork()
    if command:
        for descriptor in (out, err):
            os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        os.write(end, str(status).encode())
        os._exit(0)
    os.close(end)
    for descriptor, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    return dict(json.loads(message))


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # a collection would copy all that the processes share
    request = _serve()
    if request is not None:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.path[:1] = [request["cwd"], *request["env"].get("PYTHONPATH", "").split(os.pathsep)]
        sys.argv[1:] = request["arguments"]
        runpy.run_module("idc_cli.main", run_name="__main__", alter_sys=True)
