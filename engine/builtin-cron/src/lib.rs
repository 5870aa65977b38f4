//! `iii-cron`: calls at given times.
