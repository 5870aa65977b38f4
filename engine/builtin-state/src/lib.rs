//! `iii-state`: values by scope and key.
