"""Calls between two workers: answers, errors, void calls, and what discovery says of them."""

from iii import TriggerAction
from world import Inbox, InvocationError, call, connect, done, there, until

shop, till = connect("shop"), connect("till")


async def quote(data):
    if data["sku"] == "gone":
        raise ValueError("out of stock")
    return {"total": data["qty"] * 1.5, "asked": data}


shop.register_function("shop::quote", quote, description="Prices a basket", metadata={"public": True})
shop.register_function("shop::nothing", lambda data: None)
note = Inbox()
shop.register_function("shop::note", note)
there(till, "shop::quote", "shop::nothing", "shop::note")

payload = {"sku": "A-17", "qty": 3, "text": "ä ☃ \u2028 \\ \" \n", "deep": [[[{"x": None}]]], "big": 2**53}
answer = call(till, "shop::quote", payload)
assert answer["total"] == 4.5
asked = answer["asked"]
assert asked.pop("_caller_worker_id")
assert asked == payload, asked
assert call(till, "shop::nothing") is None

for function, sku, code, words in [("shop::quote", "gone", "invocation_failed", "out of stock"),
                                   ("shop::nope", "x", "function_not_found", "shop::nope")]:
    try:
        call(till, function, {"sku": sku, "qty": 1})
        raise AssertionError(f"{function} answered")
    except InvocationError as error:
        assert error.code == code and words in str(error), error

call(till, "shop::note", {"n": 1}, action=TriggerAction.Void())
assert note.wait()[0]["n"] == 1

info = call(till, "engine::functions::info", {"function_id": "shop::quote"})
assert info["description"] == "Prices a basket" and info["metadata"] == {"public": True}
workers = until("shop in the list", lambda: [worker for worker in call(till, "engine::workers::list")["workers"]
                                             if worker["name"] == "shop"])
assert workers[0]["runtime"] == "python" and workers[0]["function_count"] == 3, workers
done()
