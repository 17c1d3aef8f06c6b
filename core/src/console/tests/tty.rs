//! A pseudo-terminal with a child process on it, from the side of the one who types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, Termios, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::role;

nix::ioctl_write_ptr_bad!(
    /// Sets the window size of a terminal.
    set_size,
    libc::TIOCSWINSZ,
    Winsize
);
nix::ioctl_write_int_bad!(make_controlling, libc::TIOCSCTTY);

/// How long a test waits before it fails; no test passes by it.
const PATIENCE: u16 = 60_000;

/// A terminal and the child on it.
pub(super) struct Tty {
    master: File,
    slave: OwnedFd,
    child: Child,
    /// Shown and not yet looked at.
    shown: Vec<u8>,
    original: Termios,
}

impl Tty {
    /// Starts a role on a fresh terminal of 80 by 25, standard error left out.
    pub(super) fn start(name: &str) -> Self {
        let size = Winsize { ws_row: 25, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let (master, slave) = open();
        // SAFETY: TIOCSWINSZ reads a winsize.
        unsafe { set_size(master.as_raw_fd(), &raw const size) }.unwrap();
        let original = tcgetattr(&slave).unwrap();
        let handle = || Stdio::from(slave.try_clone().unwrap());
        let mut command = role::command(name);
        command.stdin(handle()).stdout(handle()).stderr(Stdio::null());
        let child = on_terminal(&mut command).spawn().unwrap();
        let mut tty = Self { master, slave, child, shown: Vec::new(), original };
        tty.expect("@ready");
        tty
    }

    pub(super) fn type_in(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// A second handle for typing from another thread.
    pub(super) fn keyboard(&self) -> File {
        self.master.try_clone().unwrap()
    }

    /// Reads until the text appears; returns what was shown before it.
    pub(super) fn expect(&mut self, text: &str) -> Vec<u8> {
        loop {
            let found = self.shown.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return before;
            }
            assert!(self.read_more(), "the child ended before '{text}': {:?}", self.text());
        }
    }

    /// Whether the terminal is as it was before the child started.
    pub(super) fn is_restored(&self) -> bool {
        self.modes() == self.original
    }

    /// Whether the guest gets every key as it is, and the terminal shows every byte as it is.
    pub(super) fn is_raw(&self) -> bool {
        let modes = self.modes();
        !modes.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
            && !modes.input_flags.intersects(InputFlags::ICRNL | InputFlags::IXON)
            && !modes.output_flags.contains(OutputFlags::OPOST)
    }

    pub(super) fn modes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads a winsize.
        unsafe { set_size(self.master.as_raw_fd(), &raw const size) }.unwrap();
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits until the child has stopped.
    pub(super) fn wait_stopped(&self) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }

    /// Waits until the child is gone: its exit code, or the signal that ended it.
    pub(super) fn finish(&mut self) -> Result<i32, i32> {
        // What the child has shown must be read, or it never ends.
        for _ in 0..PATIENCE / 50 {
            if self.child.try_wait().unwrap().is_some() {
                break;
            }
            self.read_some(50);
        }
        assert!(self.child.try_wait().unwrap().is_some(), "the child lives: {:?}", self.text());
        let status = self.child.wait().unwrap();
        status.code().ok_or_else(|| status.signal().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Reads once; false when the child has ended and everything is read.
    fn read_more(&mut self) -> bool {
        for _ in 0..PATIENCE / 50 {
            if self.read_some(50) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return self.read_some(0);
            }
        }
        panic!("nothing is shown: {:?}", self.text());
    }

    /// Reads what is shown within so many milliseconds; whether it was anything.
    fn read_some(&mut self, milliseconds: u16) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() == 0 {
            return false;
        }
        let mut chunk = [0; 65536];
        let len = self.master.read(&mut chunk).unwrap_or(0);
        self.shown.extend_from_slice(&chunk[..len]);
        len > 0
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // A child that has ended already is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A fresh pseudo-terminal, no end of which reaches the children of other tests.
fn open() -> (File, OwnedFd) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname_r(&master).unwrap();
    let slave = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap();
    // SAFETY: the descriptor is the master's alone.
    (unsafe { File::from_raw_fd(master.into_raw_fd()) }, slave.into())
}

/// Makes the child the leader of a session with its standard input as terminal.
fn on_terminal(command: &mut Command) -> &mut Command {
    let become_leader = || {
        nix::unistd::setsid()?;
        // SAFETY: TIOCSCTTY takes a number.
        unsafe { make_controlling(libc::STDIN_FILENO, 0) }?;
        Ok(())
    };
    // SAFETY: two system calls, nothing that a fork would have left locked.
    unsafe { command.pre_exec(become_leader) }
}
