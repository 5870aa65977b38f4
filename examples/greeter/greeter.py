"""A worker in a microVM, with the published Python SDK."""

import os
import platform
import threading

from iii import register_worker


def hello(data):
    return {"message": f"Hello, {data.get('name', 'world')}", "kernel": platform.release()}


iii = register_worker(os.environ["III_URL"])
iii.register_function("greeter::hello", hello, description="Greets by name")
threading.Event().wait()
