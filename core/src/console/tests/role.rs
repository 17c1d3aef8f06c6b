//! What child processes of the tests do.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::Console;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::console::ConsoleHub;

nix::ioctl_read_bad!(unread_bytes, libc::FIONREAD, libc::c_int);

const ROLE: &str = "GVMM_CONSOLE_TEST_ROLE";

/// This test program as a child that runs a role.
pub(super) fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let this = format!("{}::child", module_path!().split_once("::").unwrap().1);
    command.args([&this, "--exact", "--include-ignored", "--nocapture", "--quiet"]).env(ROLE, name);
    command
}

/// Not a test of its own: the entry of the children.
#[test]
#[ignore = "run by other tests as a child process"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let stop = Event::new().unwrap();
    let leave = stop.try_clone().unwrap();
    let hub = ConsoleHub::new(move || leave.signal());
    let console = Device::open(&hub, "stdio");
    match role.as_str() {
        "echo" => console.echo(&stop),
        "count" => console.count(),
        "sizes" => console.tell_sizes(),
        "two" => hand_over(&console, &Device::open(&hub, "stdio")),
        "exit" => {
            console.show(b"@ready");
            console.wait(&stop);
            std::process::exit(7);
        }
        "abort" => {
            console.show(b"@ready");
            console.wait(&stop);
            std::process::abort();
        }
        "overflow" => {
            console.show(b"@ready");
            console.wait(&stop);
            std::process::exit(i32::from(overflow(&[0; 4096])));
        }
        "panic" => {
            console.show(b"@ready");
            console.wait(&stop);
            panic!("told to");
        }
        "contained panic" => console.survive_a_panic(&stop),
        other => panic!("no role {other}"),
    }
    drop(hub);
    std::process::exit(0);
}

/// Uses up the stack.
#[allow(unconditional_recursion, reason = "that is its purpose")]
fn overflow(above: &[u8]) -> u8 {
    let mut frame = [above[0]; 4096];
    frame[1] = overflow(std::hint::black_box(&frame));
    std::hint::black_box(frame)[1]
}

/// What a device does to its console.
pub(super) struct Device {
    pub(super) console: Console,
    output: File,
}

impl Device {
    pub(super) fn open(hub: &ConsoleHub, attachment: &str) -> Self {
        let console = hub.open(attachment).unwrap();
        let output = File::from(console.output.try_clone().unwrap());
        Self { console, output }
    }

    pub(super) fn show(&self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            ready(&self.output.as_fd(), PollFlags::POLLOUT);
            let len = left.len().min(Console::ATOMIC_WRITE);
            left = &left[(&self.output).write(&left[..len]).unwrap()..];
        }
    }

    /// Reads what there is; nothing at the end.
    pub(super) fn read(&self) -> Vec<u8> {
        ready(&self.console.input, PollFlags::POLLIN);
        let mut chunk = vec![0; 256];
        let len = nix::unistd::read(&self.console.input, &mut chunk).unwrap();
        chunk.truncate(len);
        chunk
    }

    fn wait(&self, event: &Event) {
        ready(event, PollFlags::POLLIN);
    }

    /// Shows in brackets what is typed until the user leaves.
    fn echo(&self, stop: &Event) {
        self.show(b"@ready");
        loop {
            let mut fds = [
                PollFd::new(self.console.input.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[0].any() == Some(true) {
                let typed = self.read();
                if typed.is_empty() {
                    return self.show(b"@end");
                }
                for byte in typed {
                    self.show(format!("[{byte:02x}]").as_bytes());
                }
            } else {
                return self.show(b"@left");
            }
        }
    }

    /// Adds up what is typed until `#`; begins late and reads little at a time.
    fn count(&self) {
        self.show(b"@ready");
        let mut unread = 0;
        while unread < (20 << 10) {
            std::thread::yield_now();
            // SAFETY: FIONREAD writes an int.
            unsafe { unread_bytes(self.console.input.as_raw_fd(), &raw mut unread) }.unwrap();
        }
        let (mut len, mut sum) = (0_u64, 0_u64);
        loop {
            for byte in self.read() {
                if byte == b'#' {
                    return self.show(format!("@{len} {sum}@").as_bytes());
                }
                len += 1;
                sum += u64::from(byte);
            }
        }
    }

    /// Shows the size at first and at each change.
    fn tell_sizes(&self) {
        self.show(b"@ready");
        let resized = self.console.resized.as_ref().unwrap();
        loop {
            let (columns, rows) = self.console.size.get();
            self.show(format!("@{columns}x{rows}@").as_bytes());
            ready(resized, PollFlags::POLLIN);
            resized.take();
        }
    }

    /// A thread panics, and the VM lives on.
    fn survive_a_panic(&self, stop: &Event) {
        self.show(b"@ready");
        self.wait(stop);
        let panicked = std::thread::spawn(|| panic!("told to")).join();
        assert!(panicked.is_err());
        stop.take();
        self.show(b"@alive");
        self.wait(stop);
    }
}

pub(super) fn ready(fd: &impl AsFd, events: PollFlags) {
    while poll(&mut [PollFd::new(fd.as_fd(), events)], PollTimeout::NONE).is_err() {}
}

/// Two devices on one terminal: the second shows itself after the first has got a line.
fn hand_over(first: &Device, second: &Device) {
    first.show(b"@ready");
    first.show(format!("@first {}", text(&first.read())).as_bytes());
    // The test types ahead now, for whoever is there.
    ready(&first.console.input, PollFlags::POLLIN);
    second.show(b"@second");
    second.show(format!("@second {}", text(&second.read())).as_bytes());
    second.show(format!("@second {}", text(&second.read())).as_bytes());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
