//! `iii-http`: functions behind HTTP routes.
