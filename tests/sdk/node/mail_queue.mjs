// Messages that are delivered at least once: to subscribers of a topic, and from a named queue.

import assert from 'node:assert/strict'
import { TriggerAction, call, connect, done, failure, inbox, there, until } from './world.mjs'

const iii = connect('mailer')
const first = inbox()
const second = inbox()
const job = inbox()
let failures = 0
iii.registerFunction('mailer::first', first.handler)
iii.registerFunction('mailer::second', second.handler)
iii.registerFunction('mailer::job', job.handler)
iii.registerFunction('mailer::stubborn', async () => {
  failures += 1
  throw new Error('never works')
})
for (const function_id of ['mailer::first', 'mailer::second']) {
  iii.registerTrigger({ type: 'durable:subscriber', function_id, config: { topic: 'mail' } })
}
await there(iii, 'mailer::first', 'mailer::second', 'mailer::job', 'mailer::stubborn')

await call(iii, 'iii::durable::publish', { topic: 'mail', data: { to: 'Ada' } })
assert.equal((await first.wait())[0].to, 'Ada')
assert.equal((await second.wait())[0].to, 'Ada')

const enqueue = (id, payload, queue) => call(iii, id, payload, { action: TriggerAction.Enqueue({ queue }) })
assert.ok((await enqueue('mailer::job', { n: 1 }, 'default')).messageReceiptId)
assert.equal((await job.wait())[0].n, 1)
const refused = await failure(enqueue('mailer::job', { n: 1 }, 'no-such-queue'))
assert.equal(refused.code, 'enqueue_error')
assert.match(refused.message, /no-such-queue/)

await enqueue('mailer::stubborn', { n: 2 }, 'impatient')
const [dead] = await until('a dead letter', async () => {
  const letters = await call(iii, 'engine::queue::dlq_messages', { topic: 'impatient' })
  return letters.length && letters
})
assert.equal((dead.payload.data ?? dead.payload).n, 2)
assert.equal(failures, 2)
assert.equal((await call(iii, 'iii::queue::redrive', { queue: 'impatient' })).redriven, 1)
await until('it is tried again', () => failures >= 3)
done()
