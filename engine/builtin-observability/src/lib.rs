//! `iii-observability`: logs, spans and metrics, kept and sent on.
