//! One run of gvmm on the simulator.

use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::build::programs;
use crate::image;
use crate::terminal::Terminal;

/// No run takes longer, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

/// A driver to simulate, with the kind of VM that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Version 14 of the posted driver; shared memory.
    A,
    /// The same with Android's additions; protected.
    APlus,
    /// Generation B; protected.
    B,
    /// Generation C; protected.
    C,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::A, Self::APlus, Self::B, Self::C];

    fn simulator(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::APlus => "A+",
            Self::B => "B",
            Self::C => "C",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::A => &[],
            _ => &["--protected", "--swiotlb", "8M"],
        }
    }
}

/// A run to be started.
pub struct Run {
    folder: TempDir,
    command: Command,
}

/// A run that has been started.
pub struct Running {
    folder: TempDir,
    child: Child,
    terminal: Terminal,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` if a signal killed gvmm.
    pub code: Option<i32>,
    /// Signal that killed it.
    pub signal: Option<i32>,
    /// What was shown on the terminal.
    pub console: String,
    /// gvmm's messages.
    pub messages: String,
    /// Whether the terminal is as it was before.
    pub terminal_restored: bool,
    /// What the simulator was asked, in order.
    pub trace: Vec<Value>,
    /// What the simulator found at the end; null if gvmm was killed.
    pub report: Value,
}

impl Run {
    /// gvmm on a driver, with a machine of 32 MiB, a console and a clock, to do what a script says.
    ///
    /// # Panics
    ///
    /// If the programs cannot be built.
    pub fn new(kind: Kind, script: &Value) -> Self {
        let mut run = Self::bare(kind.simulator());
        fs::write(run.folder.path().join("script.json"), script.to_string()).expect("a folder to write to");
        fs::write(run.folder.path().join("Image"), image::kernel()).expect("a folder to write to");
        run.command.env("GUNYAH_SIM_SCRIPT", run.folder.path().join("script.json"));
        run.command.args(["--accel", "gunyah", "--memory", "32M", "--kernel", "Image"]);
        run.command.args(["--no-defaults", "--device", "pl011", "--device", "pl031"]);
        run.command.args(kind.arguments());
        run
    }

    /// gvmm without an argument, on a driver of this name to the simulator.
    ///
    /// # Panics
    ///
    /// If the programs cannot be built.
    pub fn bare(simulator: &str) -> Self {
        let programs = programs();
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(&programs.gvmm);
        command.current_dir(folder.path());
        for (name, file) in &programs.plugins {
            let link = folder.path().join(format!("{name}.so"));
            std::os::unix::fs::symlink(file, link).expect("a folder to write to");
        }
        command.env("LD_PRELOAD", &programs.simulator);
        command.env("GVMM_PLUGIN_PATH", folder.path());
        command.env("GUNYAH_SIM", simulator);
        command.env("GUNYAH_SIM_MEMLOCK", "off");
        command.env("GUNYAH_SIM_TRACE", folder.path().join("trace.jsonl"));
        command.env("GUNYAH_SIM_REPORT", folder.path().join("report.json"));
        Self { folder, command }
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Takes from the kernel what it needs to use the window of a protected guest.
    ///
    /// # Panics
    ///
    /// If the folder cannot be written to.
    #[must_use]
    pub fn without_window_driver(self) -> Self {
        let mut kernel = image::kernel();
        kernel[64..64 + image::POOL.len()].fill(0);
        fs::write(self.folder.path().join("Image"), kernel).expect("a folder to write to");
        self
    }

    /// Adds an injection (`GUNYAH_SIM_INJECT`).
    #[must_use]
    pub fn inject(self, injection: &str) -> Self {
        self.setting("INJECT", injection)
    }

    /// Sets `GUNYAH_SIM_NAME`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.command.env(format!("GUNYAH_SIM_{name}"), value);
        self
    }

    /// Simulates another driver than that of the kind, whose arguments stay.
    #[must_use]
    pub fn driver(mut self, simulator: &str) -> Self {
        self.command.env("GUNYAH_SIM", simulator);
        self
    }

    /// Adds a disk of 1 MiB on virtio-mmio, which the small guests have a driver for, every sector of it filled with the low byte of its number.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn disk(self) -> Self {
        let sectors = (0..2048u32).flat_map(|sector| [sector.to_le_bytes()[0]; 512]);
        let file = self.folder.path().join("disk.img");
        fs::write(file, sectors.collect::<Vec<_>>()).expect("a folder to write to");
        self.arguments(&["--device", "virtio_blk,disk=disk.img,transport=mmio"])
    }

    /// Adds a disk of 1 MiB with so many queues, on the usual transport.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn disk_with_queues(self, name: &str, queues: u32) -> Self {
        fs::write(self.folder.path().join(name), [0; 1 << 20]).expect("a folder to write to");
        self.arguments(&["--device", &format!("virtio_blk,disk={name},queues={queues}")])
    }

    /// Starts gvmm.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start(mut self) -> Running {
        let terminal = Terminal::new();
        let screen = || Stdio::from(terminal.screen.try_clone().expect("a descriptor"));
        self.command.stdin(screen()).stdout(screen()).stderr(Stdio::piped());
        // Out of the process group of the test, whose Ctrl-C is not for it.
        self.command.process_group(0);
        let child = self.command.spawn().expect("gvmm starts");
        Running { folder: self.folder, child, terminal }
    }

    /// Starts gvmm and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not start or does not end.
    pub fn to_end(self) -> Ended {
        self.start().to_end()
    }
}

impl Running {
    /// Types into the terminal.
    pub fn type_in(&mut self, keys: &str) {
        self.terminal.type_in(keys.as_bytes());
    }

    /// Waits until the terminal has shown a text so many times.
    ///
    /// # Panics
    ///
    /// If it does not come.
    pub fn wait_for(&self, text: &str, times: usize) {
        assert!(
            self.terminal.wait_for(text, times, LIMIT),
            "{text:?} does not come: {:?}",
            self.terminal.text()
        );
    }

    /// Asks gvmm to stop.
    pub fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill(self.pid(), signal);
    }

    /// Descriptors, threads and mappings of gvmm now.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn possessions(&self) -> [usize; 3] {
        let folder = format!("/proc/{}", self.child.id());
        let entries = |name: &str| fs::read_dir(format!("{folder}/{name}")).expect("a process").count();
        let maps = fs::read_to_string(format!("{folder}/maps")).expect("a process");
        [entries("fd"), entries("task"), maps.lines().count()]
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// If it does not come: gvmm is killed and its messages are shown.
    pub fn to_end(mut self) -> Ended {
        let mut pipe = self.child.stderr.take().expect("messages are piped");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            // Bytes that are no text would fail the comparison of the messages anyway.
            let _ = pipe.read_to_string(&mut text);
            text
        });
        let until = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break Some(status);
            }
            if Instant::now() > until {
                // Its messages end with it.
                let _ = self.child.kill();
                let _ = self.child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let messages = reader.join().expect("the reader of the messages");
        let Some(status) = status else { panic!("gvmm does not end; it said:\n{messages}") };
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        Ended {
            code: status.code(),
            signal: status.signal(),
            console: self.terminal.text(),
            messages,
            terminal_restored: self.terminal.is_restored(),
            trace: read("trace.jsonl").lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
            report: serde_json::from_str(&read("report.json")).unwrap_or(Value::Null),
        }
    }

    fn pid(&self) -> Pid {
        // Process ids are positive and fit.
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Ended {
    /// Names of the calls that the driver was asked, each with whether it succeeded.
    pub fn calls(&self) -> Vec<(String, bool)> {
        let of = |entry: &Value| Some((entry["call"].as_str()?.to_owned(), entry.get("errno").is_none()));
        self.trace.iter().filter_map(of).collect()
    }

    /// The entries of the successful calls of a name.
    pub fn made(&self, call: &str) -> Vec<&Value> {
        self.trace.iter().filter(|entry| entry["call"] == call && entry.get("errno").is_none()).collect()
    }

    /// Fails unless gvmm ended with this code, put the terminal back and left nothing of the driver's open.
    ///
    /// # Panics
    ///
    /// If not, with all that is known.
    #[track_caller]
    pub fn assert_orderly(&self, code: i32) {
        assert_eq!((self.code, self.signal), (Some(code), None), "{}", self.summary());
        assert!(self.terminal_restored, "the terminal is not restored: {}", self.summary());
        assert_eq!(self.report["open"], serde_json::json!([]), "{}", self.summary());
        assert_eq!(self.report["problems"], serde_json::json!([]), "{}", self.summary());
        assert!(!self.messages.contains("panicked"), "{}", self.summary());
    }

    /// Everything, for the message of a failed assertion.
    pub fn summary(&self) -> String {
        let trace: Vec<_> = self.trace.iter().map(Value::to_string).collect();
        let last = trace[trace.len().saturating_sub(12)..].join("\n");
        format!(
            "code {:?}, signal {:?}\n{}\nconsole: {:?}\nreport: {}\nend of the trace:\n{last}",
            self.code, self.signal, self.messages, self.console, self.report
        )
    }
}
