// A guarded listener: who may come in, what they may call, and under which names they register.

import assert from 'node:assert/strict'
import { GUARDED, call, connect, done, failure, there, until } from './world.mjs'

const iii = connect('owner')

iii.registerFunction('owner::authenticate', async ({ query_params }) => {
  if (query_params.tenant?.[0] !== 'blue') throw new Error('unknown tenant')
  return {
    allowed_functions: ['owner::named', 'engine::functions::list'],
    forbidden_functions: ['owner::api::secret'],
    function_registration_prefix: 'blue',
    context: { tenant: 'blue' },
  }
})
iii.registerFunction('owner::gate', async ({ function_id, payload, context }) => {
  if (payload.blocked) throw new Error(`blocked for ${context.tenant}`)
  return call(iii, function_id, payload)
})
for (const name of ['owner::named', 'owner::other', 'owner::api::open', 'owner::api::secret']) {
  iii.registerFunction(name, async ({ _caller_worker_id, ...data }) => data)
}
await there(iii, 'owner::authenticate', 'owner::gate', 'owner::other', 'owner::api::secret')

const tenant = connect('tenant', `${GUARDED}/?tenant=blue`)
await until('the tenant is in', async () => (await call(tenant, 'owner::named', { n: 1 })).n === 1)
assert.deepEqual(await call(tenant, 'owner::api::open', { n: 2 }), { n: 2 })
for (const [id, payload, code] of [
  ['owner::api::secret', {}, 'FORBIDDEN'],
  ['owner::other', {}, 'FORBIDDEN'],
  ['owner::named', { blocked: true }, 'invocation_failed'],
]) {
  assert.equal((await failure(call(tenant, id, payload))).code, code)
}
const seen = (await call(tenant, 'engine::functions::list')).functions.map(({ function_id }) => function_id)
assert.ok(seen.includes('owner::api::open') && !seen.includes('owner::other'), `${seen}`)

tenant.registerFunction('greet', async ({ name }) => `hello ${name}`)
await there(iii, 'blue::greet')
assert.equal(await call(iii, 'blue::greet', { name: 'Ada' }), 'hello Ada')
done()
