"""A trigger type of our own: bound before its provider came, handed to the next one, refused by it."""

from iii.triggers import TriggerHandler
from world import Inbox, InvocationError, call, connect, done, there, until


class Mailbox(TriggerHandler):
    def __init__(self):
        self.bound, self.unbound, self.refused = {}, [], []

    async def register_trigger(self, config):
        if config.config.get("address") == "refused@example.org":
            self.refused.append(config.id)
            raise ValueError("no such mailbox")
        self.bound[config.id] = config

    async def unregister_trigger(self, config):
        self.unbound.append(config.id)


support = connect("support")
opened = Inbox()
support.register_function("support::open-ticket", opened)
trigger = support.register_trigger({"type": "mailbox::received", "function_id": "support::open-ticket",
                                    "config": {"address": "help@example.org"}})

first = connect("first-provider")
mailbox = Mailbox()
first.register_trigger_type({"id": "mailbox::received", "description": "Fires for each incoming mail"}, mailbox)
binding = until("the early binding", lambda: list(mailbox.bound.values()))[0]
assert binding.config == {"address": "help@example.org"} and binding.function_id == "support::open-ticket"
call(first, binding.function_id, {"subject": "it is broken"})
assert opened.wait()[0]["subject"] == "it is broken"

first.shutdown()
second = connect("second-provider")
mailbox = Mailbox()
second.register_trigger_type({"id": "mailbox::received", "description": "The same, from another worker"}, mailbox)
until("the binding at the next provider", lambda: binding.id in mailbox.bound)

refused = support.register_trigger({"type": "mailbox::received", "function_id": "support::open-ticket",
                                    "config": {"address": "refused@example.org"}})


def bound():
    listed = call(support, "engine::registered-triggers::list", {"trigger_type": "mailbox::received"})
    return [trigger["id"] for trigger in listed["registered_triggers"]]


until("the refusal", lambda: mailbox.refused)
until("the refused binding is forgotten", lambda: bound() == [binding.id])
trigger.unregister()
until("the provider is told", lambda: binding.id in mailbox.unbound)
assert bound() == []
done()
