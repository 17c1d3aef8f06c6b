//! The device with programs of the host at its socket.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{MmioDevice, Width};
use gvmm_plugin_api::testing::{FakeHost, wait_readable};

use crate::control::MAX_CLIENTS;
use crate::device::Pl061;
use crate::nodes::Attached;

const DATA: u64 = 0x3fc;
const DIRECTION: u64 = 0x400;
const EVENT: u64 = 0x40c;
const ENABLE: u64 = 0x410;

struct Machine {
    device: Pl061,
    line: Event,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

fn machine() -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("gpio.sock");
    let device =
        Pl061::new(Some(&socket), 0x80, Attached::default(), Arc::new(FakeHost::default()).services())
            .unwrap();
    let line = Event::new().unwrap();
    device.start(vec![Interrupt::new(line.try_clone().unwrap())]).unwrap();
    Machine { device, line, socket, _folder: folder }
}

struct Program(BufReader<UnixStream>);

impl Program {
    fn connect(machine: &Machine) -> Self {
        let stream = UnixStream::connect(&machine.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Connects and takes the state of all lines.
    fn greeted(machine: &Machine) -> (Self, Vec<String>) {
        let mut program = Self::connect(machine);
        let state = (0..8).map(|_| program.line()).collect();
        (program, state)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn a_program_is_told_all_lines_first() {
    let machine = machine();
    let (_program, state) = Program::greeted(&machine);
    assert_eq!((state[0].as_str(), state[7].as_str()), ("0 in 0\n", "7 in 1\n"));
}

#[test]
fn a_program_presses_a_key() {
    let machine = machine();
    machine.device.write(0, EVENT, Width::Byte, 1 << 3).unwrap();
    machine.device.write(0, ENABLE, Width::Byte, 1 << 3).unwrap();
    let (mut program, _) = Program::greeted(&machine);
    program.say("set 3 1\n");
    assert_eq!(program.line(), "3 in 1\n");
    wait_readable("the interrupt", machine.line.as_fd());
    assert_eq!(machine.device.read(0, DATA, Width::Byte), Ok(0x88));
}

#[test]
fn a_program_sees_a_light() {
    let machine = machine();
    let (mut program, _) = Program::greeted(&machine);
    machine.device.write(0, DIRECTION, Width::Byte, 1 << 5).unwrap();
    assert_eq!(program.line(), "5 out 0\n");
    machine.device.write(0, DATA, Width::Byte, 1 << 5).unwrap();
    assert_eq!(program.line(), "5 out 1\n");
    machine.device.reset();
    assert_eq!(program.line(), "5 in 0\n");
}

#[test]
fn nonsense_is_answered_and_does_no_harm() {
    let machine = machine();
    let (mut program, _) = Program::greeted(&machine);
    for nonsense in ["set 8 1", "set 3 2", "set 3", "set 3 1 1", "get", "", "set -1 1"] {
        program.say(&format!("{nonsense}\n"));
        assert_eq!(program.line(), format!("error: '{nonsense}' is not `set LINE 0|1`\n"));
    }
    program.say("set 0 1\n");
    assert_eq!(program.line(), "0 in 1\n");
}

#[test]
fn a_program_that_sends_no_end_of_line_is_hung_up_on() {
    let machine = machine();
    let (mut program, _) = Program::greeted(&machine);
    program.say(&"x".repeat(65));
    assert_eq!(program.line(), "");
}

#[test]
fn one_program_too_many_is_hung_up_on() {
    let machine = machine();
    let programs: Vec<_> = (0..MAX_CLIENTS).map(|_| Program::greeted(&machine)).collect();
    assert_eq!(Program::connect(&machine).line(), "");
    drop(programs);
}

#[test]
fn the_socket_goes_with_the_device() {
    let machine = machine();
    let (mut program, _) = Program::greeted(&machine);
    drop(machine.device);
    assert_eq!(program.line(), "");
    assert!(!machine.socket.exists());
}

#[test]
fn a_socket_that_is_there_already_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("taken");
    std::fs::write(&socket, "mine").unwrap();
    let error = Pl061::new(Some(&socket), 0, Attached::default(), Arc::new(FakeHost::default()).services())
        .unwrap_err();
    assert_eq!(error, format!("socket {}: there is a file already: remove it", socket.display()));
    assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
}
