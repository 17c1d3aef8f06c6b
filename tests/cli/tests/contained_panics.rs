//! A plugin that panics while the machine runs is a failed device, and nothing else.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::sync::Arc;

use gvmm_plugin_api::host::{Instance, Library};
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::pci::Interrupts;
use gvmm_plugin_api::testing::FakeHost;

fn device(at: &str) -> (Arc<FakeHost>, Instance) {
    let library = Library::load(&gvmm_built::bad_plugin("panics_in_access"), 5).unwrap();
    let host = Arc::new(FakeHost::default());
    let values = library.manifest().check([("at", at)]).unwrap();
    let instance = library.create(&values, host.clone()).unwrap();
    (host, instance)
}

#[test]
fn a_panic_in_an_access_fails_the_device_once() {
    let (host, Instance::Mmio(device)) = device("read") else { panic!("an MMIO device") };
    assert_eq!(device.write(0, 0, Width::Word, 0), Ok(()));
    for _ in 0..3 {
        assert_eq!(device.read(0, 8, Width::Word), Err(AccessError::Failed));
    }
    assert_eq!(device.write(0, 0, Width::Word, 0), Err(AccessError::Failed));
    assert_eq!(host.failures(), ["panicked in a read of register 0x8 of window 0"]);
    let log = host.log_lines();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(
        log[0].1.ends_with("told to panic in read"),
        "the panic's own words reach the host's log: {log:?}"
    );
}

#[test]
fn a_panic_in_an_access_to_a_bar_fails_the_device_once() {
    let library = Library::load(&gvmm_built::bad_plugin("bad_function"), 5).unwrap();
    let host = Arc::new(FakeHost::default());
    let values = library.manifest().check([("how", "panics-unaligned")]).unwrap();
    let Instance::Pci(device) = library.create(&values, host.clone()).unwrap() else {
        panic!("a PCI device")
    };
    assert_eq!(device.read(4, 8, Width::Word), Ok(0));
    for _ in 0..3 {
        assert_eq!(device.write(4, 9, Width::Word, 1), Err(AccessError::Failed));
    }
    assert_eq!(device.read(4, 8, Width::Word), Err(AccessError::Failed));
    assert_eq!(host.failures(), ["panicked in a write of register 0x9 of BAR 4"]);
}

#[test]
fn interrupts_of_a_loaded_pci_device_follow_the_machines_switch() {
    let library = Library::load(&gvmm_built::bad_plugin("bad_function"), 5).unwrap();
    let values = library.manifest().check([]).unwrap();
    let device = library.create(&values, Arc::new(FakeHost::default())).unwrap();
    let Instance::Pci(device) = device else { panic!("a PCI device") };
    let events: Vec<Event> = (0..3).map(|_| Event::new().unwrap()).collect();
    let interrupt = |at: usize| Interrupt::new(events[at].try_clone().unwrap());
    let (interrupts, messages) = Interrupts::new(Some(interrupt(0)), vec![interrupt(1), interrupt(2)]);
    device.start(interrupts).unwrap();
    let raised = || {
        device.write(4, 8, Width::Word, 7).unwrap();
        [0, 1, 2].map(|at| events[at].take())
    };
    assert_eq!(raised(), [true, false, false]);
    messages.set(true);
    assert_eq!(raised(), [false, false, true]);
    messages.set(false);
    assert_eq!(raised(), [true, false, false]);
}

#[test]
fn two_devices_of_a_plugin_fail_apart() {
    let (bad_host, Instance::Mmio(bad)) = device("write") else { panic!("an MMIO device") };
    let (good_host, Instance::Mmio(good)) = device("read") else { panic!("an MMIO device") };
    assert_eq!(bad.write(0, 0, Width::Word, 0), Err(AccessError::Failed));
    assert_eq!(good.write(0, 0, Width::Word, 0), Ok(()));
    assert_eq!((bad_host.failures().len(), good_host.failures().len()), (1, 0));
    assert_eq!((bad_host.log_lines().len(), good_host.log_lines().len()), (1, 0));
}
