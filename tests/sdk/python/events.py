"""Events without storage: publish and subscribe, cron, logs, and settings that change."""

from world import Inbox, call, connect, done, there, until

iii = connect("listener")
heard, ticked, logged, configured = Inbox(), Inbox(), Inbox(), Inbox()
for name, inbox in {"heard": heard, "ticked": ticked, "logged": logged, "configured": configured}.items():
    iii.register_function(f"listener::{name}", inbox)
iii.register_trigger({"type": "subscribe", "function_id": "listener::heard", "config": {"topic": "py-news"}})
iii.register_trigger({"type": "cron", "function_id": "listener::ticked", "config": {"expression": "* * * * * *"}})
iii.register_trigger({"type": "log", "function_id": "listener::logged", "config": {"level": "warn"}})
iii.register_trigger({"type": "configuration", "function_id": "listener::configured",
                      "config": {"configuration_id": "py-billing"}})
there(iii, *(f"listener::{name}" for name in ["heard", "ticked", "logged", "configured"]))

call(iii, "publish", {"topic": "py-news", "data": {"headline": "it works"}})
assert heard.wait()[0]["headline"] == "it works"

tick = ticked.wait(2)[0]
assert tick["trigger"] == "cron" and tick["job_id"] and tick["scheduled_time"] <= tick["actual_time"], tick

call(iii, "engine::log::info", {"message": "not this one"})
call(iii, "engine::log::warn", {"message": "disk is nearly full", "data": {"free": 3}})
entry = until("the warning", lambda: [item for item in logged.items if item["body"] == "disk is nearly full"])[0]
assert entry["severity_text"] == "WARN" and not [item for item in logged.items if item["body"] == "not this one"]
stored = call(iii, "engine::logs::list", {"severity_min": 13})["logs"]
assert [log for log in stored if log["body"] == "disk is nearly full"], stored

call(iii, "configuration::register", {"id": "py-billing", "name": "Billing", "description": "Limits",
                                      "schema": {"type": "object"}, "initial_value": {"cap": 10}})
call(iii, "configuration::set", {"id": "py-billing", "value": {"cap": 25}})
change = until("the change", lambda: [item for item in configured.items if item["new_value"] == {"cap": 25}])[0]
assert change["event_type"] == "configuration:updated" and change["old_value"] == {"cap": 10}, change
done()
