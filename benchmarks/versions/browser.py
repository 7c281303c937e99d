"""The probe in headless Chromium: a page served from here runs onnxruntime-web and posts what it found."""

import functools
import http.server
import json
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.versions.environments import Environment, MissingRuntimeError

_SECONDS = 600
_PAGE = """<!doctype html><script type="module">
import * as ort from "/runtime/ort.wasm.min.mjs";
import { tryFiles, timeFiles } from "/probe.mjs";
const found = { lines: [], failure: null };
try {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/runtime/";
  const job = await (await fetch("/job")).json();
  const read = async (path) => await (await fetch("/file?" + encodeURIComponent(path))).arrayBuffer();
  const tell = (line) => found.lines.push(line);
  if (job.rounds) tell(await timeFiles(ort, job, read, () => performance.now()));
  else await tryFiles(ort, job, read, tell);
} catch (error) {
  found.failure = String(error?.stack ?? error);
}
await fetch("/found", { method: "POST", body: JSON.stringify(found) });
</script>"""
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}


def run(environment: Environment, job_path: Path) -> Sequence[Mapping[str, Any]]:
    """The lines of a job, which asks for times where it has rounds.

    Raises MissingRuntimeError where the browser gives none.
    """
    job = json.loads(job_path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    done = threading.Event()
    handler = functools.partial(_Handler, job=job, package=Path(str(environment.folder)), found=found, done=done)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run"]
        browser = subprocess.Popen(
            [environment.command[0], *flags, f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            in_time = done.wait(_SECONDS)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    if not in_time or found["failure"]:
        raise MissingRuntimeError(f"chromium: {found.get('failure') or f'no result in {_SECONDS} s'}")
    lines: Sequence[Mapping[str, Any]] = found["lines"]
    return lines


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves the page, the probe, the runtime and the job's files; keeps what is posted."""

    def __init__(
        self, *arguments: Any, job: Mapping[str, Any], package: Path, found: dict[str, Any], done: threading.Event
    ) -> None:
        self._job, self._package, self._found, self._done = job, package, found, done
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with one of them; 404 for anything else."""
        parts = urllib.parse.urlsplit(self.path)
        allowed = {self._job["images"], *(file["path"] for file in self._job["files"])}
        content, kind = None, "application/octet-stream"
        if parts.path == "/":
            content, kind = _PAGE.encode(), "text/html"
        elif parts.path == "/job":
            content, kind = json.dumps(self._job).encode(), "application/json"
        elif parts.path == "/file" and urllib.parse.unquote(parts.query) in allowed:
            content = Path(urllib.parse.unquote(parts.query)).read_bytes()
        elif parts.path == "/probe.mjs":
            content, kind = Path(__file__).with_name("probe.mjs").read_bytes(), _TYPES[".mjs"]
        elif parts.path.startswith("/runtime/"):
            file = self._package / "node_modules" / "onnxruntime-web" / "dist" / Path(parts.path).name
            content = file.read_bytes() if file.is_file() else None
            kind = _TYPES.get(file.suffix, kind)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        """Keep what the page has found."""
        self._found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self._done.set()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""
