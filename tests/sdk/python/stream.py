"""Items that subscribers see change: a function, and a socket as a browser would open it."""

import asyncio
import json

import websockets
from world import STREAMS, Inbox, call, connect, done, there, until

iii = connect("chat")
seen, joined, left = Inbox(), Inbox(), Inbox()
iii.register_function("chat::changed", seen)
iii.register_function("chat::joined", joined)
iii.register_function("chat::left", left)
iii.register_trigger({"type": "stream", "function_id": "chat::changed", "config": {"stream_name": "py-chat"}})
iii.register_trigger({"type": "stream:join", "function_id": "chat::joined", "config": {}})
iii.register_trigger({"type": "stream:leave", "function_id": "chat::left", "config": {}})
there(iii, "chat::changed", "chat::joined", "chat::left")

room = {"stream_name": "py-chat", "group_id": "room-4"}
item = {**room, "item_id": "msg-1"}
call(iii, "stream::delete", item)


async def subscribe():
    async with websockets.connect(STREAMS) as socket:
        data = {"subscriptionId": "s1", "streamName": "py-chat", "groupId": "room-4", "id": None}
        await socket.send(json.dumps({"type": "join", "data": data}))
        events = [json.loads(await asyncio.wait_for(socket.recv(), 30))]
        trigger = asyncio.to_thread
        await trigger(call, iii, "stream::set", {**item, "data": {"text": "hi"}})
        await trigger(call, iii, "stream::update", {**item, "ops": [{"type": "set", "path": "seen", "value": 1}]})
        await trigger(call, iii, "stream::send", {**room, "type": "typing", "data": {"who": "Ada"}})
        await trigger(call, iii, "stream::delete", item)
        while len(events) < 5:
            events.append(json.loads(await asyncio.wait_for(socket.recv(), 30)))
        return events


events = asyncio.run(subscribe())
kinds = [event["event"]["type"] for event in events]
assert kinds == ["sync", "create", "update", "event", "delete"], kinds
assert events[0]["event"]["data"] == [] and events[1]["id"] == "msg-1", events[:2]
assert events[2]["event"]["data"] == {"text": "hi", "seen": 1}
assert events[3]["event"]["event"] == {"type": "typing", "data": {"who": "Ada"}}, events[3]
for inbox in [joined, left]:
    assert inbox.wait()[0]["stream_name"] == "py-chat"
    assert inbox.items[0]["subscription_id"] == "s1", inbox.items
until("the function's events", lambda: len(seen.items) >= 4)
assert call(iii, "stream::get", item) is None
assert call(iii, "stream::list", room) == []
done()
