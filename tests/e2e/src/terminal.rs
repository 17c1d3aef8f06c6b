//! A command on a terminal of its own, typed to by a script: what a person at a console would do.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to do, in order: wait:TEXT (until the command has printed it), type:TEXT (with \r, \n, \t, \\ and
    /// \xHH), paste:FILE (type a file as fast as it is taken), resize:COLUMNSxROWS, signal:NAME (send TERM, INT,
    /// KILL, ...)
    #[arg(long = "then", value_name = "STEP")]
    steps: Vec<String>,
    /// Where to write all that the command prints
    #[arg(long)]
    log: PathBuf,
    /// Seconds after which the command is killed
    #[arg(long, default_value_t = 100)]
    timeout: u64,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) enum Step {
    Wait(Vec<u8>),
    Type(Vec<u8>),
    Resize(Winsize),
    Signal(nix::sys::signal::Signal),
}

/// Runs the command through the steps to its end; prints `@terminal restored` or `@terminal changed`, and
/// `@exit CODE` (128 and the signal's number if one ended it).
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.steps.iter().map(|step| Step::parse(step)).collect::<Result<Vec<_>>>()?;
    let pty = openpty(None, None).context("cannot make a terminal")?;
    let before = tcgetattr(&pty.slave)?;
    let mut child = spawn(&options.command, &pty.slave)?;
    let mut session = Session::new(pty.master, &options.log, options.timeout)?;
    let outcome = drive(&mut session, &steps, &mut child);
    if outcome.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    session.drain()?;
    outcome?;
    let restored = same(&before, &tcgetattr(&pty.slave)?);
    println!("@terminal {}", if restored { "restored" } else { "changed" });
    println!("@exit {}", status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
    Ok(())
}

impl Step {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (kind, value) = text.split_once(':').with_context(|| format!("step {text}: no colon"))?;
        Ok(match kind {
            "wait" => Self::Wait(value.as_bytes().to_vec()),
            "type" => Self::Type(unescape(value)?),
            "paste" => Self::Type(std::fs::read(value).with_context(|| format!("cannot read {value}"))?),
            "resize" => {
                let numbers = value.split_once('x').with_context(|| format!("step {text}: no x"))?;
                Self::Resize(Winsize {
                    ws_col: numbers.0.parse().with_context(|| format!("step {text}"))?,
                    ws_row: numbers.1.parse().with_context(|| format!("step {text}"))?,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                })
            }
            "signal" => Self::Signal(format!("SIG{value}").parse().with_context(|| format!("step {text}"))?),
            _ => bail!("step {text}: what is {kind}?"),
        })
    }
}

fn spawn(words: &[String], terminal: &OwnedFd) -> Result<Child> {
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory of the parent's
    // other threads.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            requests::take(std::io::stdin().as_fd())?;
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("cannot start {program}"))
}

/// Goes through the steps, then reads until the command ends.
fn drive(session: &mut Session, steps: &[Step], child: &mut Child) -> Result<()> {
    for step in steps {
        match step {
            Step::Signal(signal) => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), *signal)?;
            }
            Step::Resize(size) => requests::resize(&session.line, size)?,
            Step::Wait(_) | Step::Type(_) => session.perform(step)?,
        }
    }
    while child.try_wait()?.is_none() {
        session.step(&[])?;
    }
    Ok(())
}

/// What a terminal is asked for by ioctl.
mod requests {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use nix::pty::Winsize;

    nix::ioctl_write_int_bad!(control_terminal, nix::libc::TIOCSCTTY);
    nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, Winsize);

    /// Makes the terminal the controlling one of a new session.
    pub(super) fn take(terminal: BorrowedFd<'_>) -> nix::Result<()> {
        // SAFETY: the request takes an integer, so the kernel follows no pointer.
        unsafe { control_terminal(terminal.as_raw_fd(), 0) }.map(drop)
    }

    pub(super) fn resize(terminal: &std::fs::File, size: &Winsize) -> nix::Result<()> {
        // SAFETY: the request reads a window size.
        unsafe { set_size(terminal.as_raw_fd(), std::ptr::from_ref(size)) }.map(drop)
    }
}

/// A line that is typed to and read from.
pub(crate) struct Session {
    line: File,
    log: File,
    /// Printed since the last text that was waited for.
    unread: Vec<u8>,
    /// The other end is gone.
    ended: bool,
    deadline: Instant,
}

impl Session {
    /// A session on a line, which is given up after so many seconds.
    pub(crate) fn new(line: OwnedFd, log: &Path, seconds: u64) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Ok(Self { line: line.into(), log, unread: Vec::new(), ended: false, deadline })
    }

    /// Types or waits.
    pub(crate) fn perform(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Wait(text) => self.wait_for(text),
            Step::Type(bytes) => self.type_bytes(bytes),
            Step::Resize(_) | Step::Signal(_) => bail!("only a command on a terminal has a size and signals"),
        }
    }

    /// Reads until the other end is gone.
    pub(crate) fn read_to_end(&mut self) -> Result<()> {
        while !self.ended {
            self.step(&[])?;
        }
        Ok(())
    }

    fn wait_for(&mut self, text: &[u8]) -> Result<()> {
        loop {
            if let Some(at) = self.unread.windows(text.len()).position(|window| window == text) {
                self.unread.drain(..at + text.len());
                return Ok(());
            }
            ensure!(!self.ended, "the other end is gone before {:?}", String::from_utf8_lossy(text));
            self.step(&[]).with_context(|| format!("waiting for {:?}", String::from_utf8_lossy(text)))?;
        }
    }

    /// Reads on while it writes: a terminal whose output nobody takes does not take input for ever.
    fn type_bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let written = self.step(bytes)?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits a moment for output, or for room for input; returns how much input was taken.
    fn step(&mut self, input: &[u8]) -> Result<usize> {
        ensure!(Instant::now() < self.deadline, "the time is over");
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !input.is_empty());
        let mut polled = [PollFd::new(self.line.as_fd(), interest)];
        poll(&mut polled, PollTimeout::from(100_u8))?;
        let ready = polled[0].revents().unwrap_or(PollFlags::empty());
        if ready.contains(PollFlags::POLLIN) {
            self.take_output()?;
        }
        if ready.contains(PollFlags::POLLOUT) {
            // A terminal's buffer holds 4 KiB; more would block with our own output unread.
            return Ok(self.line.write(&input[..input.len().min(256)])?);
        }
        Ok(0)
    }

    fn take_output(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let count = self.line.read(&mut buffer)?;
        self.ended |= count == 0;
        self.log.write_all(&buffer[..count])?;
        self.unread.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// Takes what was printed last.
    fn drain(&mut self) -> Result<()> {
        loop {
            let mut polled = [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            if self.ended || poll(&mut polled, PollTimeout::ZERO)? == 0 {
                return Ok(());
            }
            self.take_output()?;
        }
    }
}

fn same(before: &Termios, after: &Termios) -> bool {
    before.input_flags == after.input_flags
        && before.output_flags == after.output_flags
        && before.control_flags == after.control_flags
        && before.local_flags == after.local_flags
        && before.control_chars == after.control_chars
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or(b' ')));
                u8::from_str_radix(&String::from_iter(digits), 16)
                    .with_context(|| format!("\\x in {text}"))?
            }
            _ => bail!("{text}: unknown escape"),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(steps: &[&str], script: &str) -> (tempfile::NamedTempFile, Options) {
        let log = tempfile::NamedTempFile::new().unwrap();
        let options = Options {
            steps: steps.iter().map(|&step| step.to_owned()).collect(),
            log: log.path().to_path_buf(),
            timeout: 60,
            command: ["sh", "-c", script].map(str::to_owned).into(),
        };
        (log, options)
    }

    #[test]
    fn what_is_typed_reaches_the_command_and_its_answer_the_log() {
        let (log, options) = options(&["wait:name?", r"type:gvmm\r"], "echo name?; read n; echo hello $n");
        run(&options).unwrap();
        assert!(std::fs::read_to_string(log.path()).unwrap().contains("hello gvmm"));
    }

    #[test]
    fn a_text_that_never_comes_is_named() {
        let (_log, mut options) = options(&["wait:never"], "sleep 100");
        options.timeout = 0;
        let error = format!("{:#}", run(&options).unwrap_err());
        assert!(error.contains("never"), "{error}");
    }

    #[test]
    fn escapes_become_bytes_and_unknown_ones_are_refused() {
        assert_eq!(unescape(r"a\x01b\r\\").unwrap(), b"a\x01b\r\\");
        assert!(unescape(r"\q").is_err());
        assert!(unescape(r"\x").is_err());
    }

    #[test]
    fn a_raw_terminal_is_not_the_same() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let mut raw = before.clone();
        nix::sys::termios::cfmakeraw(&mut raw);
        assert!(same(&before, &before) && !same(&before, &raw));
    }
}
