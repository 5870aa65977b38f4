//! Journeys that end inside real VMs, on the driver this machine picks. The tests are in `tests/`.
