//! `iii-stream`: items that subscribers see change.
