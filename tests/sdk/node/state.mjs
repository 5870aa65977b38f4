// Values by scope and key, update operations, and a function that is called when they change.

import assert from 'node:assert/strict'
import { call, connect, done, failure, inbox, there } from './world.mjs'

const iii = connect('state-user')
const seen = inbox()
iii.registerFunction('state-user::changed', seen.handler)
iii.registerFunction('state-user::never', async () => false)
const bind = (config) => iii.registerTrigger({ type: 'state', function_id: 'state-user::changed', config })
bind({ scope: 'carts' })
bind({ scope: 'carts', condition_function_id: 'state-user::never' })
await there(iii, 'state-user::changed', 'state-user::never')

const at = { scope: 'carts', key: 'c-9' }
await call(iii, 'state::delete', at)
assert.equal((await call(iii, 'state::get', at)) ?? null, null)
assert.deepEqual(await call(iii, 'state::set', { ...at, value: { n: 1 } }), { old_value: null, new_value: { n: 1 } })
assert.deepEqual(await call(iii, 'state::get', at), { n: 1 })
const changed = await call(iii, 'state::update', {
  ...at,
  ops: [
    { type: 'increment', path: 'n', by: 4 },
    { type: 'append', path: ['log', 'entries'], value: 'first' },
    { type: 'merge', path: 'tags', value: { a: true } },
    { type: 'increment', path: 'tags', by: 1 },
  ],
})
assert.deepEqual(changed.new_value, { n: 5, log: { entries: ['first'] }, tags: { a: true } })
assert.deepEqual(changed.errors.map(({ op_index }) => op_index), [3])
assert.deepEqual(await call(iii, 'state::list', { scope: 'carts' }), [changed.new_value])
assert.ok((await call(iii, 'state::list_groups')).groups.includes('carts'))
assert.deepEqual(await call(iii, 'state::delete', at), changed.new_value)

const events = await seen.wait(4)
const kinds = events.map(({ event_type }) => event_type)
assert.deepEqual(kinds, ['state:deleted', 'state:created', 'state:updated', 'state:deleted'])
assert.deepEqual(events[2].old_value, { n: 1 })
assert.equal(events[2].key, 'c-9')
assert.equal((await failure(call(iii, 'state::set', { scope: 7 }))).code, 'deserialization_error')
done()
