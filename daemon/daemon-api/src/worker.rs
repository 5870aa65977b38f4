//! Shapes of `worker::*`.
