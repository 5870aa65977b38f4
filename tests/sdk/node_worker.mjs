// With the published npm SDK: offers node::triple, calls python::double ten thousand times, expects a typed error.

import { registerWorker } from 'iii-sdk'

const CALLS = Number(process.env.III_TEST_CALLS ?? 10_000)
const AT_ONCE = 64

const iii = registerWorker(process.env.III_URL, { workerName: 'node-worker' })
let asked = 0
let enough
const allAsked = new Promise((resolve) => (enough = resolve))

iii.registerFunction('node::triple', async (data) => {
  if (data.fail) throw new Error('asked to fail')
  asked += 1
  if (asked === CALLS) enough()
  return { value: data.value * 3 }
})

for (;;) {
  const { functions } = await iii.trigger({ function_id: 'engine::functions::list', payload: {} })
  if (functions.some((known) => known.function_id === 'python::double')) break
  await new Promise((resolve) => setTimeout(resolve, 100))
}

let next = 0
let answered = 0
const caller = async () => {
  while (next < CALLS) {
    const number = next++
    const answer = await iii.trigger({ function_id: 'python::double', payload: { value: number } })
    if (answer.value === number * 2) answered += 1
  }
}
await Promise.all(Array.from({ length: AT_ONCE }, caller))

let typedError = false
try {
  await iii.trigger({ function_id: 'python::double', payload: { fail: true } })
} catch (error) {
  typedError = error.code === 'invocation_failed' && String(error.message).includes('asked to fail')
}
await allAsked
// The other side still expects its own typed error.
await new Promise((resolve) => setTimeout(resolve, 1000))
console.log(JSON.stringify({ answered, typed_error: typedError }))
process.exit(0)
