"""A web server in a thread of the program, for programs that fetch."""

from __future__ import annotations

import contextlib
import http.server
import os
import socketserver
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def local_server(answer: Callable[[str], tuple[str, str] | None]) -> Iterator[str]:
    """Its address. `answer` gets a path, and gives a type and a text; None is answered by 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        wbufsize = -1  # an answer is one packet

        def do_GET(self) -> None:
            found = answer(self.path)
            if found is None:
                self.send_error(404)
                return
            kind, text = found
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 100

        def server_bind(self) -> None:
            # Without asking for a name, which may take seconds.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = "localhost", self.server_address[1]

    # Nobody between us, whatever the environment says.
    os.environ["no_proxy"] = "*"
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
