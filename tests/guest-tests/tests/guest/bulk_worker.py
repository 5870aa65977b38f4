"""Sends back what arrives on one channel over another, as it comes."""

import ws


def end(channel):
    return ws.WebSocket(f"/ws/channels/{channel['channel_id']}?key={channel['access_key']}&dir={channel['direction']}")


def echo(data):
    down, up = end(data["down"]), end(data["up"])
    count = 0
    for opcode, body in down.frames():
        up.send(ws.BINARY, body)
        count += len(body)
    up.send(ws.CLOSE, b"\x03\xe8")
    return {"bytes": count}


ws.serve({"bulk::echo": echo})
