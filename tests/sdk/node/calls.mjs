// Calls between two workers: answers, errors, void calls, and what discovery says of them.

import assert from 'node:assert/strict'
import { TriggerAction, call, connect, done, failure, inbox, there, until } from './world.mjs'

const shop = connect('shop')
const till = connect('till')

const quote = async (data) => {
  if (data.sku === 'gone') throw new Error('out of stock')
  return { total: data.qty * 1.5, asked: data }
}
const note = inbox()
shop.registerFunction('shop::quote', quote, { description: 'Prices a basket', metadata: { public: true } })
shop.registerFunction('shop::nothing', async () => undefined)
shop.registerFunction('shop::note', note.handler)
await there(till, 'shop::quote', 'shop::nothing', 'shop::note')

const payload = { sku: 'A-17', qty: 3, text: 'ä ☃ \u2028 \\ " \n', deep: [[[{ x: null }]]], big: 2 ** 53 }
const answer = await call(till, 'shop::quote', payload)
assert.equal(answer.total, 4.5)
const { _caller_worker_id, ...asked } = answer.asked
assert.ok(_caller_worker_id)
assert.deepEqual(asked, payload)
assert.equal((await call(till, 'shop::nothing')) ?? null, null)

for (const [id, sku, code, words] of [
  ['shop::quote', 'gone', 'invocation_failed', 'out of stock'],
  ['shop::nope', 'x', 'function_not_found', 'shop::nope'],
]) {
  const error = await failure(call(till, id, { sku, qty: 1 }))
  assert.equal(error.code, code)
  assert.match(error.message, new RegExp(words))
}

await call(till, 'shop::note', { n: 1 }, { action: TriggerAction.Void() })
assert.equal((await note.wait())[0].n, 1)

const info = await call(till, 'engine::functions::info', { function_id: 'shop::quote' })
assert.equal(info.description, 'Prices a basket')
assert.deepEqual(info.metadata, { public: true })
const listed = async () => (await call(till, 'engine::workers::list')).workers.find(({ name }) => name === 'shop')
const worker = await until('shop in the list', listed)
assert.equal(worker.runtime, 'node')
assert.equal(worker.function_count, 3)
done()
