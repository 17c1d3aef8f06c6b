//! VCPU_RUN: what a VM does from START to its end, as the program sees it.

mod common;

use std::os::fd::AsRawFd;

use common::Sim;
use common::client::{ADD_FUNCTION, Machine, RAM, count, eventfd, signal};
use common::tree::Tree;

const KINDS: [&str; 4] = ["A", "A+", "B", "C"];

#[test]
fn every_generation_boots_and_powers_off() {
    for kind in KINDS {
        let pc = format!(r#"{{"expect-boot": {{"pc": "{RAM:#x}", "x": {{"0": "0x80200000"}}}}}}"#);
        let outcome = Sim::new(kind).script(&format!(r#"[{pc}, "power-off"]"#)).check(test_name!(), || {
            let machine = Machine::started();
            let vcpu = &machine.vcpus[0];
            for _ in 0..3 {
                assert_eq!(vcpu.run(), Ok(0));
                assert_eq!(vcpu.status(), (2, 1));
            }
        });
        assert_eq!(outcome.events("ended")[0]["type"], 1);
    }
}

#[test]
fn ends_are_told_apart() {
    for (step, exit_type) in [
        ("\"reset\"", 2),
        ("\"reset2\"", 3),
        ("\"watchdog\"", 4),
        ("\"crash\"", 5),
        ("\"external-abort\"", 6),
    ] {
        let outcome = Sim::new("C").script(&format!("[{step}]")).check(test_name!(), || {
            let machine = Machine::started();
            assert_eq!(machine.vcpus[0].run(), Ok(0));
            assert_eq!(machine.vcpus[0].status().0, 2);
        });
        assert_eq!(outcome.call("VCPU_RUN")[0]["type"], exit_type);
    }
}

#[test]
fn reads_and_writes_reach_the_program() {
    let steps = r#"[
        {"read": {"addr": "0x9000018", "expect": "0x90"}},
        {"write": {"addr": "0x9000000", "len": 1, "value": 65, "exits": true}},
        "power-off"
    ]"#;
    for kind in KINDS {
        Sim::new(kind).script(steps).check(test_name!(), || {
            let machine = Machine::started();
            let vcpu = &machine.vcpus[0];
            assert_eq!(vcpu.run(), Ok(0));
            assert_eq!(vcpu.access(), (0x900_0018, 4, None));
            vcpu.answer(0x90);
            assert_eq!(vcpu.run(), Ok(0));
            assert_eq!(vcpu.access(), (0x900_0000, 1, Some(65)));
            assert_eq!(vcpu.run(), Ok(0));
            assert_eq!(vcpu.status(), (2, 1));
        });
    }
}

#[test]
fn a_fault_as_resume_action_aborts_the_access_in_c_and_not_in_a() {
    for (kind, aborts) in [("A", false), ("C", true)] {
        let steps = format!(r#"[{{"read": {{"addr": "0x9000018", "aborts": {aborts}}}}}, "power-off"]"#);
        Sim::new(kind).script(&steps).check(test_name!(), || {
            let machine = Machine::started();
            let vcpu = &machine.vcpus[0];
            vcpu.run().unwrap();
            vcpu.page.store(37, &[1]);
            vcpu.run().unwrap();
            assert_eq!(vcpu.status(), (2, 1));
        });
    }
}

#[test]
fn a_retry_of_an_access_is_invalid_in_c() {
    let outcome = Sim::new("C").script(r#"[{"read": {"addr": 16}}, "power-off"]"#).run(test_name!(), || {
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        vcpu.run().unwrap();
        vcpu.page.store(37, &[2]);
        assert_eq!(vcpu.run(), Err(libc::EINVAL));
        vcpu.page.store(37, &[0]);
        assert_eq!(vcpu.run(), Ok(0));
    });
    assert!(outcome.status.success(), "{}", outcome.output);
    assert!(outcome.report["problems"][0].as_str().unwrap().contains("resume_action 2"));
}

#[test]
fn an_access_behind_the_trap_window_is_fatal_in_a_and_a_page_fault_in_c() {
    let steps = |aborts| {
        format!(r#"[{{"write": {{"addr": "0x40000000", "value": 1, "aborts": {aborts}}}}}, "power-off"]"#)
    };
    Sim::new("A").script(&steps(true)).check(test_name!(), || {
        let machine = Machine::started();
        machine.vcpus[0].run().unwrap();
        assert_eq!(machine.vcpus[0].status(), (2, 1));
    });
    Sim::new("C").script(&steps(false)).check(test_name!(), || {
        let machine = Machine::started();
        for _ in 0..3 {
            machine.vcpus[0].run().unwrap();
            assert_eq!(machine.vcpus[0].fault(), (0x4000_0000, -libc::ENOENT));
        }
    });
}

#[test]
fn a_page_fault_is_retried_by_running_again() {
    let steps = r#"[{"page-fault": {"addr": "0x80100000", "errno": "ENOMEM", "times": 2}}, "power-off"]"#;
    Sim::new("C").script(steps).check(test_name!(), || {
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        for _ in 0..2 {
            vcpu.run().unwrap();
            assert_eq!(vcpu.fault(), (0x8010_0000, -libc::ENOMEM));
            assert_eq!(vcpu.page.load(28), [1]);
        }
        vcpu.run().unwrap();
        assert_eq!(vcpu.status(), (2, 1));
    });
}

#[test]
fn a_matching_write_signals_its_eventfd_and_stays_inside() {
    let steps = r#"[
        {"write": {"addr": "0xa000050", "value": 1, "exits": false}},
        {"write": {"addr": "0xa000050", "value": 2, "exits": true}},
        {"write": {"addr": "0xb000000", "len": 2, "value": 9, "exits": false}},
        "power-off"
    ]"#;
    Sim::new("C").script(steps).check(test_name!(), || {
        let machine = Machine::new("C", &Tree::default());
        let (queue, any) = (eventfd(), eventfd());
        machine.ioeventfd(ADD_FUNCTION, queue.as_raw_fd(), 0xa00_0050, 4, Some(1)).unwrap();
        machine.ioeventfd(ADD_FUNCTION, any.as_raw_fd(), 0xb00_0000, 0, None).unwrap();
        machine.start().unwrap();
        let vcpu = &machine.vcpus[0];
        vcpu.run().unwrap();
        assert_eq!(vcpu.access(), (0xa00_0050, 4, Some(2)));
        assert_eq!((count(&queue), count(&any)), (1, 0));
        vcpu.run().unwrap();
        assert_eq!((count(&queue), count(&any)), (0, 1));
    });
}

#[test]
fn an_irqfd_rings_the_bell_of_its_label() {
    let steps = r#"[{"write": {"addr": 16, "value": 0}}, {"wait-irq": {"label": 2}}, "power-off"]"#;
    for kind in KINDS {
        Sim::new(kind).script(steps).check(test_name!(), || {
            let machine = Machine::new(&common::kind(), &Tree::default());
            let bell = eventfd();
            machine.irqfd(ADD_FUNCTION, bell.as_raw_fd(), 2, 0).unwrap();
            machine.start().unwrap();
            machine.vcpus[0].run().unwrap();
            signal(&bell);
            machine.vcpus[0].run().unwrap();
            assert_eq!(machine.vcpus[0].status(), (2, 1));
        });
    }
}

#[test]
fn an_interrupt_raised_before_the_start_is_lost() {
    let steps = r#"[{"no-irq": {"label": 1, "ms": 50}}, "power-off"]"#;
    let outcome = Sim::new("A").script(steps).check(test_name!(), || {
        let machine = Machine::new("A", &Tree::default());
        let bell = eventfd();
        machine.irqfd(ADD_FUNCTION, bell.as_raw_fd(), 1, 0).unwrap();
        signal(&bell);
        machine.start().unwrap();
        machine.vcpus[0].run().unwrap();
        assert_eq!(machine.vcpus[0].status(), (2, 1));
    });
    assert!(outcome.logged("Premature injection"));
}

#[test]
fn an_irqfd_can_claim_its_bell_after_the_start() {
    let steps = r#"[{"write": {"addr": 16, "value": 0}}, {"wait-irq": {"label": 1}}, "power-off"]"#;
    Sim::new("C").script(steps).check(test_name!(), || {
        let machine = Machine::started();
        machine.vcpus[0].run().unwrap();
        let bell = eventfd();
        machine.irqfd(ADD_FUNCTION, bell.as_raw_fd(), 1, 0).unwrap();
        signal(&bell);
        machine.vcpus[0].run().unwrap();
        assert_eq!(machine.vcpus[0].status(), (2, 1));
    });
}

#[test]
fn a_label_without_a_bell_is_accepted_and_never_rings() {
    let steps = r#"[{"no-irq": {"label": 7, "ms": 50}}, "power-off"]"#;
    let outcome = Sim::new("A").script(steps).run(test_name!(), || {
        let machine = Machine::new("A", &Tree::default());
        let (bell, later) = (eventfd(), eventfd());
        machine.irqfd(ADD_FUNCTION, bell.as_raw_fd(), 7, 0).unwrap();
        machine.start().unwrap();
        machine.irqfd(ADD_FUNCTION, later.as_raw_fd(), 8, 0).unwrap();
        signal(&bell);
        machine.vcpus[0].run().unwrap();
        assert_eq!(machine.vcpus[0].status(), (2, 1));
    });
    assert!(outcome.status.success(), "{}", outcome.output);
    assert!(outcome.logged("label 7 has no doorbell"));
    let problems = outcome.report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn secondaries_wait_inside_run_until_they_are_turned_on() {
    let steps = r#"[{"cpu-on": 1}, {"wait-irq": {"label": 1}}, "power-off"], [{"write": {"addr": 32, "value": 1}}, "hang"]"#;
    Sim::new("C").script(steps).check(test_name!(), || {
        let tree = Tree { vcpus: 2, ..Tree::default() };
        let machine = Machine::new("C", &tree);
        let bell = eventfd();
        machine.irqfd(ADD_FUNCTION, bell.as_raw_fd(), 1, 0).unwrap();
        machine.start().unwrap();
        let (boot, secondary) = (&machine.vcpus[0], &machine.vcpus[1]);
        std::thread::scope(|scope| {
            let boot = SendVcpu(boot);
            scope.spawn(move || {
                let boot = boot;
                assert_eq!(boot.0.run(), Ok(0));
                assert_eq!(boot.0.status(), (2, 1));
            });
            secondary.run().unwrap();
            assert_eq!(secondary.access(), (32, 4, Some(1)));
            signal(&bell);
            secondary.run().unwrap();
            assert_eq!(secondary.status(), (2, 1));
        });
    });
}

/// A vCPU for another thread: run pages are plain memory, and each is used by one thread.
struct SendVcpu<'a>(&'a common::client::Vcpu);

// SAFETY: the test uses the vCPU on one thread at a time.
unsafe impl Send for SendVcpu<'_> {}

#[test]
fn run_before_the_start_finds_no_device() {
    for kind in KINDS {
        Sim::new(kind).script("[]").check(test_name!(), || {
            let machine = Machine::new(&common::kind(), &Tree::default());
            assert_eq!(machine.vcpus[0].run(), Err(libc::ENODEV));
        });
    }
}
