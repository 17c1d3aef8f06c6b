use super::*;
use crate::config::GUEST_OFFLOADS;

/// A name that no other test uses; the kernel takes 15 bytes.
fn name(tag: &str) -> String {
    format!("gv{tag}{}", std::process::id() % 1_000_000)
}

/// Opens a tap, or says that this machine does not let tests do that.
fn open(name: &str, queues: u16) -> Option<(Tap, Vec<Arc<PacketPort>>)> {
    match Tap::open(name, queues, true) {
        Ok(opened) => Some(opened),
        Err(error @ (TapError::NoDevice(_) | TapError::DeviceDenied(_) | TapError::Denied { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", "a b", "a/b", "tap%d", "..", "sixteen-bytes-xx", "a\0"] {
        assert!(matches!(Tap::open(name, 1, true), Err(TapError::Name(_))), "{name:?}");
    }
}

#[test]
fn offloads_are_those_that_the_kernel_takes() {
    assert_eq!(offload_flags(GUEST_OFFLOADS), 15);
    assert_eq!(offload_flags(GUEST_OFFLOADS & !F_GUEST_CSUM), 0);
    assert_eq!(offload_flags(F_GUEST_CSUM | F_GUEST_ECN), 1);
    assert_eq!(offload_flags(F_GUEST_CSUM | F_GUEST_TSO6), 5);
}

#[test]
fn a_tap_is_made_turned_on_and_gone_with_its_last_handle() {
    let name = name("a");
    let Some((tap, ports)) = open(&name, 1) else { return };
    let folder = Path::new("/sys/class/net").join(&name);
    let flags = std::fs::read_to_string(folder.join("flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "the interface is up");
    assert!(matches!(Tap::open(&name, 1, true), Err(TapError::Busy(_))));
    assert!(matches!(Tap::open(&name, 2, true), Err(TapError::Shape { .. })));
    tap.set_offloads(GUEST_OFFLOADS);
    assert!(ports[0].has_header());
    drop((tap, ports));
    assert!(!folder.exists());
}

#[test]
fn a_tap_has_as_many_queues_as_it_is_asked_for() {
    let name = name("m");
    let Some((tap, ports)) = open(&name, 4) else { return };
    assert_eq!(ports.len(), 4);
    let attached = || *tap.attached.lock().unwrap();
    assert_eq!(attached(), 1);
    let count = || std::fs::read_dir(Path::new("/sys/class/net").join(&name).join("queues")).unwrap().count();
    for queues in [4, 2, 1, 3] {
        tap.attach(queues);
        assert_eq!(attached(), queues);
        // One folder for each receive and each transmit queue.
        assert_eq!(count(), 2 * usize::from(queues));
    }
}

#[test]
fn an_open_tap_is_taken_over_with_its_name() {
    let name = name("f");
    let Some((tap, ports)) = open(&name, 1) else { return };
    let copy = duplicate(ports[0].fd().as_raw_fd()).unwrap();
    assert_eq!(interface_name(&copy).unwrap(), name);
    drop((tap, ports));
    let (adopted, port) = Tap::adopt(copy, true).unwrap();
    assert_eq!(adopted.name, name);
    assert!(port.has_header());
}
