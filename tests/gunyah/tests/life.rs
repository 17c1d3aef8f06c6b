//! From the first call to the last, on every generation.

use gunyah_tests::{CONSOLE, Ended, Kind, Run, VIRTIO};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Shows an H, reads the magic number of the first virtio device, and powers off.
fn hello() -> Value {
    json!({"vcpus": [[
        {"write": {"addr": CONSOLE, "value": 0x48}},
        {"read": {"addr": VIRTIO, "expect": 0x7472_6976}},
        "power-off",
    ]]})
}

fn ends_with(step: &str) -> Value {
    json!({"vcpus": [[step]]})
}

/// The calls that build a VM, without the probes before it and the runs after it.
fn building(ended: &Ended) -> Vec<String> {
    let calls = ended.calls().into_iter().filter(|(_, made)| *made).map(|(call, _)| call);
    calls.skip_while(|call| !call.contains("MEM")).take_while(|call| call != "VCPU_RUN").collect()
}

#[test]
fn runs_a_guest_on_every_generation() {
    for kind in Kind::ALL {
        let ended = Run::new(kind, &hello()).disk().to_end();
        ended.assert_orderly(0);
        assert_eq!(ended.console, "H", "{kind:?}");
        assert_eq!(ended.messages, "", "{kind:?}");
    }
}

#[test]
fn gives_generation_a_memory_functions_and_tree_in_this_order() {
    let ended = Run::new(Kind::A, &hello()).disk().to_end();
    let expected = [
        "VM_SET_USER_MEM_REGION",
        "VM_ADD_FUNCTION",
        "VCPU_MMAP_SIZE",
        "MMAP",
        "VM_ADD_FUNCTION",
        "VM_ADD_FUNCTION",
        "VM_ADD_FUNCTION",
        "VM_ADD_FUNCTION",
        "VM_SET_DTB_CONFIG",
        "VM_START",
    ];
    assert_eq!(building(&ended), expected);
}

#[test]
fn lends_memory_and_sets_the_first_instruction_on_generation_c() {
    let ended = Run::new(Kind::C, &hello()).to_end();
    let expected = [
        "VM_ANDROID_LEND_USER_MEM",
        "VM_SET_USER_MEM_REGION",
        "VM_ADD_FUNCTION",
        "VCPU_MMAP_SIZE",
        "MMAP",
        "VM_ADD_FUNCTION",
        "VM_ADD_FUNCTION",
        "VM_SET_DTB_CONFIG",
        "VM_SET_BOOT_CONTEXT",
        "VM_START",
    ];
    assert_eq!(building(&ended), expected);
}

#[test]
fn makes_a_memory_object_for_each_region_on_generation_b() {
    let ended = Run::new(Kind::B, &hello()).to_end();
    let expected = ["CREATE_GUEST_MEM", "CREATE_GUEST_MEM", "CREATE_VM", "VM_MAP_MEM", "VM_MAP_MEM"];
    assert_eq!(building(&ended)[..5], expected);
}

#[test]
fn matches_the_value_of_queue_kicks_in_the_driver() {
    let ended = Run::new(Kind::A, &hello()).disk().to_end();
    let doorbell = ended.made("VM_ADD_FUNCTION").into_iter().find(|entry| entry["type"] == 3).unwrap();
    assert_eq!(doorbell["addr"], format!("{:#x}", VIRTIO + 0x50));
    assert_eq!(
        (&doorbell["flags"], &doorbell["len"], &doorbell["datamatch"]),
        (&json!(1), &json!(4), &json!(0))
    );
}

#[test]
fn takes_no_exit_for_a_kick() {
    let script = json!({"vcpus": [[
        {"write": {"addr": VIRTIO + 0x50, "value": 0, "exits": false}},
        {"write": {"addr": VIRTIO + 0x50, "value": 7, "exits": true}},
        "power-off",
    ]]});
    for kind in Kind::ALL {
        Run::new(kind, &script).disk().to_end().assert_orderly(0);
    }
}

#[test]
fn starts_the_guest_where_its_image_is_with_the_tree_in_x0() {
    let script = json!({"vcpus": [[
        {"expect-boot": {"pc": "0x80000000", "x": {"0": "0x80200000"}}},
        {"load": {"addr": "0x80200000", "bytes": "d00dfeed"}},
        "power-off",
    ]]});
    for kind in Kind::ALL {
        Run::new(kind, &script).to_end().assert_orderly(0);
    }
}

#[test]
fn runs_secondaries_that_the_guest_turns_on() {
    let script = json!({"vcpus": [
        [{"cpu-on": 1}, {"cpu-on": 7}, {"sleep": 50}, {"write": {"addr": CONSOLE, "value": 0x30}}, "power-off"],
        [{"write": {"addr": CONSOLE, "value": 0x31}}, "cpu-off"],
        [], [], [], [], [],
        [{"write": {"addr": CONSOLE, "value": 0x37}}, "hang"],
    ]});
    for kind in Kind::ALL {
        let ended = Run::new(kind, &script).arguments(&["--cpus", "8"]).to_end();
        ended.assert_orderly(0);
        let mut shown: Vec<char> = ended.console.chars().collect();
        shown.sort_unstable();
        assert_eq!(shown, ['0', '1', '7'], "{kind:?}");
    }
}

#[test]
fn tells_how_a_guest_ended_by_the_exit_code() {
    for kind in [Kind::A, Kind::C] {
        let run = |step| Run::new(kind, &ends_with(step)).to_end();
        run("power-off").assert_orderly(0);
        run("reset").assert_orderly(3);
        run("reset2").assert_orderly(3);
        for (step, word) in [("watchdog", "watchdog"), ("crash", "met an error"), ("external-abort", "abort")]
        {
            let ended = run(step);
            ended.assert_orderly(4);
            assert!(ended.messages.contains(word), "{}", ended.summary());
        }
    }
}

#[test]
fn names_a_vm_that_the_resource_manager_could_not_load() {
    let script = json!({"vcpus": [[{"end": {"status": 1, "type": 0}}]]});
    let ended = Run::new(Kind::C, &script).to_end();
    ended.assert_orderly(4);
    assert!(ended.messages.contains("could not load the VM"), "{}", ended.summary());
}

#[test]
fn ends_in_order_on_a_request_to_stop() {
    let script = json!({"vcpus": [[{"write": {"addr": CONSOLE, "value": 0x48}}, "hang"]]});
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        for kind in Kind::ALL {
            let running = Run::new(kind, &script).arguments(&["--cpus", "3"]).start();
            running.wait_for("H", 1);
            running.signal(signal);
            running.to_end().assert_orderly(0);
        }
    }
}

#[test]
fn takes_down_in_the_proven_order() {
    let ended = Run::new(Kind::A, &hello()).disk().to_end();
    let calls = ended.calls();
    let last_run = calls.iter().rposition(|(call, _)| call == "VCPU_RUN").unwrap();
    let first_removal = calls.iter().position(|(call, _)| call == "VM_REMOVE_FUNCTION").unwrap();
    assert!(last_run < first_removal);
    assert_eq!(ended.made("VM_REMOVE_FUNCTION").len(), 4, "{}", ended.summary());
}

#[test]
fn gets_over_a_driver_that_is_busy_while_the_vm_shuts_down() {
    for kind in Kind::ALL {
        Run::new(kind, &hello()).disk().inject("busy-at-shutdown=5").to_end().assert_orderly(0);
    }
}

#[test]
fn ends_on_request_when_the_end_of_the_vm_is_lost() {
    let running = Run::new(Kind::A, &hello()).disk().inject("lost-exit").start();
    running.wait_for("H", 1);
    running.signal(Signal::SIGTERM);
    running.to_end().assert_orderly(0);
}

#[test]
fn describes_protected_memory_as_the_resource_manager_wants_it() {
    // The simulator refuses a tree that is wrong; the firmware's memory lies outside of RAM.
    let run = |arguments: &[&str]| Run::new(Kind::C, &hello()).disk().arguments(arguments).to_end();
    let ended = run(&["--protected-firmware"]);
    assert_eq!(ended.made("VM_ANDROID_SET_FW_CONFIG").len(), 1, "{}", ended.summary());
    let lent: Vec<_> =
        ended.made("VM_ANDROID_LEND_USER_MEM").iter().map(|entry| entry["guest"].clone()).collect();
    assert_eq!(lent, ["0x80000000", "0x7fc00000"]);
    assert!(ended.made("VM_SET_BOOT_CONTEXT").is_empty());
}
