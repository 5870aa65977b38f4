//! The programs of `tests/sdk/python`, with each Python SDK.

conformance::programs!(python_0_19_7: Sdk::Python("0.19.7"), "python", ".py");
conformance::programs!(python_0_25_0: Sdk::Python("0.25.0"), "python", ".py");
