//! Update operations on one JSON value, as `state::update` and `stream::update` take them.
