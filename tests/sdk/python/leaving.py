"""A worker that dies in the middle of a call, and an engine that is started anew under everybody."""

import os
import subprocess
import sys

from world import Inbox, InvocationError, call, connect, done, there, until

DYING = """
import os
from world import InvocationError, connect
iii = connect("dying")
async def die(data):
    os._exit(1)
iii.register_function("dying::die", die)
import time
time.sleep(600)
"""
iii = connect("survivor")
child = subprocess.Popen([sys.executable, "-c", DYING], cwd=os.path.dirname(os.path.abspath(__file__)))
there(iii, "dying::die")
try:
    call(iii, "dying::die")
    raise AssertionError("a dead worker answered")
except InvocationError as error:
    assert error.code == "invocation_stopped", error
child.wait()

other = connect("other")
heard = Inbox()
other.register_function("other::heard", heard)
other.register_function("other::double", lambda data: data["n"] * 2)
other.register_trigger({"type": "subscribe", "function_id": "other::heard", "config": {"topic": "py-after"}})
there(iii, "other::heard", "other::double")
call(iii, "state::set", {"scope": "py-leaving", "key": "kept", "value": 7})
print("restart the engine", flush=True)
sys.stdin.readline()


def works():
    try:
        return call(iii, "other::double", {"n": 21}, timeout_ms=2000) == 42
    except Exception:
        return False


until("calls work again", works)
assert call(iii, "state::get", {"scope": "py-leaving", "key": "kept"}) == 7


def published():
    call(iii, "publish", {"topic": "py-after", "data": {"still": "bound"}})
    return heard.items


assert until("the binding is there again", published)[0]["still"] == "bound"
done()
