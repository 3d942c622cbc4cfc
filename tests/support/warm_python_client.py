"""The executable of `warm_python.py`: asks its server to fork the process, stands in for it, and ends as it does.

Signals go on to the process, SIGINT to its group if this one leads a group, as from a terminal; killing this one kills
the process. What the server does not take is run by Python itself.
"""

import json
import os
import signal
import socket
import sys

HERE, REAL = os.path.dirname(os.path.realpath(sys.argv[0])), sys.executable
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_LOADING = ("HF_", "LANG", "LC_", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_")  # variables that modules read then
HARMLESS = ("HF_TOKEN", "PYTHONBREAKPOINT", "PYTHONIOENCODING", "PYTHONPATH")  # read when used, or heeded by the server
SCRIPTS = ("/bin/raydense", "/ray/_private/workers/default_worker.py")


def taken(arguments, environment):
    """Whether the process can begin after the imports: nothing that these read differs."""
    with open(f"{HERE}/environment") as file:
        before = json.load(file)
    names = {n for n in {*before, *environment} if n.startswith(AT_LOADING) and n not in HARMLESS}
    program = arguments[0] if arguments else ""
    inline = program == "-c" and "from multiprocessing" not in arguments[1]  # that one inherits open files
    known = inline or program.endswith(SCRIPTS) or arguments[:2] == ["-m", "raydense.cli"]
    return known and all(before.get(name) == environment.get(name) for name in names)


def stand_in(arguments):
    leads = os.getpgrp() == os.getpid()
    request = json.dumps({
        "arguments": arguments,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "leads": leads,
        "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)],
    }).encode()  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(f"{HERE}/socket")
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        process = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
        with open(f"{HERE}/{os.getpid()}.pid", "w") as file:
            file.write(f"{process}\n")

        def pass_on(number, frame):
            (os.killpg if leads and number == signal.SIGINT else os.kill)(process, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        answer = server.recv(4, socket.MSG_WAITALL)
    return os.waitstatus_to_exitcode(int.from_bytes(answer, "big")) if answer else 1


def main():
    arguments = sys.argv[1:]
    if not taken(arguments, os.environ):
        # where this stands in for an environment's Python, what the process starts in turn shall be asked for here, too
        os.execv(REAL, [sys.argv[0] if os.path.islink(sys.argv[0]) else REAL, *arguments])
    code = stand_in(arguments)
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
