//! VMs that do not start.

use gunyah_tests::{Ended, Kind, Run};
use serde_json::{Value, json};

fn power_off() -> Value {
    json!({"vcpus": [["power-off"]]})
}

/// A run of a kind of VM that the arguments alone decide.
fn bare(simulator: &str, arguments: &[&str]) -> Ended {
    Run::new(Kind::A, &power_off()).driver(simulator).arguments(arguments).to_end()
}

#[test]
fn starts_after_refusals_that_pass() {
    for kind in Kind::ALL {
        let ended = Run::new(kind, &power_off()).inject("refuse-start=2").to_end();
        ended.assert_orderly(0);
        assert_eq!(ended.messages.matches("start refused, which may pass").count(), 2, "{}", ended.summary());
        // A refused VM is beyond repair.
        assert_eq!(ended.made("CREATE_VM").len(), 1 + 3, "{}", ended.summary());
    }
}

#[test]
fn gives_up_after_four_refusals_and_says_what_may_be_wrong() {
    let ended = Run::new(Kind::A, &power_off()).inject("refuse-start=100").to_end();
    ended.assert_orderly(1);
    assert_eq!(ended.trace.iter().filter(|entry| entry["call"] == "VM_START").count(), 4);
    for part in ["GH_VM_START: No such device (ENODEV)", "add --protected", "dmesg", "5600000b"] {
        assert!(ended.messages.contains(part), "{part}: {}", ended.summary());
    }
}

#[test]
fn does_not_repeat_a_start_with_more_vcpus_than_cores() {
    let ended = Run::new(Kind::A, &power_off()).arguments(&["--cpus", "80"]).to_end();
    ended.assert_orderly(1);
    assert_eq!(ended.trace.iter().filter(|entry| entry["call"] == "VM_START").count(), 1);
    assert!(ended.messages.contains("this VM has 80 vCPUs"), "{}", ended.summary());
}

#[test]
fn takes_no_more_interrupts_than_the_resource_manager_has_room_for() {
    let with_queues = |queues| {
        let run = Run::new(Kind::A, &power_off()).disk_with_queues("first", 16);
        run.disk_with_queues("second", queues).to_end()
    };
    let fewest = (1..=16).find_map(|queues| {
        let ended = with_queues(queues);
        // The Resource Manager takes whatever gvmm takes.
        ended.assert_orderly(if ended.code == Some(0) { 0 } else { 2 });
        (ended.code == Some(2)).then_some((queues, ended))
    });
    let (queues, refused) = fewest.expect("32 queues are too many");
    assert!(queues > 8, "{queues}: {}", refused.summary());
    for part in ["the device tree has", "interrupts take", "fewer queues"] {
        assert!(refused.messages.contains(part), "{part}: {}", refused.summary());
    }
}

#[test]
fn refuses_shared_memory_before_the_driver_is_asked_where_no_guest_could_run_in_it() {
    for simulator in ["B", "C"] {
        let ended = bare(simulator, &[]);
        ended.assert_orderly(2);
        assert!(ended.messages.contains("add --protected"), "{}", ended.summary());
        assert!(ended.made("VM_ADD_FUNCTION").is_empty());
    }
}

#[test]
fn refuses_to_lend_where_the_driver_cannot() {
    let ended = bare("A", &["--protected", "--swiotlb", "8M"]);
    ended.assert_orderly(2);
    assert!(ended.messages.contains("cannot lend memory"), "{}", ended.summary());
}

#[test]
fn runs_protected_guests_where_the_resource_manager_takes_no_others() {
    let production = |arguments| {
        let run = Run::new(Kind::A, &power_off()).driver("A+").setting("RM", "production");
        run.arguments(arguments).to_end()
    };
    production(&["--protected", "--swiotlb", "8M"]).assert_orderly(0);
    let ended = production(&[]);
    ended.assert_orderly(1);
    assert!(ended.messages.contains("GH_VM_START"), "{}", ended.summary());
}

#[test]
fn names_the_limit_on_locked_memory_and_what_to_type() {
    let ended = Run::new(Kind::A, &power_off()).inject("fail=VM_SET_USER_MEM_REGION:2:ENOMEM").to_end();
    ended.assert_orderly(1);
    for part in ["GH_VM_SET_USER_MEM_REGION for RAM of 32 MiB at 0x80000000", "ulimit -l unlimited"] {
        assert!(ended.messages.contains(part), "{part}: {}", ended.summary());
    }
}

#[test]
fn says_why_there_is_no_driver() {
    for (simulator, part) in [
        ("none", "/dev/gunyah does not exist"),
        ("eacces", "Permission denied (EACCES): run gvmm as root"),
        ("V0", "belongs to the vendor driver"),
    ] {
        let ended = bare(simulator, &[]);
        assert_eq!(ended.code, Some(2), "{}", ended.summary());
        assert!(ended.messages.contains(part), "{}", ended.summary());
    }
}

#[test]
fn doctor_says_what_runs_and_changes_nothing() {
    for (simulator, code, part) in [
        ("A", 0, "may run         shared memory"),
        ("B", 0, "runs            protected (--protected)"),
        ("C", 0, "may run         protected, with firmware"),
        ("V0", 1, "vendor driver"),
        ("none", 1, "does not exist"),
        ("eacces", 1, "run gvmm as root"),
    ] {
        let ended = Run::bare(simulator).arguments(&["doctor"]).to_end();
        ended.assert_orderly(code);
        assert!(ended.console.contains(part), "{}", ended.summary());
        assert!(ended.made("VM_START").is_empty());
    }
    let ended = Run::bare("C+").arguments(&["doctor", "--json"]).to_end();
    let report: Value = serde_json::from_str(&ended.console).unwrap();
    assert_eq!(report["gunyah"]["driver"]["timer_wakeup"], true);
}
