"""A guarded listener: who may come in, what they may call, and under which names they register."""

import os

from iii import InitOptions, TriggerAction, register_worker
from world import InvocationError, call, connect, done, there, until

GUARDED = os.environ["III_TEST_GUARDED"]
iii = connect("owner")


async def authenticate(data):
    if data["query_params"].get("tenant") != ["blue"]:
        raise ValueError("unknown tenant")
    return {"allowed_functions": ["owner::named", "engine::functions::list"], "forbidden_functions": ["owner::api::secret"],
            "function_registration_prefix": "blue", "context": {"tenant": "blue"}}


async def gate(data):
    if data["payload"].get("blocked"):
        raise ValueError(f"blocked for {data['context']['tenant']}")
    return await iii.trigger_async({"function_id": data["function_id"], "payload": data["payload"]})


async def echo(data):
    data.pop("_caller_worker_id", None)
    return data


iii.register_function("owner::authenticate", authenticate)
iii.register_function("owner::gate", gate)
for function in ["owner::named", "owner::other", "owner::api::open", "owner::api::secret"]:
    iii.register_function(function, echo)
there(iii, "owner::authenticate", "owner::gate", "owner::other", "owner::api::secret")

tenant = connect("tenant", f"{GUARDED}/?tenant=blue")
until("the tenant is in", lambda: call(tenant, "owner::named", {"n": 1}) == {"n": 1})
assert call(tenant, "owner::api::open", {"n": 2}) == {"n": 2}
for function, payload, code in [("owner::api::secret", {}, "FORBIDDEN"), ("owner::other", {}, "FORBIDDEN"),
                                ("owner::named", {"blocked": True}, "invocation_failed")]:
    try:
        call(tenant, function, payload)
        raise AssertionError(f"{function} was open")
    except InvocationError as error:
        assert error.code == code, error
seen = {function["function_id"] for function in call(tenant, "engine::functions::list")["functions"]}
assert "owner::api::open" in seen and "owner::other" not in seen, seen

tenant.register_function("greet", lambda data: f"hello {data['name']}")
there(iii, "blue::greet")
assert call(iii, "blue::greet", {"name": "Ada"}) == "hello Ada"
done()
