//! `iii-http`: functions behind HTTP routes.
//!
//! ```text
//! socket ─ hyper ─ exchange ─┬─ cors, slot, routes        who answers this, and may it start
//!                            ├─ middleware, condition     may it be asked at all
//!                            ├─ upload ── request_body ─► worker
//!                            └─ handler ◄─ answer ─────── worker, by its return value
//!                                       ◄─ response ───── or by its channel, as it writes
//! ```
//! Knows HTTP, routes and the shapes of the `http` trigger. Knows no router, and no worker beyond a function's id.
//!
//! Always true:
//! - No two routes that were accepted match one request equally well; a table without such a pair is the only table.
//! - No lock is held while anything waits.
//! - A worker that does not read stops its client's upload; a client that does not read stops its worker.
//! - A client that leaves takes its call, its upload and its answer's channel along.
//! - A request body that is parsed has at most [`MAX_JSON_BYTES`]; one that is streamed is never held as a whole.
//! - A request has its time, `default_timeout`, to begin its answer. An answer that has begun has no limit.

mod address;
mod answer;
mod channel_answer;
mod cors;
mod exchange;
mod headers;
mod listener;
mod payload;
mod refusal;
mod response;
mod route;
mod routes;
mod settings;
mod slots;
mod trace;
mod upload;
mod worker;

#[cfg(test)]
mod tests;

pub use payload::MAX_JSON_BYTES;
pub use settings::schema;
pub use worker::{Http, NAME, create};
