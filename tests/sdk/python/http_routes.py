"""Functions behind HTTP routes: parameters, bodies, statuses, middleware, and bodies that are streamed."""

import asyncio
import json
import urllib.error
import urllib.request

from world import HTTP, call, connect, done, http, there, until

iii = connect("web")


async def user(data):
    return {"status_code": 201, "headers": {"x-from": "python"},
            "body": {"id": data["path_params"]["id"], "full": data["query_params"].get("full"), "sent": data["body"]}}


async def upload(request, response):
    size = 0
    async for piece in request.request_body.stream:
        size += len(piece)
    await response.writer.send_message_async(json.dumps({"type": "set_status", "status_code": 202}))
    await response.writer.write(b"got ")
    await response.writer.write(str(size).encode())
    await response.writer.close_async()


go_on = asyncio.Event()


async def ticks(request, response):
    await response.writer.write(b"one ")
    await go_on.wait()
    await response.writer.write(b"two")
    await response.writer.close_async()


async def told_to_go_on(data):
    go_on.set()


async def gate(data):
    if data["request"]["headers"].get("x-key") != "let-me-in":
        return {"action": "respond", "response": {"status_code": 401, "body": {"error": "no key"}}}
    return {"action": "continue"}


async def broken(data):
    raise ValueError("a fault of the handler")


iii.register_function("web::user", user)
iii.register_function("web::upload", http(upload))
iii.register_function("web::ticks", http(ticks))
iii.register_function("web::go-on", told_to_go_on)
iii.register_function("web::gate", gate)
iii.register_function("web::broken", broken)
there(iii, "web::user", "web::upload", "web::ticks", "web::go-on", "web::gate", "web::broken")
for function, path, method, more in [
    ("web::user", "py/users/:id", "POST", {}),
    ("web::upload", "py/upload", "PUT", {}),
    ("web::ticks", "py/ticks", "GET", {}),
    ("web::user", "py/guarded/:id", "POST", {"middleware_function_ids": ["web::gate"]}),
    ("web::broken", "/py/broken", "GET", {}),
]:
    iii.register_trigger({"type": "http", "function_id": function,
                          "config": {"api_path": path, "http_method": method, **more}})


def ask(method, path, body=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{HTTP}/{path}", data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


until("the routes", lambda: ask("GET", "py/broken")[0] == 500)
status, headers, body = ask("POST", "py/users/42?full=1", b'{"name": "Ada"}', content_type="application/json")
assert (status, headers["x-from"]) == (201, "python"), (status, headers)
assert json.loads(body) == {"id": "42", "full": "1", "sent": {"name": "Ada"}}, body
assert ask("POST", "py/guarded/1", b"{}")[0] == 401
assert ask("POST", "py/guarded/1", b"{}", x_key="let-me-in")[0] == 201
status, _, body = ask("GET", "py/broken")
assert status == 500 and json.loads(body)["error"]["code"] == "invocation_failed", body
assert ask("GET", "py/nowhere")[0] == 404
status, _, body = ask("PUT", "py/upload", b"x" * 5_000_000, content_type="application/octet-stream")
assert (status, body) == (202, b"got 5000000"), (status, body)
with urllib.request.urlopen(f"{HTTP}/py/ticks", timeout=60) as answer:
    assert answer.read(4) == b"one "  # while its handler still waits
    call(iii, "web::go-on")
    assert answer.read() == b"two"
done()
