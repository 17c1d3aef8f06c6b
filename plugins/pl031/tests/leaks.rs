//! Nothing of a device outlives it. Alone in its process, since it counts what the process has.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::Arc;

use gvmm_plugin_api::Device;
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::Width;
use gvmm_plugin_api::testing::{FakeHost, wait_until};

#[test]
fn no_thread_and_no_descriptor_is_left() {
    let entries = |folder| fs::read_dir(folder).unwrap().count();
    let threads = || entries("/proc/self/task");
    let descriptors = || entries("/proc/self/fd");
    let host = Arc::new(FakeHost::default());
    let before = (threads(), descriptors());
    for _ in 0..3 {
        let Device::Mmio(rtc) = pl031::create(pl031::Options {}, host.services()).unwrap() else {
            panic!("no MMIO device");
        };
        rtc.start(vec![Interrupt::new(Event::new().unwrap())]).unwrap();
        // With an alarm that is yet to come.
        rtc.write(0, 0x10, Width::Word, 1).unwrap();
        rtc.reset();
        assert!(threads() > before.0);
    }
    assert_eq!(descriptors(), before.1);
    // A thread that was joined may be listed a moment longer.
    wait_until("all threads are gone", || threads() == before.0);
}
