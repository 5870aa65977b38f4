// A hundred mebibytes through a data channel, from one worker to another and back.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { call, connect, createChannel, done, there } from './world.mjs'

const PIECE = Buffer.from(Uint8Array.from({ length: 65536 }, (_, index) => index % 256))
const PIECES = 1600
const alice = connect('alice')
const bob = connect('bob')

function* pieces() {
  for (let sent = 0; sent < PIECES; sent++) yield PIECE
}

async function digest(stream) {
  const sum = createHash('sha256')
  let bytes = 0
  for await (const piece of stream) {
    sum.update(piece)
    bytes += piece.length
  }
  return { sha256: sum.digest('hex'), bytes }
}

const send = (writer) => pipeline(Readable.from(pieces()), writer.stream)

bob.registerFunction('bob::take', async ({ reader }) => digest(reader.stream))
bob.registerFunction('bob::give', async ({ writer }) => send(writer))
await there(alice, 'bob::take', 'bob::give')

const patience = { timeoutMs: 120_000 }
const whole = await digest(pieces())
const out = await createChannel(alice, 64)
const [taken] = await Promise.all([call(alice, 'bob::take', { reader: out.readerRef }, patience), send(out.writer)])
assert.deepEqual(taken, whole)

const back = await createChannel(alice)
const [got] = await Promise.all([digest(back.reader.stream), call(alice, 'bob::give', { writer: back.writerRef }, patience)])
assert.deepEqual(got, whole)
done()
