//! Consoles that nobody types at, and log copies.

use std::fs;
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::role::Device;
use crate::console::ConsoleHub;

fn hub() -> (ConsoleHub, TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("output");
    (ConsoleHub::new(|| {}), folder, path)
}

#[test]
fn a_file_is_appended_to_and_has_no_input() {
    let (hub, _folder, path) = hub();
    fs::write(&path, "before ").unwrap();
    let device = Device::open(&hub, &format!("file:{}", path.display()));
    assert!(device.read().is_empty());
    device.show(b"after");
    hub.close();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before after");
}

#[test]
fn a_log_copy_holds_what_the_console_shows() {
    let (hub, folder, path) = hub();
    let socket = folder.path().join("socket");
    for target in ["null".to_owned(), format!("file:{}", folder.path().join("x").display()), "pty".to_owned()]
    {
        let device = Device::open(&hub, &format!("{target}+log:{}", path.display()));
        device.show(format!("{} ", &target[..3]).as_bytes());
        drop(device);
    }
    let device = Device::open(&hub, &format!("socket:{}+log:{}", socket.display(), path.display()));
    device.show(b"soc ");
    hub.close();
    let log = fs::read_to_string(&path).unwrap();
    let mut words: Vec<_> = log.split_whitespace().collect();
    words.sort_unstable();
    assert_eq!(words, ["fil", "nul", "pty", "soc"]);
}

#[test]
fn nobody_types_at_null_and_it_takes_everything() {
    let (hub, ..) = hub();
    let device = Device::open(&hub, "null");
    assert!(device.read().is_empty());
    device.show(&vec![b'x'; 1 << 20]);
}

#[test]
fn a_full_disk_does_not_stop_the_guest() {
    let (hub, _folder, path) = hub();
    let device = Device::open(&hub, &format!("file:/dev/full+log:{}", path.display()));
    device.show(&vec![b'x'; 1 << 20]);
    hub.close();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let (hub, folder, path) = hub();
    let error = hub.open("file:/no/where").unwrap_err();
    assert_eq!(error, "cannot write console output to /no/where: No such file or directory (os error 2)");
    let error = hub.open(&format!("null+log:{}", folder.path().display())).unwrap_err();
    assert!(error.contains("Is a directory"), "{error}");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert!(hub.open(&format!("file:{}", path.display())).is_err(), "a FIFO without a reader");
}
