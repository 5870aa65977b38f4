//! Journeys over the real programs that need no guest. The tests are in `tests/`.
