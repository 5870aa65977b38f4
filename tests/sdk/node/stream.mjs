// Items that subscribers see change: a function, and a socket as a browser would open it.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import WebSocket from 'ws'
import { STREAMS, call, connect, done, inbox, there, until } from './world.mjs'

const iii = connect('chat')
const seen = inbox()
const joined = inbox()
const left = inbox()
iii.registerFunction('chat::changed', seen.handler)
iii.registerFunction('chat::joined', joined.handler)
iii.registerFunction('chat::left', left.handler)
iii.registerTrigger({ type: 'stream', function_id: 'chat::changed', config: { stream_name: 'chat' } })
iii.registerTrigger({ type: 'stream:join', function_id: 'chat::joined', config: {} })
iii.registerTrigger({ type: 'stream:leave', function_id: 'chat::left', config: {} })
await there(iii, 'chat::changed', 'chat::joined', 'chat::left')

const room = { stream_name: 'chat', group_id: 'room-4' }
const item = { ...room, item_id: 'msg-1' }
const events = []
const socket = new WebSocket(STREAMS)
socket.on('message', (text) => events.push(JSON.parse(text)))
await once(socket, 'open')
const data = { subscriptionId: 's1', streamName: 'chat', groupId: 'room-4', id: null }
socket.send(JSON.stringify({ type: 'join', data }))
await until('the first event', () => events.length === 1)
await call(iii, 'stream::set', { ...item, data: { text: 'hi' } })
await call(iii, 'stream::update', { ...item, ops: [{ type: 'set', path: 'seen', value: 1 }] })
await call(iii, 'stream::send', { ...room, type: 'typing', data: { who: 'Ada' } })
await call(iii, 'stream::delete', item)
await until('five events', () => events.length === 5)
socket.close()

const kinds = events.map(({ event }) => event.type)
assert.deepEqual(kinds, ['sync', 'create', 'update', 'event', 'delete'])
assert.deepEqual(events[0].event.data, [])
assert.equal(events[1].id, 'msg-1')
assert.deepEqual(events[2].event.data, { text: 'hi', seen: 1 })
assert.deepEqual(events[3].event.event, { type: 'typing', data: { who: 'Ada' } })
for (const { wait } of [joined, left]) {
  const [{ stream_name, subscription_id }] = await wait()
  assert.deepEqual([stream_name, subscription_id], ['chat', 's1'])
}
await seen.wait(4)
assert.equal((await call(iii, 'stream::get', item)) ?? null, null)
assert.deepEqual(await call(iii, 'stream::list', room), [])
done()
