//! Page faults that the driver hands to gvmm.

use gunyah_tests::{CONSOLE, Kind, Run};
use serde_json::json;

fn run(injection: &str) -> Vec<gunyah_tests::Ended> {
    let script =
        json!({"vcpus": [[{"sleep": 1}, {"store": {"addr": "0x80400000", "bytes": "11"}}, "power-off"]]});
    [Kind::B, Kind::C].map(|kind| Run::new(kind, &script).inject(injection).to_end()).into()
}

#[test]
fn are_tried_again_until_they_pass() {
    for errno in ["ENOMEM", "EAGAIN", "EBUSY", "EFAULT", "EINTR"] {
        for ended in run(&format!("page-fault={errno}:7")) {
            ended.assert_orderly(0);
            assert!(
                ended.messages.contains("could not bring in guest memory at 0x80100000"),
                "{}",
                ended.summary()
            );
        }
    }
}

#[test]
fn end_the_vm_within_a_limit_when_they_do_not_pass() {
    for ended in run("page-fault=ENOMEM:always") {
        ended.assert_orderly(4);
        assert!(ended.messages.contains("50 tries"), "{}", ended.summary());
        assert!(ended.messages.contains("give the guest less memory"), "{}", ended.summary());
    }
}

#[test]
fn end_the_vm_at_once_when_they_cannot_pass() {
    for (errno, part) in [("ENOENT", "no memory there"), ("EPERM", "may not"), ("EIO", "does not take")] {
        for ended in run(&format!("page-fault={errno}:always:0x9000000000")) {
            ended.assert_orderly(4);
            assert!(ended.messages.contains("guest address 0x9000000000"), "{}", ended.summary());
            assert!(ended.messages.contains(part), "{}", ended.summary());
        }
    }
}

#[test]
fn leave_the_vm_open_to_a_request_to_stop() {
    let script = json!({"vcpus": [[{"write": {"addr": CONSOLE, "value": 0x48}}, "hang"]]});
    let running = Run::new(Kind::C, &script).inject("page-fault=ENOMEM:always:0x80100000:2").start();
    running.wait_for("H", 1);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.to_end().assert_orderly(0);
}
