"""A hundred mebibytes through a data channel (`engine::channels::create`), from one worker to another and back."""

import hashlib

from iii.helpers import create_channel_async
from world import call, connect, done, there

PIECE, PIECES = bytes(range(256)) * 256, 1600  # 64 KiB each
alice, bob = connect("alice"), connect("bob")


async def pieces(writer):
    for _ in range(PIECES):
        await writer.write(PIECE)
    await writer.close_async()


async def digest(reader):
    sum, size = hashlib.sha256(), 0
    async for piece in reader:
        sum.update(piece)
        size += len(piece)
    return {"sha256": sum.hexdigest(), "bytes": size}


async def take(data):
    return await digest(data["reader"])


async def give(data):
    await pieces(data["writer"])


async def both(_):
    there_ = await create_channel_async(alice, 64)
    answer = alice.trigger_async({"function_id": "bob::take", "payload": {"reader": there_.reader_ref.model_dump()},
                                  "timeout_ms": 120_000})
    import asyncio
    taken, _ = await asyncio.gather(answer, pieces(there_.writer))
    back = await create_channel_async(alice)
    given = alice.trigger_async({"function_id": "bob::give", "payload": {"writer": back.writer_ref.model_dump()},
                                 "timeout_ms": 120_000})
    _, got = await asyncio.gather(given, digest(back.reader))
    return [taken, got]


bob.register_function("bob::take", take)
bob.register_function("bob::give", give)
alice.register_function("alice::both", both)
there(bob, "bob::take", "bob::give", "alice::both")
whole = {"sha256": hashlib.sha256(PIECE * PIECES).hexdigest(), "bytes": len(PIECE) * PIECES}
for way in call(bob, "alice::both", timeout_ms=300_000):
    assert way == whole, way
done()
