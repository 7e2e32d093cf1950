#!/usr/bin/env python3
"""A web server with a memory: python3 server.py PORT

It listens on 127.0.0.1:PORT, counts its requests and remembers every path it was asked for. Each reply is
"Request No: N" and then all the paths so far, one a line, so that one reply shows whether its memory survived.
Standard library only.
"""
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
paths = []  # every path asked for; its length is the number of requests


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            paths.append(self.path)
            number = len(paths)
            body = f"Request No: {number}\n" + "".join(p + "\n" for p in paths)
        try:  # before the reply, so that whoever has the reply finds the line
            print(f"request {number}: {self.path}", flush=True)
        except OSError as why:  # stdout is gone: say so where we still can, and answer all the same
            print(f"cannot log request {number}: {why}", file=sys.stderr)
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *args):
        pass  # we log on stdout ourselves


class Server(ThreadingHTTPServer):
    daemon_threads = True  # SO_REUSEADDR is http.server's own default


def main():
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("usage: server.py PORT")
    try:
        server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    except (OSError, OverflowError) as why:
        sys.exit(f"server.py: cannot listen on 127.0.0.1:{sys.argv[1]}: {why}")
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped", flush=True)


main()
