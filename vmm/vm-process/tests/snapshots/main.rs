//! Real machines that are paused, saved and restored, with QEMU and the kit.

mod children;
mod forks;
mod guests;
mod place;
mod refusals;
