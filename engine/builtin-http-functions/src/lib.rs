//! `iii-http-functions`: functions that are HTTP endpoints.
//!
//! ```text
//! registration ─► HttpFunctions::check ─► HttpFunction      URL allowed? secrets there?
//! call ─────────► HttpFunction::call ─► request ─► name resolved, addresses checked, connected ─► response ─► Answer
//! ```
//! Knows URLs, addresses and HTTP. Knows no router: who owns a function is the engine's business.
//!
//! Always true:
//! - A connection goes to an address that was checked: names are resolved once per connection, by us.
//! - Redirects are answers; none is followed. No proxy of the environment is used.
//! - At most [`MAX_RESPONSE_BYTES`] of a response are held, and no request takes longer than [`MAX_TIMEOUT`].
//! - A secret goes into requests only: it is in no error, and in no log.

mod address;
mod function;
mod invocation;
mod policy;
mod response;
mod settings;
mod worker;

pub use function::{HttpFunction, MAX_RESPONSE_BYTES, MAX_TIMEOUT};
pub use settings::schema;
pub use worker::{HttpFunctions, NAME, create};
