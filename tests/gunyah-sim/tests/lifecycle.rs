//! The end of VMs: references, teardown, what is left over, signals and injected faults.

mod common;

use std::os::fd::AsRawFd;
use std::time::Duration;

use common::Sim;
use common::client::{Machine, RAM, START, ioctl};
use common::tree::Tree;

#[test]
fn a_vm_lives_until_its_last_run_page_is_unmapped() {
    let outcome = Sim::new("C").script(r#"["power-off"]"#).check(test_name!(), || {
        let Machine { mut vcpus, vm, ram, node } = Machine::started();
        let common::client::Vcpu { page, fd } = vcpus.remove(0);
        drop(vm);
        drop(fd);
        assert!(!ram.is_readable(0), "the run page keeps the VM");
        drop(page);
        assert!(ram.is_readable(0), "the last close waits for the teardown");
        drop(node);
    });
    assert_eq!(outcome.report["vms_alive"], 0);
    assert_eq!(outcome.report["open"], serde_json::json!([]));
}

#[test]
fn teardown_outlives_the_last_close_in_generation_a() {
    let sim = Sim::new("A+").var("GUNYAH_SIM_TEARDOWN_MS", "1000").script(r#"["power-off"]"#);
    let outcome = sim.check(test_name!(), || {
        let Machine { vcpus, vm, ram, node } = Machine::started();
        drop((vcpus, vm, node));
        assert!(!ram.is_readable(0), "lent memory comes back later");
        while !ram.is_readable(0) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!(outcome.report["vms_alive"], 0);
}

#[test]
fn what_is_left_open_is_reported() {
    let outcome = Sim::new("C").script(r#"["power-off"]"#).check(test_name!(), || {
        std::mem::forget(Machine::started());
    });
    let kinds: Vec<_> = outcome.report["open"].as_array().unwrap().iter().map(|file| &file["kind"]).collect();
    assert_eq!(outcome.report["vms_alive"], 1);
    for kind in ["node", "vm", "vcpu", "run page"] {
        assert!(kinds.iter().any(|found| *found == kind), "{kind} in {kinds:?}");
    }
}

#[test]
fn many_vms_one_after_another_leave_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for kind in ["A", "A+", "B", "C"] {
        let sim = Sim::new(kind).var("GUNYAH_SIM_TEARDOWN_MS", "0").script(r#"["power-off"]"#);
        let outcome = sim.check(test_name!(), || {
            let cycle = || {
                let machine = Machine::started();
                machine.vcpus[0].run().unwrap();
            };
            cycle();
            let before = descriptors();
            (0..50).for_each(|_| cycle());
            while descriptors() > before {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert_eq!(outcome.report["vms_created"], 51);
    }
}

#[test]
fn an_immediate_exit_is_seen_before_the_guest_is_entered() {
    Sim::new("A").script(r#"["power-off"]"#).check(test_name!(), || {
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        vcpu.page.store(0, &[1]);
        assert_eq!(vcpu.run(), Err(libc::EINTR));
        vcpu.page.store(0, &[0]);
        assert_eq!(vcpu.run(), Ok(0));
    });
}

extern "C" fn nothing(_: i32) {}

fn handle(signal: i32, flags: i32) {
    // SAFETY: zeroes are a valid action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: the action is initialised and its handler touches nothing.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
}

/// Runs a vCPU and sends this thread a signal meanwhile.
fn run_and_kick(vcpu: &common::client::Vcpu) -> common::client::Answer {
    handle(libc::SIGUSR1, 0);
    // SAFETY: pthread_self has no arguments.
    let thread = unsafe { libc::pthread_self() } as usize;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            // SAFETY: the thread outlives this scope.
            unsafe { libc::pthread_kill(thread as libc::pthread_t, libc::SIGUSR1) };
        });
        vcpu.run()
    })
}

#[test]
fn a_signal_breaks_the_wait_of_an_idle_vcpu() {
    Sim::new("C").script(r#"["hang"]"#).check(test_name!(), || {
        let machine = Machine::started();
        assert_eq!(run_and_kick(&machine.vcpus[0]), Err(libc::EINTR));
    });
}

#[test]
fn a_signal_on_the_way_out_hides_an_exit_that_is_already_described() {
    let steps = r#"[{"write": {"addr": 16, "value": 7}}, "power-off"]"#;
    Sim::new("C").inject("late-signal=1:SIGUSR1").script(steps).check(test_name!(), || {
        handle(libc::SIGUSR1, 0);
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        assert_eq!(vcpu.run(), Err(libc::EINTR));
        assert_eq!(vcpu.access(), (16, 4, Some(7)));
        assert_eq!(vcpu.run(), Ok(0));
        assert_eq!(vcpu.status(), (2, 1));
    });
}

#[test]
fn a_signal_on_the_way_in_comes_before_the_guest() {
    let steps = r#"[{"write": {"addr": 16, "value": 7}}, "power-off"]"#;
    Sim::new("C").inject("signal=VCPU_RUN:1:SIGUSR1").script(steps).check(test_name!(), || {
        handle(libc::SIGUSR1, 0);
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        assert_eq!(vcpu.run(), Err(libc::EINTR));
        assert_eq!(vcpu.reason(), 0);
        assert_eq!(vcpu.run(), Ok(0));
        assert_eq!(vcpu.access(), (16, 4, Some(7)));
    });
}

#[test]
fn a_read_that_is_kicked_on_its_way_back_reads_zero() {
    let steps = r#"[{"read": {"addr": 16, "expect": 0}}, "power-off"]"#;
    for kind in ["A", "C"] {
        Sim::new(kind).script(steps).check(test_name!(), || {
            let machine = Machine::started();
            let vcpu = &machine.vcpus[0];
            vcpu.run().unwrap();
            vcpu.answer(0x55);
            vcpu.page.store(0, &[1]);
            assert_eq!(vcpu.run(), Err(libc::EINTR));
            vcpu.page.store(0, &[0]);
            vcpu.run().unwrap();
            assert_eq!(vcpu.status(), (2, 1));
        });
    }
}

#[test]
fn a_handler_that_restarts_calls_does_not_end_run() {
    let sim = Sim::new("A").inject("signal=VCPU_RUN:1:SIGUSR2").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        handle(libc::SIGUSR2, libc::SA_RESTART);
        let machine = Machine::started();
        assert_eq!(machine.vcpus[0].run(), Ok(0));
        assert_eq!(machine.vcpus[0].status(), (2, 1));
    });
}

#[test]
fn any_request_can_be_made_to_fail() {
    let sim = Sim::new("A").inject("fail=VM_START:1:EBUSY,fail=MMAP:1:ENOMEM").script("[]");
    let outcome = sim.check(test_name!(), || {
        let mut machine = Machine::empty();
        assert_eq!(machine.add_vcpu(0), Err(libc::ENOMEM));
        assert_eq!(ioctl(machine.vm.as_raw_fd(), START, 0), Err(libc::EBUSY));
    });
    assert_eq!(outcome.call("VM_START")[0]["injected"], true);
}

#[test]
fn a_transient_refusal_is_cured_by_a_new_vm_only() {
    let sim = Sim::new("C").inject("refuse-start=2").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        let first = Machine::new("C", &Tree::default());
        assert_eq!(first.start(), Err(libc::ENODEV));
        assert_eq!(first.start(), Err(libc::ENODEV));
        drop(first);
        assert_eq!(Machine::new("C", &Tree::default()).start(), Err(libc::ENODEV));
        assert_eq!(Machine::new("C", &Tree::default()).start(), Ok(0));
    });
}

#[test]
fn a_start_right_after_an_end_is_refused_within_the_grace_period() {
    let sim = Sim::new("C").var("GUNYAH_SIM_GRACE_MS", "600000").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        drop(Machine::started());
        assert_eq!(Machine::new("C", &Tree::default()).start(), Err(libc::ENODEV));
    });
}

#[test]
fn run_can_be_busy_while_the_vm_shuts_down() {
    let sim = Sim::new("A").inject("busy-at-shutdown=2").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        assert_eq!([vcpu.run(), vcpu.run(), vcpu.run()], [Err(libc::EBUSY), Err(libc::EBUSY), Ok(0)]);
        assert_eq!(vcpu.status(), (2, 1));
    });
}

#[test]
fn a_lost_exit_leaves_run_waiting_for_a_signal() {
    let sim = Sim::new("A").inject("lost-exit").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        let machine = Machine::started();
        assert_eq!(run_and_kick(&machine.vcpus[0]), Err(libc::EINTR));
    });
}

#[test]
fn an_injected_page_fault_can_last() {
    let sim = Sim::new("C").inject("page-fault=ENOMEM:always:0x90000000").script(r#"["power-off"]"#);
    sim.check(test_name!(), || {
        let machine = Machine::started();
        for _ in 0..100 {
            machine.vcpus[0].run().unwrap();
            assert_eq!(machine.vcpus[0].fault(), (0x9000_0000, -libc::ENOMEM));
        }
    });
}

#[test]
fn a_failed_expectation_is_reported_and_ends_the_vm() {
    let outcome = Sim::new("A").script(r#"[{"read": {"addr": 16, "expect": 1}}]"#).run(test_name!(), || {
        let machine = Machine::started();
        let vcpu = &machine.vcpus[0];
        vcpu.run().unwrap();
        vcpu.answer(2);
        vcpu.run().unwrap();
        assert_eq!(vcpu.status(), (2, 5));
    });
    assert!(outcome.status.success(), "{}", outcome.output);
    assert!(outcome.report["problems"][0].as_str().unwrap().contains("reading 0x10 gave 0x2, not 0x1"));
}

#[test]
fn settings_without_meaning_end_the_program() {
    let outcome = Sim::new("D").run(test_name!(), || {
        let _ = common::client::open_node();
    });
    assert_eq!(outcome.status.code(), Some(97));
    assert!(outcome.output.contains("GUNYAH_SIM=D: expected A, A+, B, C, C+, V0, none or eacces"));
}

#[test]
fn the_trace_has_the_calls_in_order_with_their_numbers() {
    let outcome = Sim::new("C").script(r#"["power-off"]"#).check(test_name!(), || {
        let machine = Machine::started();
        machine.vcpus[0].run().unwrap();
    });
    assert_eq!(
        outcome.calls(),
        [
            "OPEN",
            "CREATE_VM",
            "VM_ANDROID_LEND_USER_MEM",
            "VM_SET_BOOT_CONTEXT",
            "VM_ADD_FUNCTION",
            "MMAP",
            "VM_SET_DTB_CONFIG",
            "VM_START",
            "VCPU_RUN"
        ]
    );
    let lend = outcome.call("VM_ANDROID_LEND_USER_MEM")[0];
    assert_eq!(lend["guest"], format!("{RAM:#x}"));
    assert_eq!(lend["ret"], 0);
}
