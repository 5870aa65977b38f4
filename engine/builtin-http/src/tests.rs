//! Whole requests: a pretend engine behind the worker, and a client in front of it.

mod exchanges;
mod fake;
mod serving;
mod streaming;
