//! Nothing of a device outlives it. Alone in its process, since it counts what the process has.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::Arc;

use gvmm_plugin_api::Device;
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::Width;
use gvmm_plugin_api::pci::Interrupts;
use gvmm_plugin_api::testing::{FakeHost, wait_until};

#[test]
fn no_thread_and_no_descriptor_is_left() {
    let entries = |folder| fs::read_dir(folder).unwrap().count();
    let threads = || entries("/proc/self/task");
    let descriptors = || entries("/proc/self/fd");
    let host = Arc::new(FakeHost::default());
    let before = (threads(), descriptors());
    for _ in 0..3 {
        let mut console = host.plug_console();
        let options = pci_serial::Options { console: "stdio".to_owned() };
        let Device::Pci(card) = pci_serial::create(options, host.services()).unwrap() else {
            panic!("no PCI device");
        };
        let interrupt = || Interrupt::new(Event::new().unwrap());
        card.start(Interrupts::new(Some(interrupt()), vec![interrupt()]).0).unwrap();
        console.type_in(b"x");
        card.write(1, 0, Width::Byte, b'y'.into()).unwrap();
        assert_eq!(console.shown(1), b"y");
        card.reset();
        assert!(threads() > before.0);
    }
    assert_eq!(descriptors(), before.1);
    // A thread that was joined may be listed a moment longer.
    wait_until("all threads are gone", || threads() == before.0);
}
