//! The command line, point by point, with the real programs: what is said where, and with which status.

mod basics;
mod doctor;
mod file_server;
mod person;
mod project;
mod trigger;
mod update;
