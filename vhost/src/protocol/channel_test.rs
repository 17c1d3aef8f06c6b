use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::payload::*;
use super::*;

fn pair() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (a.into(), b.into())
}

fn raw_pair() -> (UnixStream, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (a, b.into())
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(50))
}

/// Descriptors of this process that are open on the file.
fn open_on(path: &std::path::Path) -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    entries
        .filter(|entry| std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|link| link == path))
        .count()
}

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (a, b) = pair();
    let (mut reader, writer) = std::io::pipe().unwrap();
    a.send(12, flag::NEED_REPLY, b"body", &[writer.as_fd()], Deadline::NEVER).unwrap();
    drop(writer);
    let message = b.receive(Deadline::NEVER).unwrap();
    assert_eq!((message.code, message.body.as_slice()), (12, &b"body"[..]));
    assert!(message.needs_reply() && !message.is_reply());
    let mut end: std::fs::File = message.fds.into_iter().next().unwrap().into();
    end.write_all(b"!").unwrap();
    drop(end);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "!");
}

#[test]
fn a_message_may_come_in_pieces() {
    let (mut a, b) = raw_pair();
    let bytes =
        [[3_u32.to_ne_bytes(), 1_u32.to_ne_bytes(), 4_u32.to_ne_bytes()].concat(), b"body".to_vec()].concat();
    let sender = std::thread::spawn(move || {
        for byte in bytes {
            a.write_all(&[byte]).unwrap();
            std::thread::yield_now();
        }
        a
    });
    assert_eq!(b.receive(Deadline::NEVER).unwrap().body, b"body");
    sender.join().unwrap();
}

#[test]
fn silence_ends_with_the_deadline() {
    let (mut a, b) = raw_pair();
    assert!(matches!(b.receive(soon()), Err(ChannelError::TimedOut)));
    a.write_all(&[1, 0, 0, 0, 1]).unwrap();
    assert!(matches!(b.receive(soon()), Err(ChannelError::TimedOut)));
}

#[test]
fn a_peer_that_does_not_read_ends_with_the_deadline() {
    let (a, _b) = pair();
    let error = loop {
        if let Err(error) = a.send(1, 0, &[0; MAX_BODY], &[], soon()) {
            break error;
        }
    };
    assert!(matches!(error, ChannelError::TimedOut));
}

#[test]
fn a_closed_connection_is_told_from_a_message_cut_off() {
    let (a, b) = pair();
    drop(a);
    assert!(matches!(b.receive(soon()), Err(ChannelError::Closed)));
    assert!(matches!(b.send(1, 0, &[], &[], soon()), Err(ChannelError::Closed)));
    let (mut a, b) = raw_pair();
    a.write_all(&[1, 0, 0, 0]).unwrap();
    drop(a);
    assert!(matches!(b.receive(soon()), Err(ChannelError::Malformed(_))));
}

#[test]
fn sizes_and_versions_that_cannot_be_are_refused() {
    for header in [[1_u32, 1, 4097], [1, 1, u32::MAX], [1, 0, 0], [1, 2, 0], [1, u32::MAX, 0]] {
        let (mut a, b) = raw_pair();
        a.write_all(&header.map(u32::to_ne_bytes).concat()).unwrap();
        assert!(matches!(b.receive(soon()), Err(ChannelError::Malformed(_))), "{header:?}");
    }
}

#[test]
fn descriptors_that_nobody_wanted_are_closed() {
    let (a, b) = pair();
    let file = tempfile::NamedTempFile::new().unwrap();
    for count in [1, 8, 32] {
        a.send(1, 0, &[], &vec![file.as_fd(); count], Deadline::NEVER).unwrap();
        assert_eq!(b.receive(Deadline::NEVER).unwrap().fds.len(), count);
    }
    for count in [33, 253] {
        let (a, b) = pair();
        a.send(1, 0, &[], &vec![file.as_fd(); count], Deadline::NEVER).unwrap();
        assert!(matches!(b.receive(Deadline::NEVER), Err(ChannelError::Malformed(_))));
    }
    assert_eq!(open_on(file.path()), 1);
}

fn round_trip<P: Payload + PartialEq + std::fmt::Debug>(value: &P) {
    assert_eq!(P::decode(&value.encode()).as_ref(), Some(value));
}

proptest! {
    #[test]
    fn payloads_come_out_as_they_went_in(a: u64, b: u64, c: u64, d: u64, e: u32, f: u32, content in prop::collection::vec(any::<u8>(), 0..600)) {
        round_trip(&a);
        round_trip(&VringState { index: e, num: f });
        round_trip(&VringAddress { index: e, flags: f, descriptor: a, used: b, available: c, log: d });
        round_trip(&VringEvent { index: e as u8, has_fd: f % 2 == 0 });
        let region = Region { guest_address: a, size: b, user_address: c, mmap_offset: d };
        round_trip(&SingleRegion(region));
        round_trip(&MemoryTable(vec![region; e as usize % 9]));
        round_trip(&Config { offset: e, flags: f, content });
        round_trip(&Inflight { mmap_size: a, mmap_offset: b, queues: e as u16, queue_size: f as u16 });
    }

    #[test]
    fn any_bytes_are_a_payload_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = u64::decode(&bytes);
        let _ = VringState::decode(&bytes);
        let _ = VringAddress::decode(&bytes);
        let _ = VringEvent::decode(&bytes);
        let _ = SingleRegion::decode(&bytes);
        let _ = Config::decode(&bytes);
        let _ = Inflight::decode(&bytes);
        if let Some(MemoryTable(regions)) = MemoryTable::decode(&bytes) {
            prop_assert!(regions.len() <= MAX_TABLE_REGIONS);
        }
    }

    #[test]
    fn any_bytes_on_the_socket_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (mut a, b) = raw_pair();
        a.write_all(&bytes).unwrap();
        drop(a);
        while b.receive(soon()).is_ok() {}
    }
}
