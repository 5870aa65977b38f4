//! `iii-http-functions`: functions that are HTTP requests.
