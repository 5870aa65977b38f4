// Who is there: events about workers and functions that come and go.

import { call, connect, done, inbox, there, until } from './world.mjs'

const iii = connect('watcher')
const workers = inbox()
const functions = inbox()
iii.registerFunction('watcher::workers', workers.handler)
iii.registerFunction('watcher::functions', functions.handler)
iii.registerTrigger({ type: 'engine::workers-available', function_id: 'watcher::workers', config: {} })
iii.registerTrigger({ type: 'engine::functions-available', function_id: 'watcher::functions', config: {} })
await there(iii, 'watcher::workers', 'watcher::functions')

const guest = connect('guest')
guest.registerFunction('guest::wave', async () => 'hello')
await there(iii, 'guest::wave')
// A worker says its name after its functions.
const named = async () => (await call(iii, 'engine::workers::list')).workers.find(({ name }) => name === 'guest')
const { id } = await until('the guest has said its name', named)
const told = (event) => workers.items.some((item) => item.event === event && item.worker_id === id)
const listed = () => functions.items.at(-1)?.functions.some(({ function_id }) => function_id === 'guest::wave')
await until('the guest is announced', () => told('worker_connected'))
await until('what it says of itself is announced', () => told('worker_metadata_updated'))
await until('its function is announced', listed)

await guest.shutdown()
await until('its end is announced', () => told('worker_disconnected'))
await until('its function is gone', () => !listed())
done()
