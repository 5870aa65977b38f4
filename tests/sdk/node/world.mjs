// What every program here begins and ends with.

import * as sdk from 'iii-sdk'

// Where later versions keep what was in the main module before.
const channels = await import('iii-sdk/helpers').catch(() => undefined)
const routes = sdk.http ? sdk : await import('@iii-dev/helpers/http')

export const { TriggerAction } = sdk
/** Whether a provider of a trigger type hears of bindings that end; version 0.11 drops the message. */
export const HEARS_OF_ENDS = Boolean(sdk.InvocationError)
export const InvocationError = sdk.InvocationError ?? sdk.IIIInvocationError
export const { http } = routes
export const createChannel = (iii, size) => (channels ? channels.createChannel(iii, size) : iii.createChannel(size))

export const HTTP = process.env.III_TEST_HTTP
export const STREAMS = process.env.III_TEST_STREAMS
export const GUARDED = process.env.III_TEST_GUARDED

export const connect = (name, url = process.env.III_URL) => sdk.registerWorker(url, { workerName: name })

export const call = (iii, function_id, payload = {}, more = {}) => iii.trigger({ function_id, payload, ...more })

/** Waits for `condition` to become true and returns what it said. */
export async function until(what, condition, seconds = 60) {
  const deadline = Date.now() + seconds * 1000
  while (Date.now() < deadline) {
    const result = await condition()
    if (result) return result
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`never happened: ${what}`)
}

/** A handler that keeps what it is called with. */
export function inbox(answer) {
  const items = []
  const handler = async (data) => {
    items.push(data)
    return answer
  }
  const wait = (count = 1) => until(`a call (${count})`, () => items.length >= count && items)
  return { items, handler, wait }
}

/** Waits until the engine knows these functions. */
export async function there(iii, ...functions) {
  await until(`functions ${functions}`, async () => {
    const listed = await call(iii, 'engine::functions::list', { include_internal: true })
    const known = new Set(listed.functions.map((known) => known.function_id))
    return functions.every((id) => known.has(id))
  })
}

/** The error that a call ends with. */
export async function failure(promise) {
  const error = await promise.then(
    () => new Error('it did not fail'),
    (error) => error,
  )
  if (!(error instanceof InvocationError)) throw error
  return error
}

export function done() {
  console.log('ok')
  process.exit(0)
}
