"""With the published Python SDK: offers python::double, calls node::triple ten thousand times, expects a typed error."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from iii import IIIInvocationError, InitOptions, register_worker

CALLS = int(os.environ.get("III_TEST_CALLS", "10000"))
AT_ONCE = 32

iii = register_worker(os.environ["III_URL"], InitOptions(worker_name="python-worker"))
asked = 0
all_asked = threading.Event()


async def double(data):
    global asked
    if data.get("fail"):
        raise ValueError("asked to fail")
    asked += 1
    if asked == CALLS:
        all_asked.set()
    return {"value": data["value"] * 2}


def triple(number):
    answer = iii.trigger({"function_id": "node::triple", "payload": {"value": number}})
    return answer["value"] == number * 3


def there(function):
    functions = iii.trigger({"function_id": "engine::functions::list", "payload": {}})["functions"]
    return any(known["function_id"] == function for known in functions)


iii.register_function("python::double", double)
while not there("node::triple"):
    time.sleep(0.1)
with ThreadPoolExecutor(AT_ONCE) as threads:
    answered = sum(threads.map(triple, range(CALLS)))
try:
    iii.trigger({"function_id": "node::triple", "payload": {"fail": True}})
    typed_error = False
except IIIInvocationError as error:
    typed_error = error.code == "invocation_failed" and "asked to fail" in str(error)
all_asked.wait()
# The other side still expects its own typed error.
time.sleep(1)
print(json.dumps({"answered": answered, "typed_error": typed_error}), flush=True)
os._exit(0)
