"""A board of a pool, its own end: what a server of TVM's RPC answers beside TVM's own functions.

The server gives each session a process and a folder of its own and takes files into it. Here the session gets one
function more: it takes a request in JSON, starts measuring processes as on any machine, and passes requests on to
them. TVM carries files and calls; what is timed is timed by ``mobilec.latency.worker``, here.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobilec import __version__
from mobilec.errors import BackendError, MobilecError
from mobilec.latency.channel import Worker, local_command

FUNCTION = "mobilec.board.ask"
ENGINES = {"onnx": "onnxruntime", "tvm": "tvm"}  # backends that boards run -> the module that does

_workers: dict[int, tuple[Worker, str]] = {}  # of this session, with the folder of its artefact


def register() -> None:
    """Called once in a server's process; its sessions are forks of it, and have the function too."""
    import tvm_ffi

    # What a session is forked from must know the function: other ways to start a process begin without it.
    multiprocessing.set_start_method("fork", force=True)
    tvm_ffi.register_global_func(FUNCTION, ask, override=True)


def ask(text: str) -> str:
    """Answer one request: ``{"ok": ...}``, or ``{"error": {"kind", "message", "hint", "detail"}}``."""
    try:
        return json.dumps({"ok": _obey(json.loads(str(text)))})
    except MobilecError as error:
        kind, message, hint, detail = type(error).__name__, error.message, error.hint, error.detail
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind, message, hint, detail = BackendError.__name__, f"{type(error).__name__}: {error}", "", ""
    return json.dumps({"error": {"kind": kind, "message": message, "hint": hint, "detail": detail}})


def _obey(request: dict[str, Any]) -> Any:
    match request:
        case {"do": "facts"}:
            from mobilec.latency.machine import read_facts

            return {"version": __version__, "facts": asdict(read_facts())}
        case {"do": "state"}:
            from mobilec.latency.machine import read_state

            return asdict(read_state())
        case {"do": "refusal", "backend": str(backend), "options": dict(options)}:
            return _refusal(backend, options)
        case {"do": "folder", "name": str(name)}:
            (_work_folder() / name).mkdir()
            return None
        case {"do": "start", "id": int(number), "label": str(label), "folder": str(folder), "timeout_secs": timeout}:
            path = str(_work_folder() / folder)
            _workers[number] = Worker(label, local_command(), timeout_secs=float(timeout)), path
            return None
        case {"do": "relay", "id": int(number), "request": dict(inner), "stage": str(stage), "takes_secs": takes}:
            worker, path = _workers[number]
            if "path" in inner:
                inner = {**inner, "path": path}
            if "folder" not in inner:
                return worker.ask(inner, stage=stage, takes_secs=float(takes))
            with tempfile.TemporaryDirectory(prefix="mobilec-ops-") as folder:
                return worker.ask({**inner, "folder": folder}, stage=stage, takes_secs=float(takes))
        case {"do": "end", "id": int(number)}:
            worker, _ = _workers.pop(number)
            worker.kill()
            worker.reap()
            return None
    raise BackendError(f"the board does not know the request {str(request)[:80]!r}")


def _work_folder() -> Path:
    """Where the server puts what the session sends; it removes the folder after the session."""
    import tvm_ffi

    return Path(str(tvm_ffi.get_global_func("tvm.rpc.server.workpath")(".")))


def _refusal(backend: str, options: dict[str, Any]) -> str:
    """Why this machine cannot run such an artefact; empty if it can."""
    import importlib.util

    if backend not in ENGINES:
        return f"{backend} artefacts do not run in pools; {' and '.join(ENGINES)} ones do"
    if importlib.util.find_spec(ENGINES[backend]) is None:
        return f"{ENGINES[backend]} is not installed there"
    if backend == "tvm":
        from mobilec.export.kernels.cpu import find_cpu, missing_instructions, this_architecture
        from mobilec.export.native import LINUX_NAMES
        from mobilec.latency.devices.fitness import fitting_cpu

        here, cpu = this_architecture(), options.get("cpu_model", "another CPU")
        flags = [LINUX_NAMES.get(name, name) for name in find_cpu().features]
        fitting = fitting_cpu(here, flags)
        again = f"; repeat its export with --to tvm --cpu {fitting}" if fitting else ""
        if options.get("architecture", here) != here:
            return f"it is compiled for {cpu} ({options['architecture']}), the board is {here}{again}"
        missing = missing_instructions(list(options.get("instructions", ())))
        if missing:
            return f"it is compiled for {cpu}, and the board has no {', '.join(missing)}{again}"
    return ""
