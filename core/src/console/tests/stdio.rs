//! The terminal as the user has it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;

use nix::sys::signal::Signal;

use super::role;
use super::tty::Tty;

#[test]
fn the_guest_gets_every_key_and_the_escape_key_leaves() {
    let mut tty = Tty::start("echo");
    assert!(tty.is_raw());
    tty.type_in(b"\x03\x1a\x04\r\x11\x13\x7f");
    tty.expect("[03][1a][04][0d][11][13][7f]");
    tty.type_in(b"\x01\x01");
    tty.expect("[01]");
    tty.type_in(b"\x01x");
    tty.expect("@left");
    assert_eq!(tty.finish(), Ok(0));
    assert!(tty.is_restored());
}

#[test]
fn every_way_out_restores_the_terminal() {
    let ways = [("exit", Ok(7)), ("abort", Err(libc::SIGABRT)), ("panic", Ok(101))];
    for (role, end) in ways {
        let mut tty = Tty::start(role);
        assert!(tty.is_raw(), "{role}");
        tty.type_in(b"\x01x");
        assert_eq!(tty.finish(), end, "{role}");
        assert!(tty.is_restored(), "{role}");
    }
}

#[test]
fn a_stack_overflow_restores_the_terminal_and_is_told_as_ever() {
    let mut tty = Tty::start("overflow");
    tty.type_in(b"\x01x");
    // Rust's own handler turns it into an abort.
    assert_eq!(tty.finish(), Err(libc::SIGABRT));
    assert!(tty.is_restored());
}

#[test]
fn fatal_signals_restore_the_terminal_and_still_end_the_process() {
    for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGILL, Signal::SIGSYS] {
        let mut tty = Tty::start("echo");
        tty.signal(signal);
        assert_eq!(tty.finish(), Err(signal as i32));
        assert!(tty.is_restored(), "{signal}");
    }
}

#[test]
fn a_panic_that_is_contained_leaves_the_terminal_raw() {
    let mut tty = Tty::start("contained panic");
    tty.type_in(b"\x01x");
    tty.expect("@alive");
    assert!(tty.is_raw());
    tty.type_in(b"\x01x");
    assert_eq!(tty.finish(), Ok(0));
    assert!(tty.is_restored());
}

#[test]
fn a_stop_gives_the_terminal_back_for_its_time() {
    let mut tty = Tty::start("echo");
    tty.signal(Signal::SIGTSTP);
    tty.wait_stopped();
    assert!(tty.is_restored());
    tty.signal(Signal::SIGCONT);
    // Modes are set by a thread of the child: an echo comes after them or not at all.
    while !tty.is_raw() {
        thread::yield_now();
    }
    tty.type_in(b"a");
    tty.expect("[61]");
    tty.type_in(b"\x01x");
    assert_eq!(tty.finish(), Ok(0));
    assert!(tty.is_restored());
}

#[test]
fn a_large_paste_arrives_whole() {
    let mut tty = Tty::start("count");
    let (paste, sum) = paste();
    let len = paste.len() - 1;
    let mut keyboard = tty.keyboard();
    let typist = thread::spawn(move || keyboard.write_all(&paste).unwrap());
    tty.expect(&format!("@{len} {sum}@"));
    typist.join().unwrap();
    assert_eq!(tty.finish(), Ok(0));
}

#[test]
fn the_window_size_is_passed_on() {
    let mut tty = Tty::start("sizes");
    tty.expect("@80x25@");
    tty.resize(132, 43);
    tty.expect("@132x43@");
}

#[test]
fn the_keyboard_goes_to_the_later_device_once_it_shows_something() {
    let mut tty = Tty::start("two");
    tty.type_in(b"one");
    tty.expect("@first one");
    tty.type_in(b"two");
    tty.expect("@second two");
    tty.type_in(b"three");
    tty.expect("@second three");
    assert_eq!(tty.finish(), Ok(0));
}

#[test]
fn a_pipe_is_read_as_it_is_and_to_its_end() {
    let mut child = role::command("echo")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\x01x\n").unwrap();
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert!(shown.contains("@ready[61][01][78][0a]@end"), "{shown}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn works_without_any_input() {
    let output = role::command("echo").stdin(File::open("/dev/null").unwrap()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("@ready@end"));
}

#[test]
fn a_shared_descriptor_keeps_its_blocking_mode() {
    use std::os::fd::AsFd;
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = |fd: &dyn AsFd| nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let before = flags(&reader);
    let mut child = role::command("echo")
        .stdin(reader.try_clone().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut shown = child.stdout.take().unwrap();
    writer.write_all(b"a").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"[61]") {
        let mut byte = [0];
        shown.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    assert_eq!(flags(&reader), before);
    drop(writer);
    child.wait().unwrap();
}

/// A text of a megabyte without the escape key, closed by `#`, and the sum of its bytes.
fn paste() -> (Vec<u8>, u64) {
    let mut paste: Vec<u8> = (0..1 << 20).map(|i: u32| b'$' + (i % 89) as u8).collect();
    let sum = paste.iter().map(|&byte| u64::from(byte)).sum();
    paste.push(b'#');
    (paste, sum)
}
