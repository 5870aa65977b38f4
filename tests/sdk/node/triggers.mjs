// A trigger type of our own: bound before its provider came, handed to the next one, refused by it.

import assert from 'node:assert/strict'
import { HEARS_OF_ENDS, call, connect, done, inbox, there, until } from './world.mjs'

const TYPE = 'mailbox::received'

/** A provider's side of the trigger type. */
function mailbox() {
  const bound = new Map()
  const unbound = []
  const refused = []
  const registerTrigger = async (binding) => {
    if (binding.config.address === 'refused@example.org') {
      refused.push(binding.id)
      throw new Error('no such mailbox')
    }
    bound.set(binding.id, binding)
  }
  const unregisterTrigger = async ({ id }) => unbound.push(id)
  return { bound, unbound, refused, handler: { registerTrigger, unregisterTrigger } }
}

const support = connect('support')
const opened = inbox()
support.registerFunction('support::open-ticket', opened.handler)
await there(support, 'support::open-ticket')
const bind = (address) => support.registerTrigger({ type: TYPE, function_id: 'support::open-ticket', config: { address } })
const trigger = bind('help@example.org')

const first = connect('first-provider')
const early = mailbox()
first.registerTriggerType({ id: TYPE, description: 'Fires for each incoming mail' }, early.handler)
const binding = await until('the early binding', () => [...early.bound.values()][0])
assert.deepEqual(binding.config, { address: 'help@example.org' })
assert.equal(binding.function_id, 'support::open-ticket')
await call(first, binding.function_id, { subject: 'it is broken' })
assert.equal((await opened.wait())[0].subject, 'it is broken')

await first.shutdown()
const second = connect('second-provider')
const late = mailbox()
second.registerTriggerType({ id: TYPE, description: 'The same, from another worker' }, late.handler)
await until('the binding at the next provider', () => late.bound.has(binding.id))

bind('refused@example.org')
await until('the refusal', () => late.refused.length === 1)
const bound = async () => {
  const listed = await call(support, 'engine::registered-triggers::list', { trigger_type: TYPE })
  return listed.registered_triggers.map(({ id }) => id)
}
await until('the refused binding is forgotten', async () => `${await bound()}` === binding.id)
trigger.unregister()
await until('its end', async () => (await bound()).length === 0)
if (HEARS_OF_ENDS) await until('the provider is told', () => late.unbound.includes(binding.id))
done()
