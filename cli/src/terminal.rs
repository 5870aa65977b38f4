//! The user's terminal: its size, and raw mode for as long as a guard lives.

use std::io::{IsTerminal, stdin, stdout};

use daemon_api::worker::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

mod ioctl {
    #![expect(unsafe_code, reason = "the window size comes through an ioctl, which has no safe form")]

    use std::os::fd::AsRawFd;

    nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

    /// Rows and columns of standard output, where it is a terminal.
    pub(super) fn size() -> Option<(u16, u16)> {
        let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open, and the kernel writes one `winsize` to the pointer, which is valid for it.
        unsafe { window_size(std::io::stdout().as_raw_fd(), &raw mut size) }.ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    }
}

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// The size of the window, or the one that terminals have always had.
pub(crate) fn size() -> TerminalSize {
    let (rows, cols) = ioctl::size().unwrap_or((24, 80));
    TerminalSize { rows, cols }
}

/// Raw mode: what is typed goes to the program as it is. Dropping it restores the terminal.
pub(crate) struct Raw(Termios);

impl Raw {
    pub(crate) fn enter() -> nix::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
