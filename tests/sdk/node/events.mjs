// Events without storage: publish and subscribe, cron, logs, and settings that change.

import assert from 'node:assert/strict'
import { call, connect, done, inbox, there, until } from './world.mjs'

const iii = connect('listener')
const inboxes = { heard: inbox(), ticked: inbox(), logged: inbox(), configured: inbox() }
const { heard, ticked, logged, configured } = inboxes
for (const [name, { handler }] of Object.entries(inboxes)) iii.registerFunction(`listener::${name}`, handler)
iii.registerTrigger({ type: 'subscribe', function_id: 'listener::heard', config: { topic: 'news' } })
iii.registerTrigger({ type: 'cron', function_id: 'listener::ticked', config: { expression: '* * * * * *' } })
iii.registerTrigger({ type: 'log', function_id: 'listener::logged', config: { level: 'warn' } })
iii.registerTrigger({ type: 'configuration', function_id: 'listener::configured', config: { configuration_id: 'billing' } })
await there(iii, ...Object.keys(inboxes).map((name) => `listener::${name}`))

await call(iii, 'publish', { topic: 'news', data: { headline: 'it works' } })
assert.equal((await heard.wait())[0].headline, 'it works')

const [tick] = await ticked.wait(2)
assert.equal(tick.trigger, 'cron')
assert.ok(tick.job_id && tick.scheduled_time <= tick.actual_time, JSON.stringify(tick))

const WARNING = 'disk is nearly full'
await call(iii, 'engine::log::info', { message: 'not this one' })
await call(iii, 'engine::log::warn', { message: WARNING, data: { free: 3 } })
const entry = await until('the warning', () => logged.items.find(({ body }) => body === WARNING))
assert.equal(entry.severity_text, 'WARN')
assert.ok(!logged.items.some(({ body }) => body === 'not this one'))
const stored = await call(iii, 'engine::logs::list', { severity_min: 13 })
assert.ok(stored.logs.some(({ body }) => body === WARNING))

await call(iii, 'configuration::register', {
  id: 'billing', name: 'Billing', description: 'Limits', schema: { type: 'object' }, initial_value: { cap: 10 },
})
await call(iii, 'configuration::set', { id: 'billing', value: { cap: 25 } })
const change = await until('the change', () => configured.items.find(({ new_value }) => new_value?.cap === 25))
assert.equal(change.event_type, 'configuration:updated')
assert.deepEqual(change.old_value, { cap: 10 })
done()
