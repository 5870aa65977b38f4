"""What every program here begins and ends with."""

import os
import threading
import time

from iii import InitOptions, register_worker

try:
    from iii import HttpInvocationConfig, http
    from iii import IIIInvocationError as InvocationError
except ImportError:  # where later versions keep them
    from iii import InvocationError
    from iii_helpers.http import HttpInvocationConfig, http

HTTP = os.environ.get("III_TEST_HTTP", "")
STREAMS = os.environ.get("III_TEST_STREAMS", "")


def connect(name, url=None):
    return register_worker(url or os.environ["III_URL"], InitOptions(worker_name=name))


def call(iii, function_id, payload=None, **more):
    return iii.trigger({"function_id": function_id, "payload": {} if payload is None else payload, **more})


def until(what, condition, seconds=60):
    """Waits for `condition` to become true and returns what it said."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


class Inbox:
    """A handler that keeps what it is called with."""

    def __init__(self, answer=None):
        self.items, self.lock, self.answer = [], threading.Lock(), answer

    def __call__(self, data):
        with self.lock:
            self.items.append(data)
        return self.answer

    def wait(self, count=1, what="a call"):
        until(f"{what} ({count})", lambda: len(self.items) >= count)
        return self.items


def there(iii, *functions):
    """Waits until the engine knows these functions."""
    def known():
        listed = call(iii, "engine::functions::list", {"include_internal": True})["functions"]
        return set(functions) <= {function["function_id"] for function in listed}
    until(f"functions {functions}", known)


def done():
    print("ok", flush=True)
    os._exit(0)
