//! `iii-pubsub`: messages to whoever listens now.
