//! Starts `gvmm-device` with a plugin, again each time that it ends, and stops it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gvmm_plugin_api::host::{Host, Manifest, program};
use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::services::{Console, ConsoleSize};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::reports::{Answer, Packets, Ready, Report};
use crate::frontend::connector::{Connector, Told};
use crate::protocol::Channel;

/// The program that serves the plugin, beside gvmm.
const PROGRAM: &str = "gvmm-device";
/// How long a device may take to complete what it has taken when it is to end.
const END: Duration = Duration::from_secs(5);
/// How long a plugin may take to make its device.
const START: Duration = Duration::from_secs(30);
/// Longest line of standard error that is logged.
const MAX_LINE: usize = 4096;

/// What runs in a process of its own.
#[derive(Debug, Clone)]
pub struct Isolated {
    /// The program that serves it; see [`program()`].
    pub program: PathBuf,
    /// File of the plugin.
    pub plugin: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its options.
    pub values: Values,
    /// Id of the device.
    pub id: String,
    /// Whether there is to be no device in less than a whole sandbox.
    pub required: bool,
    /// The most detailed log level wanted (1 error to 5 trace).
    pub max_level: u8,
}

/// The program that serves plugins: it lies beside gvmm.
///
/// # Errors
///
/// When it does not.
pub fn program() -> Result<PathBuf, String> {
    let folder = program::path().and_then(|file| file.parent().map(Path::to_owned));
    let program = folder.map(|folder| folder.join(PROGRAM)).filter(|file| file.exists());
    program.ok_or_else(|| {
        format!("isolate: the program {PROGRAM} is not beside gvmm: install both in one folder")
    })
}

impl Isolated {
    /// The arguments of the program.
    fn arguments(&self, socket: i32, reports: i32) -> io::Result<Vec<OsString>> {
        let doubled = |text: &str| text.replace(',', ",,");
        let plugin = std::path::absolute(&self.plugin)?;
        let mut device = doubled(&plugin.to_string_lossy());
        for (name, value) in self.values.iter() {
            device += &format!(",{name}={}", doubled(value));
        }
        device += &format!(",id={}", self.id);
        let level = ["off", "error", "warn", "info", "debug", "trace"];
        let level = level.get(usize::from(self.max_level)).copied().unwrap_or("warn");
        let sandbox = if self.required { "required" } else { "on" };
        let fds = [("--fd", socket.to_string()), ("--reports", reports.to_string())];
        let words = [("--sandbox", sandbox.to_owned()), ("--log", level.to_owned())];
        let options = fds.into_iter().chain(words).flat_map(|(name, value)| [name.to_owned(), value]);
        Ok([device].into_iter().chain(options).map(OsString::from).collect())
    }

    /// Whether a console is among the options: the process may be another's by now, and gets no other.
    fn names_console(&self, attachment: &str) -> bool {
        self.values.iter().any(|(_, value)| value == attachment)
    }
}

/// The process, as a way to a back end.
pub(crate) struct Supervisor {
    isolated: Arc<Isolated>,
    host: Arc<dyn Host>,
    /// Consoles stay open over deaths of the process.
    consoles: Arc<Mutex<BTreeMap<String, Console>>>,
    running: Option<Running>,
    said: bool,
}

struct Running {
    child: Child,
    heard: Arc<Heard>,
}

/// What the process has said of itself.
#[derive(Default)]
struct Heard {
    state: Mutex<HeardState>,
    changed: Condvar,
}

#[derive(Default)]
struct HeardState {
    ready: Option<Ready>,
    refused: Option<String>,
    ended: bool,
}

impl Heard {
    fn change(&self, change: impl FnOnce(&mut HeardState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Supervisor {
    /// For a plugin; nothing is started yet.
    pub(crate) fn new(isolated: Isolated, host: Arc<dyn Host>) -> Self {
        let isolated = Arc::new(isolated);
        Self { isolated, host, consoles: Arc::default(), running: None, said: false }
    }

    fn start(&self) -> io::Result<(Channel, Running)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (reports, their_reports) = Packets::pair()?;
        let passed = [theirs.as_raw_fd(), their_reports.as_fd().as_raw_fd()];
        let mut command = Command::new(&self.isolated.program);
        command.args(self.isolated.arguments(passed[0], passed[1])?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A path would lead the program's loader elsewhere.
        command.env_clear().env("PATH", "/usr/bin:/bin");
        let parent = std::process::id();
        let prepare = move || prepare(passed, parent);
        // SAFETY: it makes system calls alone, which is what may be done between fork and exec.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn()?;
        let heard = Arc::new(Heard::default());
        let errors = child.stderr.take();
        let listener = Listener {
            isolated: self.isolated.clone(),
            host: self.host.clone(),
            consoles: self.consoles.clone(),
            heard: heard.clone(),
        };
        let spawned = listener.listen(reports, errors);
        let running = Running { child, heard };
        match spawned {
            Ok(()) => Ok((Channel::from(ours), running)),
            Err(error) => {
                running.end(Signal::SIGKILL);
                Err(error)
            }
        }
    }

    /// Says once what the sandbox lacks.
    fn say_missing(&mut self, missing: &[String]) {
        if !std::mem::replace(&mut self.said, true) && !missing.is_empty() {
            let text = format!("the sandbox is not whole, this host refused: {}", missing.join(", "));
            self.host.log(2, "isolate", &text);
        }
    }
}

/// In the new process, before the program: keeps the two sockets, and makes it end with gvmm.
fn prepare(passed: [i32; 2], parent: u32) -> io::Result<()> {
    for fd in passed {
        // SAFETY: open in this process, which is a copy of the one that made them.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    match nix::unistd::getppid().as_raw().cast_unsigned() == parent {
        true => Ok(()),
        false => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

impl Running {
    /// Asks the process to end, waits for that, and ends it at last; whether it ended by itself.
    fn end(mut self, signal: Signal) -> bool {
        // No process has an id beyond 31 bits.
        let id = Pid::from_raw(self.child.id().cast_signed());
        // It may be gone by itself.
        let _ = kill(id, signal);
        let begun = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > END {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Connector for Supervisor {
    fn connect(&mut self) -> Result<Channel, String> {
        self.lost();
        let started = self.start();
        let (channel, running) =
            started.map_err(|e| format!("isolate: cannot start {}: {e}", self.isolated.program.display()))?;
        self.running = Some(running);
        Ok(channel)
    }

    fn told(&mut self) -> Result<Option<Told>, String> {
        let Some(running) = &self.running else { return Ok(None) };
        let state = running.heard.state.lock().unwrap_or_else(PoisonError::into_inner);
        let silent =
            |state: &mut HeardState| state.ready.is_none() && state.refused.is_none() && !state.ended;
        let waited = running.heard.changed.wait_timeout_while(state, START, silent);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (ready, refused) = (state.ready.clone(), state.refused.clone());
        drop(state);
        match (ready, refused) {
            (_, Some(why)) => Err(why),
            (Some(ready), None) => {
                self.say_missing(&ready.missing);
                Ok(Some(Told { queue_sizes: ready.queue_sizes, config_size: ready.config_size }))
            }
            // The connection tells what is wrong.
            (None, None) => Ok(None),
        }
    }

    fn lost(&mut self) {
        if let Some(running) = self.running.take() {
            running.end(Signal::SIGKILL);
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(running) = self.running.take()
            && !running.end(Signal::SIGTERM)
        {
            let text = format!("its process did not end within {} s and was killed", END.as_secs());
            self.host.log(2, "isolate", &text);
        }
    }
}

/// Hears what a process says, until it has ended.
struct Listener {
    isolated: Arc<Isolated>,
    host: Arc<dyn Host>,
    consoles: Arc<Mutex<BTreeMap<String, Console>>>,
    heard: Arc<Heard>,
}

impl Listener {
    fn listen(self, reports: Packets, errors: Option<ChildStderr>) -> io::Result<()> {
        let host = self.host.clone();
        std::thread::Builder::new().name("reports".to_owned()).spawn(move || {
            loop {
                match reports.receive::<Report>() {
                    Ok(Some((report, _))) => self.take(report, &reports),
                    Ok(None) => break,
                    // Nothing was said for a while.
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    Err(error) => {
                        self.host.log(2, "isolate", &format!("a report that makes no sense: {error}"))
                    }
                }
            }
            self.heard.change(|state| state.ended = true);
        })?;
        let Some(errors) = errors else { return Ok(()) };
        std::thread::Builder::new().name("stderr".to_owned()).spawn(move || log_lines(errors, &*host))?;
        Ok(())
    }

    fn take(&self, report: Report, reports: &Packets) {
        match report {
            Report::Log(level, target, text) => self.host.log(level, &target, &text),
            Report::Failed(reason) => self.host.device_failed(&reason),
            Report::Refused(why) => self.heard.change(|state| state.refused = Some(why)),
            Report::Ready(ready) => self.heard.change(|state| state.ready = Some(ready)),
            Report::OpenConsole(attachment) => {
                let opened = self.open(&attachment);
                let (answer, fds) = match &opened {
                    Ok(fds) => (Answer::Console, fds.iter().map(AsFd::as_fd).collect()),
                    Err(why) => (Answer::Refused(why.clone()), Vec::new()),
                };
                self.answer(reports, &answer, &fds);
            }
            Report::ConsoleSize(attachment) => {
                let consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
                let (columns, rows) =
                    consoles.get(&attachment).map_or((0, 0), |console| ConsoleSize::get(&console.size));
                drop(consoles);
                self.answer(reports, &Answer::Size(columns, rows), &[]);
            }
        }
    }

    fn answer(&self, reports: &Packets, answer: &Answer, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Err(error) = reports.send(answer, fds) {
            self.host.log(4, "isolate", &format!("an answer is lost: {error}"));
        }
    }

    /// Descriptors of a console: input, output, and the event for its size.
    fn open(&self, attachment: &str) -> Result<Vec<std::os::fd::OwnedFd>, String> {
        if !self.isolated.names_console(attachment) {
            return Err(format!("no option of the device names console '{attachment}'"));
        }
        let mut consoles = self.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        if !consoles.contains_key(attachment) {
            consoles.insert(attachment.to_owned(), self.host.open_console(attachment)?);
        }
        let Some(console) = consoles.get(attachment) else { return Err("it is gone".to_owned()) };
        let resized = console.resized.as_ref().map(Event::as_fd);
        let all = [Some(console.input.as_fd()), Some(console.output.as_fd()), resized];
        let copies = all.into_iter().flatten().map(|fd| fd.try_clone_to_owned());
        copies.collect::<io::Result<_>>().map_err(|e| format!("console '{attachment}': {e}"))
    }
}

/// Logs what a process writes to standard error, in lines that are not too long.
fn log_lines(errors: ChildStderr, host: &dyn Host) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    while let Ok(part) = errors.fill_buf() {
        if part.is_empty() {
            break;
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let room = MAX_LINE.saturating_sub(line.len());
        let taken = end.unwrap_or(part.len());
        line.extend_from_slice(&part[..taken.min(room)]);
        errors.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            host.log(2, "stderr", &String::from_utf8_lossy(&line));
            line.clear();
        }
    }
}
