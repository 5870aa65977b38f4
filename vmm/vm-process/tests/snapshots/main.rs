//! Real machines that are paused, saved and restored, with QEMU and the kit.

mod children;
mod place;
mod refusals;
