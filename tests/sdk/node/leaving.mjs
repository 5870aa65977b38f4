// A worker that dies in the middle of a call, and an engine that is started anew under everybody.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { call, connect, done, failure, inbox, there, until } from './world.mjs'

const iii = connect('survivor')
const child = spawn(process.execPath, [new URL('dying.mjs', import.meta.url).pathname], { stdio: 'inherit' })
await there(iii, 'dying::die')
assert.equal((await failure(call(iii, 'dying::die'))).code, 'invocation_stopped')
if (child.exitCode === null) await once(child, 'exit')

const other = connect('other')
const heard = inbox()
other.registerFunction('other::heard', heard.handler)
other.registerFunction('other::double', async ({ n }) => n * 2)
other.registerTrigger({ type: 'subscribe', function_id: 'other::heard', config: { topic: 'after' } })
await there(iii, 'other::heard', 'other::double')
await call(iii, 'state::set', { scope: 'leaving', key: 'kept', value: 7 })
console.log('restart the engine')
await once(process.stdin, 'data')

const double = () => call(iii, 'other::double', { n: 21 }, { timeoutMs: 2000 }).catch(() => undefined)
await until('calls work again', async () => (await double()) === 42)
assert.equal(await call(iii, 'state::get', { scope: 'leaving', key: 'kept' }), 7)

const published = await until('the binding is there again', async () => {
  await call(iii, 'publish', { topic: 'after', data: { still: 'bound' } })
  return heard.items[0]
})
assert.equal(published.still, 'bound')
done()
