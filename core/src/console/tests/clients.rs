//! Consoles that clients come to and leave: sockets and pseudo-terminals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::Winsize;
use tempfile::TempDir;

use super::role::{Device, ready};
use super::tty::set_size;
use crate::console::ConsoleHub;
use crate::console::history::History;

/// How long a test waits before it fails; no test passes by it.
const PATIENCE: Duration = Duration::from_secs(60);

fn hub() -> (ConsoleHub, TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    (ConsoleHub::new(|| {}), folder, path)
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

fn receive(mut client: impl Read, len: usize) -> String {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn typed(device: &Device, len: usize) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        bytes.extend(device.read());
    }
    String::from_utf8(bytes).unwrap()
}

/// Bytes with a period that no buffer's size is a multiple of.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| b' ' + (i % 89) as u8).collect()
}

#[test]
fn late_clients_of_a_socket_see_what_was_shown_before() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    device.show(b"early ");
    let first = connect(&path);
    assert_eq!(receive(&first, 6), "early ");
    device.show(b"late");
    assert_eq!(receive(&first, 4), "late");
    assert_eq!(receive(connect(&path), 10), "early late");
}

#[test]
fn a_late_client_gets_no_more_than_is_kept() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    let shown = pattern(3 * History::CAPACITY);
    device.show(&shown);
    let reader = connect(&path);
    device.show(b"#");
    // The end of the hub waits for its clients, so it has to be on another thread.
    let end = thread::spawn(move || drop((device, hub)));
    let mut replay = Vec::new();
    (&reader).read_to_end(&mut replay).unwrap();
    end.join().unwrap();
    assert_eq!(replay.pop(), Some(b'#'));
    // What is still in the device's pipe when the client comes is no replay.
    assert!(replay.len() < 2 * History::CAPACITY, "{}", replay.len());
    assert!(shown.ends_with(&replay));
}

#[test]
fn the_first_client_types_until_it_leaves() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    let mut first = connect(&path);
    first.write_all(b"first").unwrap();
    assert_eq!(typed(&device, 5), "first");
    let mut second = connect(&path);
    device.show(b"!");
    assert_eq!(receive(&second, 1), "!");
    second.write_all(b"unheard").unwrap();
    first.write_all(b"still first").unwrap();
    assert_eq!(typed(&device, 11), "still first");
    drop(first);
    // When the departure is noticed is up to the scheduler; what is typed before it goes unheard.
    let heard = thread::scope(|scope| {
        let heard = scope.spawn(|| typed(&device, 1));
        while !heard.is_finished() {
            second.write_all(b"?").unwrap();
            thread::yield_now();
        }
        heard.join().unwrap()
    });
    assert!(heard.starts_with('?'), "{heard}");
}

#[test]
fn a_client_that_has_typed_its_last_may_look_on() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    let mut client = connect(&path);
    client.write_all(b"command").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(typed(&device, 7), "command");
    device.show(b"answer");
    assert_eq!(receive(&client, 6), "answer");
}

#[test]
fn what_a_client_typed_before_it_left_arrives() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    let all = pattern(200_000);
    let mut client = connect(&path);
    let text = all.clone();
    let typist = thread::spawn(move || client.write_all(&text).unwrap());
    assert!(typed(&device, all.len()).as_bytes() == all);
    typist.join().unwrap();
}

#[test]
fn the_guest_waits_for_the_one_who_types_and_for_nobody_else() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    let first = connect(&path);
    device.show(b"a");
    assert_eq!(receive(&first, 1), "a");
    // This one never reads.
    let _idle = connect(&path);
    let shown = pattern(4 * History::CAPACITY);
    thread::scope(|scope| {
        scope.spawn(|| device.show(&shown));
        assert!(receive(&first, shown.len()).as_bytes() == shown);
    });
}

#[test]
fn without_clients_the_guest_goes_on() {
    let (hub, _folder, path) = hub();
    for attachment in [format!("socket:{}", path.display()), "pty".to_owned()] {
        let device = Device::open(&hub, &attachment);
        device.show(&pattern(4 * History::CAPACITY));
    }
}

#[test]
fn devices_on_one_socket_share_its_clients() {
    let (hub, _folder, path) = hub();
    let attachment = format!("socket:{}", path.display());
    let (first, second) = (Device::open(&hub, &attachment), Device::open(&hub, &attachment));
    let mut client = connect(&path);
    first.show(b"one");
    assert_eq!(receive(&client, 3), "one");
    client.write_all(b"to one").unwrap();
    assert_eq!(typed(&first, 6), "to one");
    second.show(b"two");
    assert_eq!(receive(&client, 3), "two");
    client.write_all(b"to two").unwrap();
    assert_eq!(typed(&second, 6), "to two");
}

#[test]
fn a_socket_is_the_users_own_and_goes_with_the_vm() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("socket:{}", path.display()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop((device, hub));
    assert!(!path.exists());
}

#[test]
fn a_socket_that_was_left_over_is_replaced_and_no_other_file() {
    let (hub, folder, path) = hub();
    drop(UnixListener::bind(&path).unwrap());
    let _device = Device::open(&hub, &format!("socket:{}", path.display()));
    let refusal =
        |path: &Path| ConsoleHub::new(|| {}).open(&format!("socket:{}", path.display())).unwrap_err();
    assert!(
        refusal(&path).ends_with("another program listens to it; choose another path or end that program")
    );
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(
        refusal(&file).ends_with("there is a file of that name, which is no socket; choose another path")
    );
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let long = folder.path().join("x".repeat(120));
    assert!(refusal(&long).ends_with("the path is longer than the 107 bytes that sockets may have"));
    let nowhere = folder.path().join("no/where");
    assert!(refusal(&nowhere).contains("No such file or directory"), "{}", refusal(&nowhere));
}

/// Opens a pseudo-terminal as a client of its own. Who opens it before the departure of the client before is noticed
/// takes that one's place, without a replay; then it tries again.
fn open_with_replay(path: &Path) -> File {
    loop {
        let client = File::options().read(true).write(true).open(path).unwrap();
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(200_u8)).unwrap() > 0 {
            return client;
        }
        drop(client);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_pty_carries_bytes_as_they_are_and_survives_its_clients() {
    let (hub, _folder, link) = hub();
    let device = Device::open(&hub, &format!("pty:{}", link.display()));
    device.show(b"early");
    for round in ["one", "two"] {
        let mut client = open_with_replay(&link);
        assert_eq!(receive(&client, 5), "early");
        client.write_all(format!("\x03\r{round}").as_bytes()).unwrap();
        assert_eq!(typed(&device, 5), format!("\x03\r{round}"));
    }
    drop((device, hub));
    assert!(fs::symlink_metadata(&link).is_err());
}

#[test]
fn a_megabyte_passes_a_pty_in_each_direction() {
    let (hub, _folder, link) = hub();
    let device = Device::open(&hub, &format!("pty:{}", link.display()));
    let client = File::options().read(true).write(true).open(&link).unwrap();
    let all = pattern(1 << 20);
    thread::scope(|scope| {
        scope.spawn(|| (&client).write_all(&all).unwrap());
        assert!(typed(&device, all.len()).as_bytes() == all);
    });
    thread::scope(|scope| {
        scope.spawn(|| device.show(&all));
        assert!(receive(&client, all.len()).as_bytes() == all);
    });
}

#[test]
fn the_size_of_a_pty_is_that_of_its_clients_window() {
    let (hub, _folder, link) = hub();
    let device = Device::open(&hub, &format!("pty:{}", link.display()));
    let mut client = File::options().read(true).write(true).open(&link).unwrap();
    let size = Winsize { ws_row: 43, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize.
    unsafe { set_size(client.as_raw_fd(), &raw const size) }.unwrap();
    // It is noticed when something is typed.
    client.write_all(b"a").unwrap();
    ready(&device.console.resized.as_ref().unwrap().as_fd(), PollFlags::POLLIN);
    assert_eq!(device.console.size.get(), (132, 43));
}

#[test]
fn a_link_replaces_a_link_and_nothing_else() {
    let (hub, folder, link) = hub();
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    let _device = Device::open(&hub, &format!("pty:{}", link.display()));
    assert!(fs::read_link(&link).unwrap().starts_with("/dev/pts"));
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let error = hub.open(&format!("pty:{}", file.display())).unwrap_err();
    assert!(error.ends_with("there is a file of that name; choose another path"), "{error}");
}
