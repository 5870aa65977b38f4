"""Telemetry as the SDK sends it: a call's spans arrive, and a function is called when they do."""

from world import Inbox, call, connect, done, there, until

iii = connect("traced")
arrived = Inbox()
iii.register_function("traced::work", lambda data: data["n"] + 1)
iii.register_function("traced::arrived", arrived)
iii.register_trigger({"type": "trace", "function_id": "traced::arrived", "config": {}})
there(iii, "traced::work", "traced::arrived")
assert call(iii, "traced::work", {"n": 1}) == 2


def spans():
    listed = call(iii, "engine::traces::list", {"search_all_spans": True})["spans"]
    return [span for span in listed if "traced::work" in span["name"]]


span = until("the call's span", spans)[0]
until("its announcement", lambda: [item for item in arrived.items if span["trace_id"] in item["trace_ids"]])
roots = call(iii, "engine::traces::tree", {"trace_id": span["trace_id"]})["roots"]
assert roots and roots[0]["trace_id"] == span["trace_id"], roots
done()
