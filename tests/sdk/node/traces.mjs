// Telemetry as the SDK sends it: a call's spans arrive, and a function is called when they do.

import assert from 'node:assert/strict'
import { call, connect, done, inbox, there, until } from './world.mjs'

const iii = connect('traced')
const arrived = inbox()
iii.registerFunction('traced::work', async ({ n }) => n + 1)
iii.registerFunction('traced::arrived', arrived.handler)
iii.registerTrigger({ type: 'trace', function_id: 'traced::arrived', config: {} })
await there(iii, 'traced::work', 'traced::arrived')
assert.equal(await call(iii, 'traced::work', { n: 1 }), 2)

const span = await until("the call's span", async () => {
  const { spans } = await call(iii, 'engine::traces::list', { search_all_spans: true })
  return spans.find(({ name }) => name.includes('traced::work'))
})
await until('its announcement', () => arrived.items.some(({ trace_ids }) => trace_ids.includes(span.trace_id)))
const { roots } = await call(iii, 'engine::traces::tree', { trace_id: span.trace_id })
assert.equal(roots[0].trace_id, span.trace_id)
done()
