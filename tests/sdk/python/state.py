"""Values by scope and key, update operations, and a function that is called when they change."""

from world import Inbox, InvocationError, call, connect, done, there, until

iii = connect("state-user")
seen, gate = Inbox(), Inbox(answer=False)
iii.register_function("state-user::changed", seen)
iii.register_function("state-user::never", gate)
iii.register_trigger({"type": "state", "function_id": "state-user::changed", "config": {"scope": "py-carts"}})
iii.register_trigger({"type": "state", "function_id": "state-user::changed",
                      "config": {"scope": "py-carts", "condition_function_id": "state-user::never"}})
there(iii, "state-user::changed", "state-user::never")

at = {"scope": "py-carts", "key": "c-9"}
call(iii, "state::delete", at)
assert call(iii, "state::get", at) is None
assert call(iii, "state::set", {**at, "value": {"n": 1}}) == {"old_value": None, "new_value": {"n": 1}}
assert call(iii, "state::get", at) == {"n": 1}
changed = call(iii, "state::update", {**at, "ops": [
    {"type": "increment", "path": "n", "by": 4},
    {"type": "append", "path": ["log", "entries"], "value": "first"},
    {"type": "merge", "path": "tags", "value": {"a": True}},
    {"type": "increment", "path": "tags", "by": 1},
]})
assert changed["new_value"] == {"n": 5, "log": {"entries": ["first"]}, "tags": {"a": True}}, changed
assert [error["op_index"] for error in changed["errors"]] == [3], changed
assert call(iii, "state::list", {"scope": "py-carts"}) == [changed["new_value"]]
assert "py-carts" in call(iii, "state::list_groups")["groups"]
assert call(iii, "state::delete", at) == changed["new_value"]

events = [event for event in until("four events", lambda: len(seen.items) >= 4 and seen.items)]
kinds = [event["event_type"] for event in events]
assert kinds == ["state:deleted", "state:created", "state:updated", "state:deleted"], kinds
assert events[2]["old_value"] == {"n": 1} and events[2]["key"] == "c-9"
try:
    call(iii, "state::set", {"scope": 7})
    raise AssertionError("a scope that is no text was taken")
except InvocationError as error:
    assert error.code == "deserialization_error", error
done()
