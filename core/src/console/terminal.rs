//! The terminal on standard input: raw while the guest has it, as it was on every way out.
//!
//! The modes of a terminal outlive the program that set them, so they are put back by whichever comes first: the drop
//! of `RawTerminal`, the end of the process by `exit`, a fatal signal (see `fatal.rs`), or a stop by job control.

use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fatal;

const STDIN: libc::c_int = libc::STDIN_FILENO;

/// The modes at the start.
static ORIGINAL: OnceLock<libc::termios> = OnceLock::new();
/// Whether the modes are ours at the moment.
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode until the value is dropped or the process ends.
#[derive(Debug)]
pub(super) struct RawTerminal(());

impl RawTerminal {
    /// Takes the terminal; `None` when standard input is none.
    ///
    /// In the background the modes stay as they are until [`resume`].
    pub(super) fn take() -> io::Result<Option<Self>> {
        let Some(modes) = modes()? else { return Ok(None) };
        if ORIGINAL.set(modes).is_ok() {
            fatal::install();
            restore_when_panics_are_told();
            // SAFETY: the function is one of this library and stays until the process has ended.
            unsafe { libc::atexit(restore_at_exit) };
        }
        let terminal = Self(());
        resume()?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(Unread::Discard);
    }
}

/// What happens to input that was typed and not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It stays.
    Keep,
    /// It is dropped: what was typed for the guest must not run in the host's shell.
    Discard,
}

/// Puts back the modes, if they are ours. Safe in a signal handler and on any thread.
pub(super) fn restore(unread: Unread) {
    let Some(original) = ORIGINAL.get() else { return };
    // In the background the terminal is the shell's, which has set its own modes.
    if !RAW.swap(false, Ordering::SeqCst) || !in_foreground() {
        return;
    }
    if unread == Unread::Discard {
        // SAFETY: no memory arguments.
        unsafe { libc::tcflush(STDIN, libc::TCIFLUSH) };
    }
    // SAFETY: `original` is a whole termios.
    unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, original) };
}

/// Columns and rows of the terminal on standard output or, failing that, input; zero when there is none.
pub(super) fn size() -> (u16, u16) {
    size_of(libc::STDOUT_FILENO).or_else(|| size_of(STDIN)).unwrap_or((0, 0))
}

/// Columns and rows of a terminal.
pub(super) fn size_of(terminal: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills in a winsize.
    let known = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) } == 0;
    known.then_some((size.ws_col, size.ws_row))
}

/// Standard error for log lines: begins each line at the left edge while the terminal is raw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_all(data)?;
        Ok(data.len())
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        if !RAW.load(Ordering::Relaxed) {
            return io::stderr().write_all(data);
        }
        let mut text = Vec::with_capacity(data.len() + 16);
        for &byte in data {
            if byte == b'\n' {
                text.push(b'\r');
            }
            text.push(byte);
        }
        io::stderr().write_all(&text)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A line for the user, on standard error if that is a terminal.
pub(super) fn say(text: &str) {
    if io::stderr().is_terminal() {
        // Nothing is lost but a hint.
        let _ = Stderr.write_all(format!("{text}\n").as_bytes());
    }
}

/// A line that the user needs, on standard error whatever that is.
pub(super) fn tell(text: &str) {
    tracing::info!("{text}");
    // It is in the log, too.
    let _ = Stderr.write_all(format!("gvmm: {text}\n").as_bytes());
}

/// Goes to raw mode, at first or again after [`restore`], if this process is in the foreground.
pub(super) fn resume() -> io::Result<()> {
    let (Some(mut modes), true) = (modes()?, in_foreground()) else { return Ok(()) };
    // SAFETY: `modes` is a whole termios.
    unsafe { libc::cfmakeraw(&raw mut modes) };
    // From here on a signal restores, even if the modes are not changed yet.
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: as above.
    match unsafe { libc::tcsetattr(STDIN, libc::TCSADRAIN, &raw const modes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The modes now; `None` when standard input is no terminal.
fn modes() -> io::Result<Option<libc::termios>> {
    let mut modes = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr writes a termios there or fails.
    if unsafe { libc::tcgetattr(STDIN, modes.as_mut_ptr()) } == 0 {
        // SAFETY: tcgetattr has succeeded.
        return Ok(Some(unsafe { modes.assume_init() }));
    }
    match io::Error::last_os_error() {
        // What is closed, hung up or something else is no terminal to take.
        error if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EBADF | libc::EIO)) => Ok(None),
        error => Err(error),
    }
}

/// Whether the shell has given the terminal to this process. True on a terminal without job control.
fn in_foreground() -> bool {
    // SAFETY: no memory arguments.
    let foreground = unsafe { libc::tcgetpgrp(STDIN) };
    // SAFETY: no arguments at all.
    foreground < 0 || foreground == unsafe { libc::getpgrp() }
}

extern "C" fn restore_at_exit() {
    restore(Unread::Discard);
}

/// Lets the text of a panic appear as text. Whether the process ends by it is decided elsewhere.
fn restore_when_panics_are_told() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let was_raw = RAW.load(Ordering::SeqCst);
        restore(Unread::Keep);
        tell(info);
        if was_raw {
            // If it fails the terminal stays as the user had it.
            let _ = resume();
        }
    }));
}
