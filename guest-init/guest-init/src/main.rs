//! `iii-init`: PID 1 of a guest; with `--serve-fd N`, the same services over a socket, without a guest.

use std::fs::File;
use std::os::fd::FromRawFd;

use guest_init::{Platform, Services, boot, serve};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, number] = arguments.as_slice()
        && flag == "--serve-fd"
    {
        let Ok(number) = number.parse() else {
            eprintln!("iii-init: `{number}` is no descriptor");
            return;
        };
        #[expect(unsafe_code, reason = "a descriptor that the caller hands over by number")]
        // SAFETY: whoever passes `--serve-fd N` gives descriptor N to this process and uses it no more.
        let channel = unsafe { File::from_raw_fd(number) };
        serve(channel, Services::new(Platform::Process));
        return;
    }
    boot::run();
}
