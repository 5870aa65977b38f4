"""Who is there: events about workers and functions that come and go."""

from world import Inbox, call, connect, done, there, until

iii = connect("watcher")
workers, functions = Inbox(), Inbox()
iii.register_function("watcher::workers", workers)
iii.register_function("watcher::functions", functions)
iii.register_trigger({"type": "engine::workers-available", "function_id": "watcher::workers", "config": {}})
iii.register_trigger({"type": "engine::functions-available", "function_id": "watcher::functions", "config": {}})
there(iii, "watcher::workers", "watcher::functions")


def told(event, worker_id):
    return [item for item in workers.items if item["event"] == event and item["worker_id"] == worker_id]


def named(name):
    workers = call(iii, "engine::workers::list")["workers"]
    return next((worker["id"] for worker in workers if worker["name"] == name), None)


def listed():
    return functions.items and {function["function_id"] for function in functions.items[-1]["functions"]}


guest = connect("guest")
guest.register_function("guest::wave", lambda data: "hello")
there(iii, "guest::wave")
# A worker says its name after its functions.
guest_id = until("the guest has said its name", lambda: named("guest"))
until("the guest is announced", lambda: told("worker_connected", guest_id))
until("what it says of itself is announced", lambda: told("worker_metadata_updated", guest_id))
until("its function is announced", lambda: "guest::wave" in (listed() or ()))

guest.shutdown()
until("its end is announced", lambda: told("worker_disconnected", guest_id))
until("its function is gone", lambda: "guest::wave" not in listed())
done()
