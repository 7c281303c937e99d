"""Runs commands of the documentation as processes of their own, with small budgets, importing torch only once.

A process imports everything once and forks for each command. What is smaller than users have it: images and steps of
calibration and of synthetic images, candidates for scales, the embedded data, and how long latency is measured.
Commands are as they stand in the text.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

BUDGET = {"samples": 16, "iters": 2, "correction_iters": 1, "search_samples": 8}
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = dict(program={program!r}, arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.makefile().read() or 70))
"""
PROGRAMS = ("pdq-export", "python")


def write_clients(folder: Path, address: str) -> None:
    """Programs that ask the server at ``address`` to do what they are called for."""
    for program in PROGRAMS:
        client = folder / program
        client.write_text(CLIENT.format(python=sys.executable, address=address, program=program))
        client.chmod(0o755)


def _import_everything(example: Path) -> None:
    import pdq_export
    import pdq_export.cli.example
    import pdq_export.numerics.search
    import pdq_export.synthesis.learn
    import pdq_export.validate.latency
    from pdq_export.commands import bench, settle

    for module in pkgutil.walk_packages(pdq_export.__path__, "pdq_export."):
        if module.name.rpartition(".")[2] not in ("__main__", "fresh_process"):
            importlib.import_module(module.name)
    _replace(pdq_export.validate.latency, "SECONDS", 0.0)
    _replace(pdq_export.numerics.search, "FRACTIONS", 8)  # candidates for a scale
    _replace(pdq_export.synthesis.learn, "_FEWEST_STEPS", 8)
    settle.choose_options = _small(settle.choose_options)
    pdq_export.cli.example.resources.files = lambda _: example
    bench._load = _with_last(bench._load, 1)  # loads
    bench._time = _with_last(bench._time, 0.0)  # seconds


def _replace(module: ModuleType, name: str, value: float) -> None:
    assert hasattr(module, name), f"{module.__name__} has no {name} that could be replaced"
    setattr(module, name, value)


def _small(chosen: Callable[..., Any]) -> Callable[..., Any]:
    def choose_options(**asked: Any) -> Any:
        options = chosen(**asked)
        least = {name: min(getattr(options, name), most) for name, most in BUDGET.items()}
        return dataclasses.replace(options, **least)

    return choose_options


def _with_last(function: Callable[..., Any], last: Any) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments[:-1], last)


def _run(program: str, arguments: list[str]) -> int:
    if program == "pdq-export":
        from pdq_export.cli import main

        sys.argv = [program, *arguments]
        main()
    first, *rest = arguments
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-":
        sys.argv, sys.path[0] = arguments, ""
        exec(compile(sys.stdin.read(), "-", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).parent.resolve())
        runpy.run_path(first, run_name="__main__")
    return 0


def _status(program: str, arguments: list[str]) -> int:
    try:
        return _run(program, arguments)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


def _serve(client: socket.socket) -> None:
    data, descriptors, *_ = socket.recv_fds(client, 2**16, 3)
    while not data.endswith(b"\n"):
        data += client.recv(2**16)
    request = json.loads(data)
    child = os.fork()
    if child == 0:
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
        # Those of before have been asked where in the file they are, and a pipe does not tell.
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        status = _status(request["program"], request["arguments"])
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    client.sendall(str(os.waitstatus_to_exitcode(ended)).encode())


def main(address: str, example: str) -> None:
    """Serve at this address until stdin ends, which says that whoever asked is gone.

    ``example``: the folder with what `pdq-export example` writes.
    """
    _import_everything(Path(example))
    gc.freeze()  # or every child would copy what its collector goes over
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            with client:
                if os.fork() == 0:
                    _serve(client)
                    os._exit(0)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    main(*sys.argv[1:])
