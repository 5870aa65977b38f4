//! The programs of `tests/sdk/rust`, with the published crate.

conformance::programs!(rust_0_19_6: Sdk::Rust, "rust", "");
