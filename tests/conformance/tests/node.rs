//! The programs of `tests/sdk/node`, with each npm SDK.

conformance::programs!(node_0_22_1: Sdk::Node("0.22.1"), "node", ".mjs");
conformance::programs!(node_0_11_6: Sdk::Node("0.11.6"), "node", ".mjs");
