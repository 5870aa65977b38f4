//! `configuration`: settings by id, checked against their schemas.
