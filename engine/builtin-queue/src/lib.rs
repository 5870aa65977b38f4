//! `iii-queue`: messages that are delivered at least once.
