"""Messages that are delivered at least once: to subscribers of a topic, and from a named queue."""

from iii import TriggerAction
from world import Inbox, InvocationError, call, connect, done, there, until

iii = connect("mailer")
first, second, job = Inbox(), Inbox(), Inbox()
failures = []


async def stubborn(data):
    failures.append(data)
    raise ValueError("never works")


iii.register_function("mailer::first", first)
iii.register_function("mailer::second", second)
iii.register_function("mailer::job", job)
iii.register_function("mailer::stubborn", stubborn)
for function in ["mailer::first", "mailer::second"]:
    iii.register_trigger({"type": "durable:subscriber", "function_id": function, "config": {"topic": "py-mail"}})
there(iii, "mailer::first", "mailer::second", "mailer::job", "mailer::stubborn")

assert call(iii, "iii::durable::publish", {"topic": "py-mail", "data": {"to": "Ada"}}) is None
assert first.wait()[0]["to"] == "Ada" and second.wait()[0]["to"] == "Ada"

receipt = call(iii, "mailer::job", {"n": 1}, action=TriggerAction.Enqueue(queue="default"))
assert receipt["messageReceiptId"]
assert job.wait()[0]["n"] == 1
try:
    call(iii, "mailer::job", {"n": 1}, action=TriggerAction.Enqueue(queue="no-such-queue"))
    raise AssertionError("an unknown queue took a message")
except InvocationError as error:
    assert error.code == "enqueue_error" and "no-such-queue" in str(error), error

call(iii, "mailer::stubborn", {"n": 2}, action=TriggerAction.Enqueue(queue="impatient"))
dead = until("a dead letter", lambda: call(iii, "engine::queue::dlq_messages", {"topic": "impatient"}))
assert dead[0]["payload"]["n"] == 2 or dead[0]["payload"]["data"]["n"] == 2, dead
assert len(failures) == 2, failures
assert call(iii, "iii::queue::redrive", {"queue": "impatient"})["redriven"] == 1
until("it is tried again", lambda: len(failures) >= 3)
done()
