// Functions that are HTTP endpoints elsewhere: the engine makes the request, callers see a function.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { call, connect, done, failure, there } from './world.mjs'

const server = createServer(async (request, response) => {
  let text = ''
  for await (const piece of request) text += piece
  const asked = JSON.parse(text)
  const answer = asked.qty
    ? { total: asked.qty * 1.5, key: request.headers['x-key'] }
    : { error: { code: 'empty_basket', message: 'nothing to price' } }
  response.writeHead(asked.qty ? 200 : 422, { 'content-type': 'application/json' }).end(JSON.stringify(answer))
}).listen(0, '127.0.0.1')
await once(server, 'listening')

const iii = connect('outside')
const url = `http://127.0.0.1:${server.address().port}/price`
iii.registerFunction('outside::price', { url, method: 'POST', headers: { 'x-key': 'let-me-in' } })
await there(iii, 'outside::price')

assert.deepEqual(await call(iii, 'outside::price', { qty: 3 }), { total: 4.5, key: 'let-me-in' })
const error = await failure(call(iii, 'outside::price', { qty: 0 }))
assert.equal(error.code, 'empty_basket')
assert.match(error.message, /nothing to price/)
done()
