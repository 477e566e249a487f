"""A stand-in for Kaggle on the loopback, for the real `kaggle` client: one archive behind a redirect, and its moods.

    with KaggleServer(archive) as server:
        server.drops = 1                  # cut the next body in the middle
        ...
        assert server.ranges == [None, "bytes=512-"]
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class KaggleServer:
    """Context manager; the attributes may be changed while it runs.

    Attributes:
        data: bytes of the archive.
        status: answer every call with this error; None to work.
        blob_status: the same for the storage behind the redirect, for requests with a Range.
        drops: how many of the next bodies to cut in the middle.
        corrupt: how many of the next bodies to fill with zeros.
        stall: send half a body and wait until the client has gone.
        token: what a valid access token is; None to know no tokens.
        ranges: the Range of each request for the archive, so far.
        secrets: the Authorization of each call, so far.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.status: int | None = None
        self.blob_status: int | None = None
        self.drops = self.corrupt = 0
        self.stall = False
        self.token: str | None = None
        self.ranges: list[str | None] = []
        self.secrets: list[str | None] = []
        self.http = Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"kaggle": self}))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "KaggleServer":
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client may hang up in the middle of a body; that is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kaggle: KaggleServer

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status: int) -> None:
        self.reply(status, {"code": status, "message": f"says the server, {status}"})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.kaggle.secrets.append(self.headers.get("Authorization"))
        if self.kaggle.status:
            self.error(self.kaggle.status)
        elif self.path.endswith("/IntrospectToken"):
            valid = json.loads(sent).get("token") == self.kaggle.token
            self.reply(200, {"active": valid, "username": "someone" if valid else "", "userId": 1})
        elif self.path.endswith("DatasetApiService/DownloadDataset"):
            self.send_response(302)
            self.send_header("Location", f"{self.kaggle.address}/archive.zip?signature=SIGNED")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.error(404)

    def do_GET(self) -> None:
        kaggle, data, stall = self.kaggle, self.kaggle.data, self.kaggle.stall
        wanted = self.headers.get("Range")
        kaggle.ranges.append(wanted)
        if wanted and kaggle.blob_status:
            return self.error(kaggle.blob_status)
        start = 0
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
            start = int(match[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        for name, value in {"Accept-Ranges": "bytes", "ETag": '"v1"', "Content-Type": "application/zip",
                            "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT",
                            "Content-Length": str(len(data) - start)}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if kaggle.corrupt:
            kaggle.corrupt -= 1
            data = bytes(len(data))
        half = start + (len(data) - start) // 2
        if kaggle.drops or stall:
            self.wfile.write(data[start:half])
            self.wfile.flush()
            if stall:
                self.rfile.read(1)  # returns when the client closes
            kaggle.drops -= not stall
            self.close_connection = True
            return self.connection.shutdown(2)
        self.wfile.write(data[start:])
