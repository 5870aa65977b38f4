//! `iii-exec`: commands that run as long as the engine does.
