//! Every call of a VM's life fails once, in every way, and is interrupted once by every signal: gvmm ends with the
//! right code and a message that names the call, leaves nothing behind and restores the terminal.

use std::collections::BTreeMap;

use gunyah_tests::{CONSOLE, Ended, Kind, Run, VIRTIO};
use serde_json::{Value, json};

/// Errors to try: of the caller, of the host, of the hypervisor.
const ERRORS: [&str; 5] = ["EINVAL", "ENOMEM", "ENODEV", "EBUSY", "EPERM"];

/// A guest that uses every kind of call and shows an H if its reads are answered.
fn script() -> Value {
    json!({"vcpus": [[
        {"read": {"addr": VIRTIO, "expect": 0x7472_6976}},
        {"write": {"addr": VIRTIO + 0x50, "value": 0, "exits": false}},
        {"read": {"addr": VIRTIO + 4, "expect": 2}},
        {"write": {"addr": CONSOLE, "value": 0x48}},
        "power-off",
    ]]})
}

fn run(kind: Kind) -> Run {
    Run::new(kind, &script()).disk()
}

/// How often each call is made in an undisturbed life, and how often of that by the probe at the beginning.
fn calls_of(kind: Kind) -> BTreeMap<String, (usize, usize)> {
    let ended = run(kind).to_end();
    ended.assert_orderly(0);
    let mut calls = BTreeMap::<String, (usize, usize)>::new();
    // The probe makes and asks for one of each; whatever comes second is for the VM.
    let mut probing = true;
    for (call, _) in ended.calls() {
        let (all, probes) = calls.entry(call.clone()).or_default();
        if *all == 1 && matches!(call.as_str(), "CREATE_VM" | "CREATE_GUEST_MEM") {
            probing = false;
        }
        *all += 1;
        *probes += usize::from(probing);
    }
    calls
}

/// The name that a message must hold for a call of the trace.
fn name_in_messages(call: &str) -> &str {
    match call {
        "MMAP" => "run page",
        "OPEN" => "/dev/gunyah",
        other => other.trim_start_matches("VM_ANDROID_"),
    }
}

/// Checks the end of a run in which a call failed with an error.
fn check_failed(ended: &Ended, call: &str, error: &str) {
    // It can be repeated, or is not needed, or goes away with the VM.
    let survived = match call {
        "VM_START" | "VCPU_RUN" => matches!(error, "ENODEV" | "EBUSY"),
        "VM_REMOVE_FUNCTION" => true,
        _ => false,
    };
    let code = match call {
        _ if survived => 0,
        "OPEN" => 2,
        "VCPU_RUN" => 4,
        _ => 1,
    };
    // The other encoding of its access flags is tried.
    if call == "VM_MAP_MEM" && error == "EINVAL" && ended.code == Some(0) {
        return ended.assert_orderly(0);
    }
    ended.assert_orderly(code);
    if code != 0 {
        let name = name_in_messages(call);
        assert!(ended.messages.contains(name), "{name} is not named: {}", ended.summary());
    }
}

fn fails_in_order(kind: Kind) {
    for (call, (all, probes)) in calls_of(kind) {
        // Beyond some runs nothing new happens.
        for nth in probes + 1..=all.min(probes + 6) {
            for error in ERRORS {
                let ended = run(kind).inject(&format!("fail={call}:{nth}:{error}")).to_end();
                check_failed(&ended, &call, error);
            }
        }
    }
}

#[test]
fn every_call_may_fail_on_generation_a() {
    fails_in_order(Kind::A);
}

#[test]
fn every_call_may_fail_on_generation_a_with_lending() {
    fails_in_order(Kind::APlus);
}

#[test]
fn every_call_may_fail_on_generation_b() {
    fails_in_order(Kind::B);
}

#[test]
fn every_call_may_fail_on_generation_c() {
    fails_in_order(Kind::C);
}

#[test]
fn every_probe_may_fail() {
    for kind in Kind::ALL {
        for (call, (_, probes)) in calls_of(kind) {
            for nth in 1..=probes {
                for error in ["ENOTTY", "EINVAL", "ENOMEM"] {
                    let ended = run(kind).inject(&format!("fail={call}:{nth}:{error}")).to_end();
                    let code = ended.code.unwrap_or(-1);
                    assert!([0, 1, 2].contains(&code), "{call} {error}: {}", ended.summary());
                    ended.assert_orderly(code);
                    assert_eq!(code == 0, ended.messages.is_empty(), "{call} {error}: {}", ended.summary());
                }
            }
        }
    }
}

#[test]
fn every_call_may_be_interrupted_by_a_request_to_stop() {
    for kind in [Kind::A, Kind::B, Kind::C] {
        // During the probe gvmm has nothing to put in order yet, and a signal ends it.
        for (call, (all, probes)) in calls_of(kind) {
            for nth in probes + 1..=all.min(probes + 6) {
                let ended = run(kind).inject(&format!("signal={call}:{nth}:SIGTERM")).to_end();
                ended.assert_orderly(0);
            }
        }
    }
}

#[test]
fn a_change_of_the_terminal_changes_nothing() {
    for kind in [Kind::A, Kind::C] {
        for call in ["VCPU_RUN:*", "VM_START:1", "VM_ADD_FUNCTION:*", "VM_SET_DTB_CONFIG:1"] {
            let ended = run(kind).inject(&format!("signal={call}:SIGWINCH")).to_end();
            ended.assert_orderly(0);
            assert_eq!(ended.console, "H", "{call}: {}", ended.summary());
        }
    }
}

#[test]
fn an_exit_that_a_signal_hides_is_seen() {
    for kind in Kind::ALL {
        for nth in 1..=6 {
            let ended = run(kind).inject(&format!("late-signal={nth}:SIGRTMIN")).to_end();
            ended.assert_orderly(0);
            assert_eq!(ended.console, "H", "{nth}: {}", ended.summary());
        }
    }
}
