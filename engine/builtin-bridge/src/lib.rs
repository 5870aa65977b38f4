//! `iii-bridge`: functions of another engine, here and there.
