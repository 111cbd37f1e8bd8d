"""An OpenAI-compatible server on this machine, and what it is asked."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


class Server:
    """An OpenAI-compatible server on the loopback. `answer(request body)` says what it does."""

    def __init__(self, answer):
        self.requests, self.open, self.most = [], 0, 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, dict(self.headers), None))
                status = 401 if self.headers.get("Authorization") == "Bearer wrong" else 200
                self.reply(status, b"{}")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer.open += 1
                    outer.most = max(outer.most, outer.open)
                    number = len(outer.requests)
                try:
                    answer(self, body, number)
                finally:
                    with lock:
                        outer.open -= 1

            def say(self, text, end="stop"):
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": end}
                self.reply(200, json.dumps({"choices": [choice]}).encode())

            def reply(self, status, content):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def question_of(body):
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def picture_of(body):
    """Kind and levels of the first picture shown."""
    url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    return url.partition(";base64,")[0], pictures_of(body)[0]


def pictures_of(body):
    """Levels of all pictures shown."""
    content = body["messages"][0]["content"]
    packed = [p["image_url"]["url"].partition(";base64,")[2] for p in content if p["type"] == "image_url"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in packed]
