"""A hub on 127.0.0.1 that misbehaves, and command lines that ask it: `python hub_calls.py JOBS`.

JOBS is JSON, `[[mode, arguments], ...]`; the answer is one JSON list of `[status, out, err]`, and
the paths that were asked for. A process of its own, since the clients read HF_ENDPOINT once.
"""

import contextlib
import http.server
import io
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

SHA = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """mode: a status, or how it misbehaves; `serve` and `break` have the files of `folder`."""

    mode, folder, asked = "404", Path(), []
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = urlparse(self.path).path
        self.asked.append(path)
        if self.mode.isdigit():
            self.answer(b'{"error": "x"}', int(self.mode))
        elif self.mode == "page":
            self.answer(b"<html>please log in</html>")
        elif self.mode == "other":
            self.answer(b"{}")
        elif self.mode == "silent":
            time.sleep(3)
            self.leave()
        elif self.mode == "gone":
            self.leave()
        elif self.mode == "half":
            self.answer(b"{", length=1000)
        else:
            self.serve(path)

    do_HEAD = do_GET

    def answer(self, body, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": length or len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            if length:
                self.leave()

    def leave(self):
        self.close_connection = True
        self.connection.close()

    def serve(self, path):
        names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))
        if "/resolve/" in path:
            body = (self.folder / re.split("/(?:main|0+)/", path)[1]).read_bytes()
            broken = self.mode == "break" and path.endswith(".safetensors")
            headers = {"ETag": f'"{hash(path)}"', "X_Repo_Commit": SHA}
            if self.command == "HEAD":
                self.answer(b"", length=len(body), **headers)
            elif broken:
                self.answer(body[:100], length=len(body), **headers)
            else:
                self.answer(body, **headers)
        elif "/tree/" in path:
            sizes = [(name, (self.folder / name).stat().st_size) for name in names]
            tree = [{"type": "file", "path": n, "size": size, "oid": n} for n, size in sizes]
            self.answer(json.dumps(tree).encode(), Content_Type="application/json")
        else:
            info = {"id": "some/model", "sha": SHA, "siblings": [{"rfilename": n} for n in names]}
            self.answer(json.dumps(info).encode(), Content_Type="application/json")


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    limits = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "1")
    os.environ.update(limits, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
    from icp_jax.cli import main as run

    done = []
    for mode, arguments in json.loads(sys.argv[1]):
        Hub.mode, Hub.asked = mode, []
        Hub.folder = Path(os.environ.get("SERVED", "."))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = run(arguments)
            except BaseException as error:
                status = repr(error)
        done.append([status, out.getvalue(), err.getvalue(), Hub.asked])
    print(json.dumps(done))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
