"""Functions that are HTTP endpoints elsewhere: the engine makes the request, callers see a function."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from world import HttpInvocationConfig, InvocationError, call, connect, done, there


class Prices(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, answer = 200, {"total": asked["qty"] * 1.5, "key": self.headers["x-key"]}
        answer["caller"] = asked.get("_caller_worker_id")
        if asked["qty"] == 0:
            status, answer = 422, {"error": {"code": "empty_basket", "message": "nothing to price"}}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Prices)
threading.Thread(target=server.serve_forever, daemon=True).start()
iii = connect("outside")
iii.register_function("outside::price", HttpInvocationConfig(
    url=f"http://127.0.0.1:{server.server_port}/price", method="POST", headers={"x-key": "let-me-in"}))
there(iii, "outside::price")

# Who calls is said by the engine, whatever the caller says.
priced = call(iii, "outside::price", {"qty": 3, "_caller_worker_id": "somebody else"})
assert priced.pop("caller") not in (None, "somebody else")
assert priced == {"total": 4.5, "key": "let-me-in"}
try:
    call(iii, "outside::price", {"qty": 0})
    raise AssertionError("nothing was priced")
except InvocationError as error:
    assert error.code == "empty_basket" and "nothing to price" in str(error), error
done()
