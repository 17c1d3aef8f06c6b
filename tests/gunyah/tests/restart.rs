//! A VM that is built anew, again and again, in one process.

use gunyah_tests::{CONSOLE, Kind, Run};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Lives of a VM in one process.
const LIVES: usize = 50;

/// What is counted.
const POSSESSIONS: [&str; 3] = ["descriptors", "threads", "mappings"];

/// Shows an L and resets when a key comes in.
fn until_a_key() -> Value {
    json!({"vcpus": [[
        {"write": {"addr": CONSOLE + 0x30, "value": 0x301}},
        {"write": {"addr": CONSOLE, "value": 0x4c}},
        {"read": {"addr": CONSOLE + 0x18, "mask": 0x10, "expect": 0, "until": true, "timeout-ms": 60000}},
        {"read": {"addr": CONSOLE}},
        "reset",
    ]]})
}

fn fifty_lives(kind: Kind) {
    let run = Run::new(kind, &until_a_key()).disk().arguments(&["--on-reset", "restart", "--cpus", "2"]);
    let mut running = run.start();
    let mut early = [0; 3];
    for life in 1..=LIVES {
        running.wait_for("L", life);
        // The first lives settle what is made once.
        if life == 5 {
            early = running.possessions();
        }
        running.type_in("k");
    }
    running.wait_for("L", LIVES + 1);
    // What a life leaves behind is there as many times as there were lives; what is still on its way out, a few times.
    for (name, (then, now)) in POSSESSIONS.iter().zip(early.into_iter().zip(running.possessions())) {
        assert!(now < then + LIVES / 2, "{name} grew from {then} to {now} in {LIVES} lives");
    }
    running.signal(Signal::SIGTERM);
    let ended = running.to_end();
    ended.assert_orderly(0);
    assert_eq!(ended.made("VM_START").len(), LIVES + 1, "{}", ended.summary());
}

#[test]
fn leaves_nothing_behind_on_generation_a() {
    fifty_lives(Kind::A);
}

#[test]
fn leaves_nothing_behind_on_generation_b() {
    fifty_lives(Kind::B);
}

#[test]
fn leaves_nothing_behind_on_generation_c() {
    fifty_lives(Kind::C);
}

#[test]
fn gets_over_a_hypervisor_that_is_slow_to_free_the_last_vm() {
    let run = Run::new(Kind::C, &until_a_key()).setting("GRACE_MS", "700");
    let mut running = run.arguments(&["--on-reset", "restart"]).start();
    running.wait_for("L", 1);
    running.type_in("k");
    running.wait_for("L", 2);
    running.signal(Signal::SIGTERM);
    let ended = running.to_end();
    ended.assert_orderly(0);
    assert!(ended.messages.contains("start refused, which may pass"), "{}", ended.summary());
}
