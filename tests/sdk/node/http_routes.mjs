// Functions behind HTTP routes: parameters, bodies, statuses, middleware, and bodies that are streamed.

import assert from 'node:assert/strict'
import { HTTP, call, connect, done, http, there, until } from './world.mjs'

const iii = connect('web')

const user = async ({ path_params, query_params, body }) => ({
  status_code: 201,
  headers: { 'x-from': 'node' },
  body: { id: path_params.id, full: query_params.full, sent: body },
})

const upload = http(async (request, response) => {
  let size = 0
  for await (const piece of request.request_body.stream) size += piece.length
  response.status(202)
  response.headers({ 'content-type': 'text/plain' })
  response.stream.write('got ')
  response.stream.end(String(size))
})

let goOn
const gone = new Promise((resolve) => (goOn = resolve))
const ticks = http(async (_, response) => {
  response.stream.write('one ')
  await gone
  response.stream.end('two')
})

const gate = async ({ request }) =>
  request.headers['x-key'] === 'let-me-in'
    ? { action: 'continue' }
    : { action: 'respond', response: { status_code: 401, body: { error: 'no key' } } }

const broken = async () => {
  throw new Error('a fault of the handler')
}

const handlers = { user, upload, ticks, 'go-on': async () => goOn(), gate, broken }
for (const [name, handler] of Object.entries(handlers)) iii.registerFunction(`web::${name}`, handler)
await there(iii, ...Object.keys(handlers).map((name) => `web::${name}`))
for (const [function_id, api_path, http_method, more] of [
  ['web::user', 'node/users/:id', 'POST', {}],
  ['web::upload', 'node/upload', 'PUT', {}],
  ['web::ticks', 'node/ticks', 'GET', {}],
  ['web::user', 'node/guarded/:id', 'POST', { middleware_function_ids: ['web::gate'] }],
  ['web::broken', '/node/broken', 'GET', {}],
]) {
  iii.registerTrigger({ type: 'http', function_id, config: { api_path, http_method, ...more } })
}

const ask = (method, path, body, headers = {}) => fetch(`${HTTP}/${path}`, { method, body, headers })

await until('the routes', async () => (await ask('GET', 'node/broken')).status === 500)
const json = { 'content-type': 'application/json' }
const created = await ask('POST', 'node/users/42?full=1', '{"name": "Ada"}', json)
assert.equal(created.status, 201)
assert.equal(created.headers.get('x-from'), 'node')
assert.deepEqual(await created.json(), { id: '42', full: '1', sent: { name: 'Ada' } })
assert.equal((await ask('POST', 'node/guarded/1', '{}', json)).status, 401)
assert.equal((await ask('POST', 'node/guarded/1', '{}', { ...json, 'x-key': 'let-me-in' })).status, 201)
const fault = await ask('GET', 'node/broken')
assert.equal(fault.status, 500)
assert.equal((await fault.json()).error.code, 'invocation_failed')
assert.equal((await ask('GET', 'node/nowhere')).status, 404)
const sent = await ask('PUT', 'node/upload', 'x'.repeat(5_000_000), { 'content-type': 'application/octet-stream' })
assert.equal(sent.status, 202)
assert.equal(await sent.text(), 'got 5000000')

let said = ''
for await (const piece of (await ask('GET', 'node/ticks')).body.pipeThrough(new TextDecoderStream())) {
  said += piece
  if (said === 'one ') await call(iii, 'web::go-on') // while the route's handler still waits
}
assert.equal(said, 'one two')
done()
